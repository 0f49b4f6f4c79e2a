"""A run that another process takes over, because this one was taken for dead."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vectors import Vectors, records

from domainbed.datasets import DATASETS
from domainbed.runs.ownership import Owner
from domainbed.runs.states import Lost
from domainbed.spec import RunSpec
from domainbed.training import run

STEPS = 7


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_ino, f.read_bytes()) for f in sorted(folder.iterdir())}


def taken_over(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Another process has owned the folder meanwhile, and left it again."""
    number = 1 + len([*folder.glob("owner.*.json")])
    owner = replace(Owner.here(), released=True)
    (folder / f"owner.{number}.json").write_text(owner.text())
    return content(folder)


def test_nothing_is_written_after_a_takeover_at_any_step(tmp_path: Path) -> None:
    spec = RunSpec.create(
        "Vectors", "ERM", [2], steps=STEPS, checkpoint_freq=2, hparams={"batch_size": 4},
        averages=["sma"],
    )  # fmt: skip
    run(spec, tmp_path / "whole")
    folder, found = tmp_path / "pieces", {}
    for last in range(1, STEPS + 1):

        def on_step(taken: int, last: int = last) -> None:
            if taken == last:
                found.update(taken_over(folder))

        found.clear()
        with pytest.raises(Lost, match="has taken over"):
            run(spec, folder, on_step=on_step)
        assert content(folder) == found
    run(spec, folder)
    assert records(folder) == records(tmp_path / "whole")
    assert (folder / "done").exists()


@pytest.mark.parametrize(
    "before",
    [
        "domainbed.training.trainer.build",  # then another may even finish the run
        "domainbed.training.trainer.peak_memory",  # a record is about to be written
        "domainbed.training.checkpoint.capture",
        "domainbed.training.artifacts.save_model",
        "domainbed.training.trainer.write_text",
    ],
)
def test_nothing_is_written_after_a_takeover_within_a_step(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec.create(
        "Vectors", "ERM", [2], steps=3, checkpoint_freq=1, hparams={"batch_size": 4}
    )
    found: dict[str, tuple[int, bytes]] = {}
    function = pkgutil.resolve_name(before)

    def late(*given: Any, **named: Any) -> Any:
        found.update(found or taken_over(tmp_path))
        return function(*given, **named)

    monkeypatch.setattr(before, late)
    with pytest.raises(Lost):
        run(spec, tmp_path)
    assert content(tmp_path) == found
