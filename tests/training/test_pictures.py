"""Pictures of images that lie in memory: those of a run's own domains, without a download."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from domainbed.cli import main
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import load_dataset
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import read_predictions
from domainbed.spec import RunSpec
from domainbed.training import run
from domainbed.training.trained import pictures


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for dataset in ("ColoredDigits", "RotatedDigits"):
        for algorithm in ("ERM", "IRM"):
            name = f"{dataset}-{algorithm}"
            spec = RunSpec.create(
                dataset, algorithm, [1], steps=2, trial_seed=3, hparams={"batch_size": 8}
            )
            run(spec, folder / name, RunOptions(save_predictions=True))
    return folder


def test_they_are_what_the_run_saw(sweep: Path) -> None:
    chosen = [5, 0, 7]
    colored = pictures(RunFolder(sweep / "ColoredDigits-ERM"), "data", 1, chosen)
    x = load_dataset("ColoredDigits", "data", [1], {}, 3).datasets[1].tensors[0][chosen]
    for picture, pixels in zip(colored, x, strict=True):
        assert (picture.mode, picture.size) == ("RGB", (8, 8))
        seen = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(seen[:2], (255 * pixels).byte())
        assert not seen[2].any()
    (rotated,) = pictures(RunFolder(sweep / "RotatedDigits-ERM"), "data", 2, [4])
    assert (rotated.mode, rotated.size) == ("L", (8, 8))


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "download", lambda self: pytest.fail("it would be downloaded"))
    spec = RunSpec.create("ColoredMNIST", "ERM", [1], steps=2)
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.spec.write_text(spec.model_dump_json())
    folder.results.write_text("{}\n")
    folder.done.write_text("done")
    with pytest.raises(UserError, match="ColoredMNIST is not in"):
        pictures(folder, str(tmp_path), 0, [0])
    assert not (tmp_path / "MNIST").exists()


def test_the_report_shows_them(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    with pytest.raises(SystemExit) as exit:
        main(["report", str(sweep), "--selection", "oracle", "-o", str(file)])
    assert exit.value.code == 0
    text = file.read_text()
    frame, _ = read_predictions(sweep / "ColoredDigits-ERM" / "predictions.parquet", 1, "in")
    counts = re.findall(r"<h3>ColoredDigits, .* wrong \(([\d,]+) images? of trial 3\)</h3>", text)
    both_or_one = sum(int(count.replace(",", "")) for count in counts)
    assert both_or_one >= (frame["label"] != frame["predicted"]).sum() > 0
    assert text.count('<img src="data:image/jpeg;base64,') > 6
    assert re.search(r'alt="\d+, of class \d; ERM: \d, IRM: \d; in 1 of 1 trials"', text)
    assert "<code>domainbed errors</code> lists all" in text
