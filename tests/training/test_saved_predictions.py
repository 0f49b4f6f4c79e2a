"""The file of predictions: what it holds, when it is written, and that it changes no number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from domainbed.cli import main
from domainbed.config.run_fields import RunOptions
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import Predicted, read_predictions, write_predictions
from domainbed.spec import RunSpec
from domainbed.training import run, trainer

SPEC = RunSpec.create("ColoredDigits", "ERM", [1], steps=12, hparams={"batch_size": 8})
KEPT = RunOptions(save_predictions=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run(SPEC, folder, KEPT)
    return folder


def test_accuracies_are_those_of_the_last_record(digits: Path) -> None:
    frame, facts = read_predictions(digits / "predictions.parquet")
    record = json.loads((digits / "results.jsonl").read_text().splitlines()[-1])
    hits = (frame["label"] == frame["predicted"]).groupby([frame["domain"], frame["split"]])
    accuracies = {f"env{env}_{split}_acc": value for (env, split), value in hits.mean().items()}
    assert len(accuracies) == 6
    assert accuracies == pytest.approx({name: record[name] for name in accuracies}, abs=1e-12)
    assert facts["step"] == record["step"] == 11
    assert facts["run_id"] == SPEC.run_id
    assert facts["domains"] == record["args"]["environments"]


def test_the_columns(digits: Path) -> None:
    table = parquet.read_table(digits / "predictions.parquet")
    assert table.column_names == ["image", "domain", "split", "label", "logits"]
    _, facts = read_predictions(digits / "predictions.parquet")
    assert table.schema.field("logits").type.list_size == len(facts["classes"])
    rows = table.select(["image", "domain", "split"]).to_pylist()
    assert len({(row["image"], row["domain"]) for row in rows}) == len(rows)


def test_no_number_and_no_identity_depends_on_it(digits: Path, tmp_path: Path) -> None:
    run(SPEC, tmp_path, RunOptions())
    assert not (tmp_path / "predictions.parquet").exists()
    with_it, without = (
        [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for folder in (digits, tmp_path)
    )
    for one, other in zip(with_it, without, strict=True):
        for name in ("step_time", "mem_gb", "args"):
            one.pop(name), other.pop(name)
        assert one == other
    assert (digits / "run.json").read_text() == (tmp_path / "run.json").read_text()


def test_a_kill_before_the_mark_of_the_end(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_predictions", killed)
        with pytest.raises(KeyboardInterrupt):
            run(SPEC, tmp_path, KEPT)
    assert not RunFolder(tmp_path).is_done()
    run(SPEC, tmp_path, KEPT)
    one, other = (read_predictions(f / "predictions.parquet")[0] for f in (digits, tmp_path))
    assert one.equals(other)


def test_a_finished_run_predicts_the_same(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = digits / "predictions.parquet"
    before = parquet.read_table(file)
    file.unlink()
    with pytest.raises(SystemExit) as exit:
        main(["model", "predict", str(digits), "--save_predictions"])
    assert exit.value.code == 0
    assert str(file) in capsys.readouterr().out
    assert parquet.read_table(file).equals(before)


def test_images_are_named_by_their_files(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0)
    for place in ("a/cat", "a/dog", "b/cat", "b/dog"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(2):
            image = pixels.randint(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "photos" / place / f"{number}.png")
    hparams = {"batch_size": 2, "weights": "none", "resnet18": True}
    spec = RunSpec.create(
        f"folder:{tmp_path}/photos", "ERM", [0], steps=1, holdout_fraction=0.5, hparams=hparams
    )
    run(spec, tmp_path / "run", RunOptions(data_dir=str(tmp_path), save_predictions=True))
    frame, facts = read_predictions(tmp_path / "run" / "predictions.parquet", domain=0)
    names = {f"photos/a/{label}/{number}.png" for label in ("cat", "dog") for number in (0, 1)}
    assert set(frame["image"]) == names
    assert all(facts["classes"][row.label] in row.image for row in frame.itertuples())


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    def parts():
        yield Predicted(0, "in", ["0"], np.array([1]), np.array([[0.0, np.nan]]))
        raise UserError("an image cannot be read")

    file = tmp_path / "predictions.parquet"
    with pytest.raises(UserError, match="cannot be read"):
        write_predictions(file, {}, parts())
    assert list(tmp_path.iterdir()) == []


def test_a_nan_is_no_prediction(tmp_path: Path) -> None:
    logits = np.array([[np.nan, 0.5], [0.5, np.nan], [0.1, 0.2]])
    part = Predicted(3, "out", ["a", "b", "c"], np.array([0, 1, 0]), logits)
    write_predictions(tmp_path / "p.parquet", {"step": 7}, [part])
    frame, facts = read_predictions(tmp_path / "p.parquet", 3, "out")
    assert list(frame["predicted"]) == [1, 0, 1]
    assert facts == {"step": 7}
    assert len(read_predictions(tmp_path / "p.parquet", 3, "in")[0]) == 0


@pytest.mark.parametrize("content", [b"", b"PAR1 no", b"x" * 1000])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.parquet .*holds no predictions \(ArrowInvalid"):
        read_predictions(tmp_path / "p.parquet")


def test_no_flip_gives_other_predictions(tmp_path: Path) -> None:
    file, random = tmp_path / "p.parquet", np.random.RandomState(0)
    parts = [
        Predicted(
            d, s, [f"{i}.png" for i in range(9)], random.randint(3, size=9), random.rand(9, 3)
        )
        for d in range(2)
        for s in ("in", "out")
    ]
    write_predictions(file, {"step": 7, "classes": ["a", "b", "c"]}, parts)
    whole = file.read_bytes()
    for place in random.choice(len(whole), 60, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.randint(8)
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=r"p\.parquet is damaged"):
            read_predictions(file, 1, "in")
