"""The weight of the package in statements, room by room: `python benchmarks/weight.py [DEPTH]`."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "domainbed"


def main() -> None:
    """Prints statements, lines and files of each place, the heaviest first."""
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    statements, lines, files = Counter[str](), Counter[str](), Counter[str]()
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        place = "/".join(path.relative_to(ROOT).parts[:depth])
        statements[place] += sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(text)))
        lines[place] += len(text.splitlines())
        files[place] += 1
    print(f"{'statements':>10} {'lines':>7} {'files':>5}")
    for place, count in statements.most_common():
        print(f"{count:10,} {lines[place]:7,} {files[place]:5} {place}")
    print(f"{statements.total():10,} {lines.total():7,} {files.total():5} in all")


if __name__ == "__main__":
    main()
