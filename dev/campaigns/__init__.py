"""Runs that are killed and resumed until they end, compared with runs that were left alone."""
