"""A report as a list of blocks, rendered as Markdown and as an HTML page. All texts are plain text, shown verbatim."""

import base64
import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from utils.text import aligned, one_line, width


@dataclass(frozen=True)
class Heading:
    """Level 1, the title, or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Some sentences. link: a file name, shown at the end."""

    text: str
    link: str = ""
    strong: bool = False
    """Highlight it."""


@dataclass(frozen=True)
class Table:
    """texts: indices of columns with text; the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Collection[int] = (0,)


@dataclass(frozen=True)
class Command:
    """A command to copy."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG file next to the report."""

    title: str
    file: str


@dataclass(frozen=True)
class Source:
    """A long text, collapsed in HTML. Markdown has only the link."""

    title: str
    text: str
    link: str


Block = Heading | Paragraph | Command | Table | Picture | Source

# fetches nothing and runs nothing, whatever the names of classes and files are
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem 1.25rem 3rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
div.table {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }}
th {{ border-bottom-color: #999; font-weight: 600; }}
th, td {{ overflow-wrap: normal; }}
td:last-child {{ overflow-wrap: anywhere; }}
.n {{ text-align: right; white-space: nowrap; padding-right: 0; padding-left: .8rem; }}
.n + :not(.n) {{ padding-left: 1.2rem; }}
img {{ display: block; max-width: 100%; height: auto; margin: 1rem 0; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: 13px; line-height: 1.4; }}
@media (max-width: 32rem) {{ th, td {{ padding-right: .4rem; }} .n {{ padding-left: .4rem; }} }}
p.strong {{ border-left: 4px solid #D55E00; padding-left: .8rem; font-weight: 600; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_markdown(blocks: Iterable[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def as_html(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """A self-contained page. pictures: the content of each picture's file."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    return PAGE.format(title=_plain(title), body="\n".join(_html(block, pictures) for block in blocks))


def escaped(text: str) -> str:
    """A text escaped for Markdown, in one line."""
    # an underscore within a word is not markup, nor is a list sign, except at the start
    special = r"[\\`*{}\[\]<>#|$~&]|\b_+|_+\b|^[+-](?=\s)|^\d+[.)](?=\s)"
    return re.sub(special, lambda found: re.sub(r"\D", r"\\\g<0>", found[0]), one_line(text))


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escaped(text)}"
        case Paragraph(text, link, strong):
            words = f"**{escaped(text)}**" if strong else escaped(text)
            return f"{words} {_link(link)}" if link else words
        case Command(text):
            return f"    {one_line(text)}"
        case Table(header, rows, texts):
            cells = [[escaped(cell) for cell in row] for row in rows]
            numbers = [column for column in range(len(header)) if column not in texts]
            return "\n".join(markdown_table(list(map(escaped, header)), cells, right=numbers))
        case Picture(title, file):
            return f"![{escaped(title)}]({file})"
        case Source(title, _, link):
            return f"{escaped(title)}: {_link(link)}" if link else escaped(title)


def _link(path: str) -> str:
    return f"[{escaped(path)}]({quote(path)})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a Markdown table with aligned columns, also readable as plain text.

    right: the columns to align right, such as numbers.
    """
    least = [cell.rjust(3) if index in right else cell.ljust(3) for index, cell in enumerate(header)]
    lines = aligned([least, *rows], right)
    widths = map(width, lines[0])
    rule = [f"{'-' * (columns - 1)}:" if index in right else "-" * columns for index, columns in enumerate(widths)]
    return [f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:])]


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_plain(text)}</h{level}>"
        case Paragraph(text, link, strong):
            end = f' <a href="{_plain(link)}">{_plain(link)}</a>' if link else ""
            return f"<p{' class=strong' if strong else ''}>{_plain(text)}{end}</p>"
        case Command(text):
            return f"<pre>{_plain(text)}</pre>"
        case Table(header, rows, texts):
            lines = [_row("th", header, texts)] if any(header) else []
            lines += [_row("td", row, texts) for row in rows]
            return "<div class=table><table>\n" + "\n".join(lines) + "\n</table></div>"
        case Picture(title, file):
            content = base64.b64encode(pictures[file]).decode()
            return f'<img alt="{_plain(title)}" src="data:image/png;base64,{content}">'
        case Source(title, text, _):
            return f"<details><summary>{_plain(title)}</summary><pre>{_lines(text)}</pre></details>"


def _row(tag: str, cells: Sequence[str], texts: Collection[int]) -> str:
    kinds = ["" if column in texts else " class=n" for column in range(len(cells))]
    inside = "".join(f"<{tag}{kind}>{_plain(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{inside}</tr>"


def _plain(text: str) -> str:
    return html.escape(one_line(text))


def _lines(text: str) -> str:
    """A text with its line breaks and indentation."""
    lines = (line[: len(line) - len(line.lstrip(" "))] + one_line(line) for line in text.splitlines())
    return html.escape("\n".join(lines))
