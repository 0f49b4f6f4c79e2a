"""The notebooks of the tutorials run, cell by cell, and keep the outputs of such a run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from page_files import REPOSITORY

TUTORIALS = REPOSITORY / "docs" / "tutorials"
NAMES = ["reproduce", "my_method", "my_data"]


def code_cells(name):
    notebook = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kept_output(cell):
    """How the value of a cell was shown: "image", "html", "plain", or None."""
    values = [each["data"] for each in cell["outputs"] if each["output_type"] == "execute_result"]
    kinds = {kind.split("/")[0 if "image" in kind else 1] for data in values for kind in data}
    return next((kind for kind in ("image", "html", "plain") if kind in kinds), None)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_keeps_the_outputs_of_one_run(name):
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {each["output_type"] for cell in cells for each in cell["outputs"]}
    assert "html" in map(kept_output, cells)
    assert (TUTORIALS / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """Without Jupyter: `%%writefile` writes, other lines of % are for it; values as kept."""
    monkeypatch.chdir(tmp_path)
    space = {}
    for cell in code_cells(name):
        first, *rest = cell["source"]
        if first.startswith("%%writefile"):
            Path(first.split()[1]).write_text("".join(rest))
            continue
        lines = [line for line in cell["source"] if not line.startswith("%")]
        *steps, last = ast.parse("".join(lines)).body
        exec(compile(ast.Module(steps, []), name, "exec"), space)
        if not isinstance(last, ast.Expr):
            exec(compile(ast.Module([last], []), name, "exec"), space)
            continue
        value = eval(compile(ast.Expression(last.value), name, "eval"), space)
        kinds = {"Figure": "image", "DataFrame": "html", "NoneType": None}
        assert kept_output(cell) == kinds.get(type(value).__name__, "plain")
