"""What a config may contain.

catalogue for --list, json_schema for config.schema.json, config_table for docs/config.md.
"""
