"""The label type of docs/label_types.md: counts, learned by Poisson regression."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from page_files import REPOSITORY

from domainbed.config.run_fields import RunOptions
from domainbed.core.plugins import import_plugins
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.metrics.labels import LABEL_TYPES, label_type
from domainbed.spec import RunSpec
from domainbed.training import build, run


@pytest.fixture(autouse=True)
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (DATASETS, LABEL_TYPES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    text = (REPOSITORY / "docs" / "label_types.md").read_text()
    ((name, code),) = re.findall(r"<!-- file: (\S+) -->\n+```python\n(.*?)```", text, re.S)
    (tmp_path / name).write_text(code)
    import_plugins([str(tmp_path / name)])


def test_its_loss_is_a_negative_log_likelihood() -> None:
    counts = label_type("counts")
    torch.manual_seed(0)
    outputs, y = torch.randn(7, 1), torch.randint(5, (7,)).float()
    distribution = torch.distributions.Poisson(outputs.squeeze(1).exp())
    constant = torch.lgamma(y + 1)
    expected = -distribution.log_prob(y) - constant
    torch.testing.assert_close(counts.losses(outputs, y), expected)
    torch.testing.assert_close(counts.decode(outputs), distribution.mean)
    with pytest.raises(UserError, match="a label is negative"):
        counts.check(-1 - y, 1)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_of_it(tmp_path: Path) -> None:
    """A few updates predict better than the best constant, and metrics are of rates."""
    spec = RunSpec.create(
        "Visits", "Fishr", [2], steps=60, checkpoint_freq=59, hparams={"lr": 0.01}
    )
    assert spec.metrics == ("rmse", "mae")
    assert spec.identity()["labels"] == "counts"
    run(spec, tmp_path / "run", RunOptions(device="cpu", keep="none"))
    last = records(tmp_path / "run")[-1]
    experiment = build(spec, RunOptions(device="cpu"))
    inside = experiment.domains[0].labels[experiment.splits[0].inside]
    assert last["env0_in_rmse"] < 0.8 * inside.std(correction=0)
    assert last["penalty"] > 0
    with pytest.raises(UserError, match="CDANN needs classes, and labels are 'counts'"):
        RunSpec.create("Visits", "CDANN", [2])
