"""The structure of the package in figures: rooms, floors, arrows, circles and lines.

    python tools/structure.py             # of this checkout
    python tools/structure.py CHECKOUT    # of another one, such as a worktree of an earlier commit

A room is a folder or a file at one level of the package, an arrow an import between two rooms
(typing imports too), a circle a set of rooms that import each other, and the number of floors the
longest way down along the arrows.
"""

from __future__ import annotations

import argparse
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PACKAGE = "lightning_peft"


def rooms_below(graph: grimp.ImportGraph, parent: str) -> dict[str, set[str]]:
    """Return, for each child of a package, the other children that it imports from."""
    children = graph.find_children(parent)
    found: dict[str, set[str]] = {child: set() for child in children}
    for child in children:
        for module in {child, *graph.find_descendants(child)}:
            for imported in graph.find_modules_directly_imported_by(module):
                room = next((c for c in children if f"{imported}.".startswith(f"{c}.")), None)
                if room not in (None, child):
                    found[child].add(room)
    return found


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of more than one room."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in arrows[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in arrows}
    return [set(group) for group in groups if len(group) > 1]


def floors(arrows: dict[str, set[str]]) -> int:
    """Return the number of rooms on the longest way down; those of one circle share a floor."""
    found = circles(arrows)
    name = {room: min(next((c for c in found if room in c), {room})) for room in arrows}
    above: dict[str, set[str]] = {name[room]: set() for room in arrows}
    for room, targets in arrows.items():
        above[name[room]] |= {name[t] for t in targets} - {name[room]}
    level: dict[str, int] = {}
    for room in TopologicalSorter(above).static_order():
        level[room] = 1 + max((level[t] for t in above[room]), default=0)
    return max(level.values(), default=0)


def lines(path: Path) -> int:
    """Count the lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print the figures of one checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    root: Path = parser.parse_args().checkout
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    folder = root / PACKAGE
    code = list(folder.rglob("*.py"))
    top = [p for p in folder.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))]
    print(f"entries at the root      {len(top)}")
    for parent in (PACKAGE, f"{PACKAGE}.cli"):
        arrows = rooms_below(graph, parent)
        print(f"{parent}: {len(arrows)} rooms, {floors(arrows)} floors, ", end="")
        print(f"{sum(map(len, arrows.values()))} arrows")
    packages = sorted({m.rpartition(".")[0] for m in graph.modules if "." in m})
    found = {p: circles(rooms_below(graph, p)) for p in packages}
    print(f"circles at any depth     {sum(map(len, found.values()))}")
    for parent, groups in found.items():
        for group in groups:
            print(f"    in {parent}: {', '.join(sorted(r.rpartition('.')[2] for r in group))}")
    print(f"lines of pyproject.toml  {lines(root / 'pyproject.toml')}")
    print(f"files, lines of code     {len(code)}, {sum(map(lines, code)):,}")


if __name__ == "__main__":
    main()
