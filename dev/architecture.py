"""Draw docs/architecture.svg: the folders, what is in them, and who imports whom, read from the imports.

python -m dev.architecture
"""

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
# from left to right; what shares a column does not import one another
COLUMNS = (("utils",), ("logger",), ("base",), ("data_loader", "model", "trainer"), ("extras",), ("scripts",))
COLORS = {"model": "#fff3d6", "data_loader": "#fff3d6", "trainer": "#fff3d6", "extras": "#e8e8f8"}
WIDTH, LEFT, GAP, LINE, TOP = 160, 12, 26, 15, 58


def scripts() -> list[Path]:
    """The commands."""
    return sorted(ROOT.glob("*.py"))


def files_of(room: str) -> list[Path]:
    return scripts() if room == "scripts" else sorted((ROOT / room).rglob("*.py"))


def contents(room: str) -> list[str]:
    """The files and folders of a room, as they are listed in it: folders first."""
    if room == "scripts":
        return [path.name for path in scripts()]
    folder = ROOT / room
    inside = sorted(path.name + "/" for path in folder.iterdir() if (path / "__init__.py").exists())
    return inside + sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """The first part of every module that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def arrows() -> list[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    rooms = [room for column in COLUMNS for room in column]
    names = {room: set[str]().union(*map(imported, files_of(room))) for room in rooms}
    return [(room, other) for room in rooms for other in rooms if other in names[room] and other != room]


def boxes() -> dict[str, tuple[int, int, int]]:
    """Of each room, where it is: x, y, height."""
    heights = {room: 44 + LINE * len(contents(room)) for column in COLUMNS for room in column}
    found = {}
    for number, column in enumerate(COLUMNS):
        y = TOP
        for room in column:
            found[room] = (LEFT + number * (WIDTH + GAP), y, heights[room])
            y += heights[room] + GAP
    return found


def box(room: str, x: int, y: int, height: int) -> list[str]:
    title = "commands" if room == "scripts" else f"{room}/"
    drawn = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="5" fill="{COLORS.get(room, "#eef4ee")}" '
        'stroke="#555"/>',
        f'<text x="{x + 9}" y="{y + 19}" font-weight="bold" font-size="14">{title}</text>',
    ]
    for number, name in enumerate(contents(room)):
        drawn.append(f'<text x="{x + 9}" y="{y + 38 + LINE * number}">{escape(name)}</text>')
    return drawn


def arrow(start: tuple[int, int, int], end: tuple[int, int, int], slot: int, bottom: int) -> str:
    """From a room to one that it imports: to the next column straight, and farther ones below all rooms."""
    (x1, y1, h1), (x2, y2, h2) = start, end
    if x1 - x2 == WIDTH + GAP:
        y = min(y1 + h1 // 2, y2 + h2 - 12)
        return f'<path d="M{x1} {max(y, y1 + 12)} H{x1 - GAP // 2} V{y} H{x2 + WIDTH + 2}" marker-end="url(#head)"/>'
    y, out, into = bottom + 14 * slot, x1 + 14 + 9 * slot, x2 + 14 + 9 * slot
    return f'<path d="M{out} {y1 + h1} V{y} H{into} V{y2 + h2 + 2}" marker-end="url(#head)"/>'


def svg() -> str:
    """The picture."""
    rooms = boxes()
    bottom = max(y + height for _, y, height in rooms.values()) + 24
    drawn: list[str] = []
    slot = 0
    for room, other in arrows():
        x1, x2 = rooms[room][0], rooms[other][0]
        near = x1 - x2 == WIDTH + GAP
        # of three rooms in one column, the lowest one alone has a free way down
        column = next(column for column in COLUMNS if room in column)
        if near or (room == column[-1] and other == next(part for part in COLUMNS if other in part)[-1]):
            drawn.append(arrow(rooms[room], rooms[other], slot, bottom))
            slot += not near
    width, height = 2 * LEFT + len(COLUMNS) * (WIDTH + GAP) - GAP, bottom + 16 * slot + 4
    body = [part for room, (x, y, tall) in rooms.items() for part in box(room, x, y, tall)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="11.5">',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#555" stroke="none"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">Who imports whom</text>',
            f'<text x="{LEFT}" y="43" fill="#555">An arrow points from a folder to one that it imports. '
            "Yellow: your code; all three import utils/, too. Violet: any folder can be deleted.</text>",
            '<g fill="none" stroke="#555">',
            *drawn,
            "</g>",
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {len(arrows())} arrows")
