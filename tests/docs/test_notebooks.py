"""The notebooks of the tutorials run, cell by cell."""

from __future__ import annotations

import ast
import json

import pytest
from page_files import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reproduce", "my_method", "my_data"])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """Without Jupyter: lines that begin with % are for it, and a cell's last value is kept."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((REPOSITORY / "docs" / "tutorials" / f"{name}.ipynb").read_text())
    space, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in cell["source"] if not line.startswith("%")]
        *steps, last = ast.parse("".join(lines)).body
        exec(compile(ast.Module(steps, []), name, "exec"), space)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), space))
        else:
            exec(compile(ast.Module([last], []), name, "exec"), space)
    kinds = {type(value).__name__ for value in shown}
    assert {"reproduce": "Figure", "my_method": "Figure", "my_data": "dict"}[name] in kinds
    assert {"reproduce": "PosixPath"}.get(name, "DataFrame") in kinds
