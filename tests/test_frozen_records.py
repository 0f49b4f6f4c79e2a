"""Records of fixed runs, measured once: no change may move these numbers.

The table holds the metrics of the last record, to six digits, on which other machines and versions
agree. Accuracies may differ by one image, whose logits are nearly tied.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from domainbed.spec import RunSpec
from domainbed.training import run

TABLE = json.loads(Path(__file__).with_name("frozen_records.json").read_text())


@pytest.mark.parametrize("name", list(TABLE))
def test_frozen_record(name: str, tmp_path: Path) -> None:
    spec = RunSpec.create(**TABLE[name]["run"])
    run(spec, tmp_path)
    last = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    for key, value in TABLE[name]["last"].items():
        near = {"abs": 1 / 90} if key.endswith("_acc") else {"rel": 2e-4, "abs": 1e-6}
        assert last[key] == pytest.approx(value, **near), key
