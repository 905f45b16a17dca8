"""Text in CSV files, which are opened in spreadsheets and shown in terminals."""

import csv
import io
from collections.abc import Iterable

from utils.text import escape_controls, is_number


def spreadsheet_safe(text: str) -> str:
    """Text without control characters, and with an apostrophe before anything a spreadsheet would run as a formula."""
    text = escape_controls(text)
    return f"'{text}" if text.startswith(("=", "@", "\t", "+", "-")) and not is_number(text) else text


def csv_table(rows: Iterable[Iterable[object]]) -> str:
    """A whole table as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else cell for cell in row])
    return file.getvalue()


def csv_field(text: str) -> str:
    """Text as a field of a CSV file."""
    text = spreadsheet_safe(text)
    return '"' + text.replace('"', '""') + '"' if any(letter in text for letter in ',"\r\n') else text
