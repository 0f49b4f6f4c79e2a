"""Pages get the tables of sweeps between their two lines, and nothing else changes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from page_files import REPOSITORY

from domainbed.config.baselines import summaries
from domainbed.config.run_fields import RunOptions
from domainbed.spec import RunSpec
from domainbed.training import run

PAGE = """# Title

<!-- table of {} --selection training-domain -->
old
<!-- end of table -->

Words.

<!-- table of missing -->
stays
<!-- end of table -->
"""


@pytest.fixture
def script() -> ModuleType:
    file = REPOSITORY / "docs" / "measured_tables.py"
    spec = importlib.util.spec_from_file_location("measured_tables", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_gets_its_tables(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    root, page = tmp_path / "sweep", tmp_path / "page.md"
    for trial in (0, 1):
        spec = RunSpec.create("Debug28", "ERM", [0], trial_seed=trial, steps=1, checkpoint_freq=1)
        run(spec, root / spec.run_id, RunOptions(device="cpu", skip_model_save=True))
    page.write_text(PAGE.format(root))
    monkeypatch.setattr(sys, "argv", ["measured_tables.py", str(page)])
    script.main()
    before, rest = page.read_text().split("\n\nFrom ")
    assert before == f"# Title\n\n<!-- table of {root} --selection training-domain -->"
    assert rest.startswith("2 runs (2 trials, 1 choice of hyper-parameters).")
    lines = rest.splitlines()
    assert lines[2].startswith("| Algorithm |")
    assert lines[4].startswith("| ERM |")
    assert lines[5:7] == ["", "<!-- end of table -->"]
    assert rest.endswith("Words.\n\n<!-- table of missing -->\nstays\n<!-- end of table -->\n")
    assert "the table of missing stays as it is" in capsys.readouterr().out
    accuracies = [
        json.loads(file.read_text().splitlines()[-1])["env0_in_acc"]
        for file in root.glob("*/results.jsonl")
    ]
    assert f"{50 * sum(accuracies):.1f} ±" in lines[4]


def test_pages_name_sweeps_that_there_are(script: ModuleType) -> None:
    """Each place names the folder of a config, or a released baseline."""
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    sweeps = [
        place.split()[0] for page in pages for _, place, _ in script.PLACE.findall(page.read_text())
    ]
    configs = "\n".join(file.read_text() for file in (REPOSITORY / "configs").glob("*.yaml"))
    known = {f"baseline:{name}" for name in summaries()}
    assert len(sweeps) > 3
    assert all(sweep in known or f"output_dir: {sweep}\n" in configs for sweep in sweeps)
