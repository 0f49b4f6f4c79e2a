"""Records of fixed runs, measured once: no change may move these numbers.

The table holds the metrics of the last record, to six digits, with one thread. Kinds of processors
disagree: rounding differs, and after 21 updates of batch norm and Adam a small penalty differs by
several percent. So a run has the metrics of each kind that was measured (one with AVX-512, one with
AVX2), and has to agree with one of them in all. Accuracies may differ by one image, whose logits
are nearly tied.
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
    differing = [
        {key: (last[key], value) for key, value in measured.items() if not _agree(key, last, value)}
        for measured in TABLE[name]["last"]
    ]
    assert {} in differing, differing


def _agree(key: str, last: dict[str, float], value: float) -> bool:
    near = {"abs": 1 / 90} if key.endswith("_acc") else {"rel": 2e-4, "abs": 1e-6}
    return last[key] == pytest.approx(value, **near)
