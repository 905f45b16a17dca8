"""Texts in CSV files, which people open in spreadsheets and show in terminals."""

from utils.text import escape_controls


def spreadsheet_safe(text: str) -> str:
    """A text without control characters, and with an apostrophe before what a spreadsheet would run as a formula."""
    text = escape_controls(text)
    if text[:1] in ("=", "@", "\t", "\r") or (text[:1] in ("+", "-") and not text[1:].replace(".", "", 1).isdigit()):
        return f"'{text}"
    return text


def csv_field(text: str) -> str:
    """A text as a field of a CSV file."""
    text = spreadsheet_safe(text)
    return '"' + text.replace('"', '""') + '"' if any(letter in text for letter in ',"\r\n') else text
