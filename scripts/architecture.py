"""The rooms of the code and who imports whom: read from the imports, drawn as docs/architecture.svg.

Usage: python scripts/architecture.py            writes the picture again; tests/test_architecture.py compares it

A room is a folder of one of the two packages. The modules in the root of ``embedserve`` are one room, the words that
all others speak; no arrow leads to it, since there would be one from everywhere. An arrow that others imply (a → c,
where a → b → c is drawn) is left out.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs/architecture.svg"
PACKAGES = {"embedserve": REPOSITORY / "embedserve", "embedserve_training": REPOSITORY / "training/embedserve_training"}
WORDS = "embedserve"

Graph = Mapping[str, set[str]]
"""Room → the rooms that it imports."""


# --- Imports ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    where: str
    """File and line."""
    importer: str
    target: str
    """Dotted name; of ``from package import name`` the module ``package.name`` where there is one."""
    in_function: bool
    types_only: bool

    @property
    def parts(self) -> list[str]:
        """Of the target."""
        return self.target.split(".")


def imports_of(package: str) -> list[Import]:
    """Every import statement of a package, generated code left out."""
    root = PACKAGES[package]
    found: list[Import] = []
    for path in sorted(root.rglob("*.py")):
        if path.is_relative_to(PACKAGES[WORDS] / "v1"):
            continue
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, in_function, types_only in _statements(tree, in_function=False, types_only=False):
            for target in _targets(node):
                where = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
                found.append(Import(where, module, target, in_function, types_only))
    return found


def _statements(
    node: ast.AST, *, in_function: bool, types_only: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, in_function, types_only
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        in_function = True
    for_types: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for_types = node.body
    for child in ast.iter_child_nodes(node):
        yield from _statements(child, in_function=in_function, types_only=types_only or child in for_types)


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level or node.module is None:
        raise ValueError("relative imports are not used here: an absolute one says which room it enters")
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if _file_of(name) else node.module for name in names]


def _file_of(module: str) -> Path | None:
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    base = PACKAGES[package].joinpath(*rest)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.exists()), None)


# --- Rooms --------------------------------------------------------------------------------------------------------


def room_of(module: str) -> str | None:
    """The room of a module, such as "embedserve/store/local"; None for what belongs to no room.

    The faces of the two packages (``__init__``, ``__main__``) belong to none: they lead everywhere, lazily.
    """
    path = _file_of(module.removesuffix(".__init__"))
    if path is None:
        return None
    package = module.split(".")[0]
    folder = path.parent.relative_to(PACKAGES[package]).as_posix()
    if folder != ".":
        return f"{package}/{folder}"
    if path.stem in ("__init__", "__main__"):
        return None
    return WORDS if package == WORDS else f"{package}/{path.stem}"


def graph() -> dict[str, set[str]]:
    """Who imports whom, also inside of functions and for types only."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for item in imports_of(package):
            importer, target = room_of(item.importer), room_of(item.target)
            for room in (importer, target):
                if room is not None:
                    found.setdefault(room, set())
            if importer and target and importer != target:
                found[importer].add(target)
    return found


def floors(rooms: Graph) -> dict[str, int]:
    """The floor of each room: 0 where it imports no other, else one above the highest that it imports.

    Raises:
        ValueError: rooms import each other in a circle; it names them.
    """
    done: dict[str, int] = {}

    def floor(room: str, way: tuple[str, ...]) -> int:
        if room in way:
            raise ValueError(" → ".join([*way[way.index(room) :], room]))
        if room not in done:
            done[room] = max((floor(other, (*way, room)) + 1 for other in sorted(rooms[room])), default=0)
        return done[room]

    for room in sorted(rooms):
        floor(room, ())
    return done


def without_implied(rooms: Graph) -> dict[str, set[str]]:
    """The same graph without the arrows that longer ways imply (its transitive reduction)."""

    def reached(room: str) -> set[str]:
        return rooms[room].union(*(reached(other) for other in rooms[room]))

    return {
        room: {other for other in others if not any(other in reached(between) for between in others - {other})}
        for room, others in rooms.items()
    }


# --- The picture --------------------------------------------------------------------------------------------------

_WIDTH, _BOX, _HEIGHT, _ROW = 1240, 114, 44, 92
_COLOURS = {"embedserve": ("#e8f0fb", "#3b6ea5"), "embedserve_training": ("#f9efe0", "#b07a2c")}


def draw(rooms: Graph) -> str:
    """The picture as SVG: each floor a row, those who import above what they import.

    Raises:
        ValueError: rooms import each other in a circle; it names them.
    """
    floors(rooms)
    drawn = without_implied({room: others - {WORDS} for room, others in rooms.items() if room != WORDS})
    level = floors(drawn)
    rows, links = _rows_with_bends(drawn, level)
    _untangle(rows, links)
    top = max(level.values())
    place: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        step = _WIDTH / len(row)
        for position, name in enumerate(row):
            place[name] = (step * (position + 0.5), 40 + (top - number) * _ROW)
    height = 40 + top * _ROW + _HEIGHT + 70
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        "<title>The rooms of embedserve: each imports only what stands below it</title>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#778"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    out += [_arrow([place[name] for name in way]) for way in links]
    out += [_box(name, place[name]) for name in sorted(drawn)]
    out.append(_words(height))
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _rows_with_bends(drawn: Graph, level: Mapping[str, int]) -> tuple[list[list[str]], list[list[str]]]:
    """The names of each row, and each arrow as the names on its way, with a bend in every row that it crosses."""
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for name in sorted(drawn):
        rows[level[name]].append(name)
    links: list[list[str]] = []
    for name in sorted(drawn):
        for other in sorted(drawn[name]):
            bends = [f"{name} to {other} at {row}" for row in range(level[name] - 1, level[other], -1)]
            for bend, row in zip(bends, range(level[name] - 1, level[other], -1), strict=True):
                rows[row].append(bend)
            links.append([name, *bends, other])
    return rows, links


def _untangle(rows: list[list[str]], links: list[list[str]]) -> None:
    """Order each row so that arrows cross less: by the mean place of the neighbours (Sugiyama's barycentre method)."""
    neighbours: dict[str, list[str]] = defaultdict(list)
    for way in links:
        for upper, lower in pairwise(way):
            neighbours[upper].append(lower)
            neighbours[lower].append(upper)
    for _ in range(24):
        for row in (*rows, *reversed(rows)):
            middle = {name: (i + 0.5) / len(line) for line in rows for i, name in enumerate(line)}
            mean = {
                name: sum(middle[other] for other in neighbours[name]) / len(neighbours[name])
                if neighbours[name]
                else middle[name]
                for name in row
            }
            row.sort(key=lambda name: (mean[name], name))


def _arrow(points: list[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = f"M{x:.0f},{y + _HEIGHT:.0f}"
    y += _HEIGHT
    for number, (to_x, to_y) in enumerate(rest, start=1):
        is_last = number == len(rest)
        half = (y + to_y) / 2
        path += f" C{x:.0f},{half:.0f} {to_x:.0f},{half:.0f} {to_x:.0f},{to_y - (2 if is_last else 0):.0f}"
        x, y = to_x, to_y
        if not is_last:
            path += f" L{x:.0f},{y + _HEIGHT:.0f}"
            y += _HEIGHT
    return f'<path d="{path}" fill="none" stroke="#99a" stroke-width="1.2" marker-end="url(#tip)"/>'


def _box(room: str, place: tuple[float, float]) -> str:
    package, _, folder = room.partition("/")
    fill, line = _COLOURS[package]
    x, y = place
    parent, _, name = folder.rpartition("/")
    lines = [(f"{parent}/", 11, "#667")] if parent else [] if package == WORDS else [("training", 11, "#667")]
    lines.append((name, 15, "#223"))
    texts = "".join(
        f'<text x="{x:.0f}" y="{y + _HEIGHT - 11 - 17 * above - (0 if len(lines) > 1 else 6):.0f}" font-size="{size}"'
        f' fill="{colour}" text-anchor="middle">{escape(text)}</text>'
        for above, (text, size, colour) in enumerate(reversed(lines))
    )
    return (
        f'<g><rect x="{x - _BOX / 2:.0f}" y="{y:.0f}" width="{_BOX}" height="{_HEIGHT}" rx="6" fill="{fill}"'
        f' stroke="{line}"/>{texts}</g>'
    )


def _words(height: int) -> str:
    names = sorted(path.stem for path in PACKAGES[WORDS].glob("*.py") if not path.stem.startswith("__"))
    fill, line = _COLOURS[WORDS]
    return (
        f'<g><rect x="40" y="{height - 50}" width="{_WIDTH - 80}" height="34" rx="6" fill="{fill}" stroke="{line}"/>'
        f'<text x="{_WIDTH / 2:.0f}" y="{height - 28}" font-size="14" fill="#223" text-anchor="middle">'
        f"shared by all rooms: {escape(' · '.join(names))}</text></g>"
    )


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(graph()), encoding="utf-8")


if __name__ == "__main__":
    main()
