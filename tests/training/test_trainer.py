"""One run: its records, its files, and its options."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from domainbed.algorithms import ALGORITHMS, ERM, get_algorithm_class
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.datasets import DATASETS, MultipleDomainDataset, domains_of, load_dataset
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import Busy
from domainbed.spec import RunSpec
from domainbed.training import build
from domainbed.training.sampling import split_domains
from domainbed.training.trainer import RunOptions, run

ARGS = {
    *("algorithm", "dataset", "test_envs", "hparams_seed", "trial_seed", "seed", "steps"),
    *("checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task", "hparams"),
    *("data_dir", "output_dir", "skip_model_save", "save_model_every_checkpoint"),
}


def digits(**changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "algorithm": "ERM",
        "test_envs": [1],
        "steps": 5,
        "checkpoint_freq": 2,
        "hparams": {"batch_size": 8},
        **changes,
    }
    return RunSpec.create("ColoredDigits", **fields)


def train(spec: RunSpec, path: Path, **options: Any) -> list[dict[str, Any]]:
    given = {name: options.pop(name) for name in ("on_step", "echo") if name in options}
    run(spec, RunFolder(path), RunOptions(**options), **given)
    return [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]


def accuracy_keys(record: dict[str, Any]) -> set[str]:
    return {name for name in record if name.endswith("_acc")}


def test_records_have_the_published_keys(tmp_path: Path) -> None:
    records = train(digits(), tmp_path)
    assert [r["step"] for r in records] == [0, 2, 4]
    needed = {f"env{i}_out_acc" for i in range(3)} | {"env1_in_acc"}
    assert [accuracy_keys(r) for r in records[:-1]] == [needed, needed]
    assert accuracy_keys(records[-1]) == needed | {"env0_in_acc", "env2_in_acc"}
    for record in records:
        assert {"step", "epoch", "step_time", "mem_gb", "loss", "hparams", "args"} <= set(record)
        assert set(record["args"]) >= ARGS
        # 599 images, 119 held out, 8 per minibatch
        assert record["epoch"] == pytest.approx(record["step"] / (480 / 8))
    args = records[0]["args"]
    assert (args["dataset"], args["test_envs"], args["steps"]) == ("ColoredDigits", [1], 5)
    assert json.loads(args["hparams"]) == {"batch_size": 8}
    assert args["seed"] == digits().seed


def test_eval_splits_all_evaluates_everything_and_changes_nothing(tmp_path: Path) -> None:
    needed = train(digits(), tmp_path / "needed")
    everything = train(digits(eval_splits="all"), tmp_path / "all")
    for few, many in zip(needed, everything):
        assert accuracy_keys(many) == {f"env{i}_{k}_acc" for i in range(3) for k in ("in", "out")}
        assert {k: many[k] for k in accuracy_keys(few)} == {k: few[k] for k in accuracy_keys(few)}


def test_the_same_seed_gives_the_same_records_and_another_does_not(tmp_path: Path) -> None:
    losses = [
        [r["loss"] for r in train(digits(seed=seed), tmp_path / name)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_loss_is_the_mean_since_the_last_record(tmp_path: Path) -> None:
    every = [r["loss"] for r in train(digits(checkpoint_freq=1), tmp_path / "every")]
    second = [r["loss"] for r in train(digits(), tmp_path / "second")]
    assert second == pytest.approx([every[0], np.mean(every[1:3]), np.mean(every[3:5])])


def test_accuracies_are_those_of_the_saved_model(tmp_path: Path) -> None:
    spec = digits(algorithm="Fishr", test_envs=[2], steps=30)
    last = train(spec, tmp_path)[-1]
    saved = torch.load(tmp_path / "model.pkl", weights_only=True)
    algorithm = get_algorithm_class("Fishr")(
        saved["model_input_shape"],
        saved["model_num_classes"],
        saved["model_num_domains"],
        saved["model_hparams"],
    )
    algorithm.load_state_dict(saved["model_dict"])
    algorithm.eval()
    dataset = load_dataset("ColoredDigits", "", [2], {}, 0)
    splits = split_domains(domains_of(dataset), [2], 0.2, 0)
    for domain in range(3):
        for kind, indices in (("in", splits[domain].inside), ("out", splits[domain].out)):
            right = [
                int(algorithm.predict(x[None]).argmax()) == int(y)
                for x, y in (dataset[domain][i] for i in indices)
            ]
            assert last[f"env{domain}_{kind}_acc"] == pytest.approx(np.mean(right), abs=2e-3)


def test_files_of_a_finished_run(tmp_path: Path) -> None:
    train(digits(), tmp_path, save_model_every_checkpoint=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.jsonl", "done", "out.txt", "environment.json", "run.json"} <= names
    assert {"model.pkl", "model_step0.pkl", "model_step2.pkl", "model_step4.pkl"} <= names
    assert "checkpoint.pt" not in names
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.split("+")[0]
    assert environment["seconds"] > 0
    assert environment["protocol_version"] == 1
    assert "env1_in" in (tmp_path / "out.txt").read_text()


def test_skip_model_save(tmp_path: Path) -> None:
    train(digits(), tmp_path, skip_model_save=True)
    assert not (tmp_path / "model.pkl").exists()


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    train(digits(), tmp_path)
    with pytest.raises(UserError, match=r"holds another run \(algorithm is 'ERM' there and 'IRM'"):
        train(digits(algorithm="IRM"), tmp_path)


def test_a_run_that_failed_at_its_start_leaves_the_folder_free(tmp_path: Path) -> None:
    missing = RunSpec.create("PACS", "ERM", [0])
    with pytest.raises(UserError, match="no such folder"):
        train(missing, tmp_path, data_dir=str(tmp_path / "nowhere"))
    assert len(train(digits(), tmp_path)) == 3


def test_results_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="choose another --output_dir"):
        train(digits(), tmp_path)


def test_a_folder_at_work_is_busy(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.exclusive(), pytest.raises(Busy):
        train(digits(), tmp_path)
    assert folder.state() == "missing"


def test_domain_adaptation_hands_over_unlabeled_images(tmp_path: Path) -> None:
    spec = digits(task="domain_adaptation", uda_holdout_fraction=0.5)
    record = train(spec, tmp_path)[0]
    assert "env1_uda_acc" in record


def test_unlabeled_minibatches_reach_the_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erm, seen = get_algorithm_class("ERM"), []
    update = erm.update

    def spy(self: Any, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        seen.append([tuple(x.shape) for x in unlabeled])
        return update(self, minibatches, unlabeled)

    monkeypatch.setattr(erm, "update", spy)
    train(digits(task="domain_adaptation", uda_holdout_fraction=0.5), tmp_path)
    assert seen == [[(8, 2, 8, 8)]] * 5


def test_unlabeled_images_are_those_of_the_test_domains_uda_split() -> None:
    """And not of its in-split, which measures."""
    experiment = build(digits(task="domain_adaptation", uda_holdout_fraction=0.3))
    split, domain = experiment.splits[1], experiment.domains[1]
    assert not set(split.unlabeled) & {*split.inside, *split.out}
    rows = {
        name: {x.numpy().tobytes() for batch, _ in domain.evaluation_batches(part) for x in batch}
        for name, part in (("uda", split.unlabeled), ("in", split.inside))
    }
    seen = {x.numpy().tobytes() for (batch,) in experiment.unlabeled(range(20)) for x in batch}
    assert len(seen) > 50
    assert seen <= rows["uda"]
    assert len(seen & rows["in"]) < 5  # of images that are equal


def test_bf16_trains_and_is_another_run(tmp_path: Path) -> None:
    half, full = digits(precision="bf16", algorithm="Fishr"), digits(algorithm="Fishr")
    assert half.run_id != full.run_id
    losses = [r["loss"] for r in train(half, tmp_path / "half")]
    reference = [r["loss"] for r in train(full, tmp_path / "full")]
    assert losses != reference
    assert losses == pytest.approx(reference, rel=0.1)


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    train(digits(), tmp_path)
    (tmp_path / "done").unlink()
    (tmp_path / "checkpoint.pt.999-0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_text("a user's own file")
    train(digits(), tmp_path)
    assert [file.name for file in tmp_path.glob("*.tmp")] == ["mine.tmp"]


def test_a_folder_of_the_users_own_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty, and no run's"):
        train(digits(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


class Diverging(ERM):
    """Its loss is NaN from the third update on."""

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        metrics = super().update(minibatches, unlabeled)
        self.updates = getattr(self, "updates", 0) + 1
        return metrics if self.updates < 3 else {"loss": float("nan")}


class Returning(ERM):
    """Returns what it should not."""

    what: Any = None

    def update(self, minibatches: Any, unlabeled: Any = None) -> Any:
        return self.what


def test_divergence_ends_the_run_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Diverging", Diverging)
    with pytest.raises(UserError, match="training diverged at step 2: loss is nan"):
        train(digits(algorithm="Diverging"), tmp_path)
    assert not (tmp_path / "done").exists()


def test_divergence_may_go_on_and_records_stay_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Diverging", Diverging)
    spec = digits(algorithm="Diverging", on_divergence="continue")
    records = train(spec, tmp_path)
    assert [r.get("diverged") for r in records] == [None, True, True]
    assert [r["loss"] is None for r in records] == [False, True, True]
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()


@pytest.mark.parametrize("kill", [4, 5])
def test_a_resumed_run_has_not_forgotten_that_it_diverged(
    kill: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and long before the kill: after a checkpoint, and after a stop between two."""

    class DivergingOnce(Diverging):
        def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
            metrics = super().update(minibatches, unlabeled)
            return metrics if self.updates == 3 else {"loss": 1.0}

    monkeypatch.setitem(ALGORITHMS._entries, "DivergingOnce", DivergingOnce)
    spec = digits(algorithm="DivergingOnce", on_divergence="continue", steps=9)

    def stop(taken: int) -> None:
        if taken == kill:
            request_stop()

    with stopping_on([]), pytest.raises(Interrupted):
        train(spec, tmp_path, on_step=stop)
    records = train(spec, tmp_path)
    assert [r["step"] for r in records] == [0, 2, 4, 6, 8]
    assert [r.get("diverged") for r in records] == [None, True, True, True, True]


def test_a_huge_learning_rate_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training diverged at step"):
        train(digits(steps=50, hparams={"batch_size": 8, "lr": 1e30}), tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (None, "returned None: it must return a dict"),
        ("text", "returned 'text': it must return a dict"),
        ({"loss": torch.ones(3)}, "returned 'loss' as Tensor: it must be one number"),
        ({"loss": "low"}, "returned 'loss' as str: it must be one number"),
        ({"step": 1.0}, "a metric 'step', which is a key of the record's own"),
        ({"env0_in_acc": 1.0}, "a metric 'env0_in_acc', which is a key"),
    ],
    ids=str,
)
def test_what_an_update_must_not_return(
    what: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Returning", Returning)
    monkeypatch.setattr(Returning, "what", what)
    with pytest.raises(UserError, match=message):
        train(digits(algorithm="Returning"), tmp_path)


def test_hooks_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hooked(ERM):
        def on_start(self) -> None:
            called.append("start")

        def on_record(self, metrics: dict[str, float]) -> None:
            called.append(f"record {metrics['step']}")

        def on_end(self) -> None:
            called.append("end")

    called: list[str] = []
    monkeypatch.setitem(ALGORITHMS._entries, "Hooked", Hooked)
    train(digits(algorithm="Hooked"), tmp_path)
    assert called == ["start", "record 0", "record 2", "record 4", "end"]


def test_a_run_is_set_up_as_every_other(tmp_path: Path) -> None:
    """What an earlier run's code changed in the process does not reach the next one."""
    first = train(digits(), tmp_path / "first")
    torch.set_flush_denormal(True)
    torch.set_default_dtype(torch.float64)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    second = train(digits(), tmp_path / "second")
    assert torch.get_default_dtype() == torch.float32
    assert [r["loss"] for r in first] == [r["loss"] for r in second]


def test_records_without_a_checkpoint_are_kept_aside(tmp_path: Path) -> None:
    first = train(digits(), tmp_path)
    (tmp_path / "done").unlink()
    assert len(train(digits(), tmp_path)) == 3
    kept = (tmp_path / "results.before.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in kept] == [r["loss"] for r in first]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(digits(), tmp_path)
    (tmp_path / "done").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        train(digits(), tmp_path)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_an_output_dir_that_cannot_be(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        train(digits(), tmp_path / path)


class NoisyVectors(MultipleDomainDataset):
    """Vectors with noise from NumPy's global source, as others' datasets have it."""

    ENVIRONMENTS = ("a", "b", "c")
    small_images = True

    class Domain(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            noise = np.random.normal(size=6) + random.random()
            return torch.as_tensor(noise + index % 2, dtype=torch.float32), index % 2

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        self.input_shape, self.num_classes = (6,), 2
        self.datasets = [self.Domain() for _ in self.ENVIRONMENTS]


def test_vectors_and_noise_of_other_sources_do_not_depend_on_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS._entries, "NoisyVectors", NoisyVectors)
    spec = RunSpec.create(
        "NoisyVectors", "ERM", [0], steps=3, checkpoint_freq=1, hparams={"batch_size": 4}
    )
    alone = train(spec, tmp_path / "alone", num_workers=0)
    helped = train(spec, tmp_path / "helped", num_workers=2)
    assert [r["loss"] for r in alone] == [r["loss"] for r in helped]


@pytest.fixture
def image_folder(tmp_path: Path) -> str:
    """Three domains with two classes of four noisy images each; red ones and blue ones."""
    source = np.random.default_rng(0)
    for domain in "abc":
        for label, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "images" / domain / label
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = source.integers(0, 80, (40, 50, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"folder:{tmp_path / 'images'}"


def folder_spec(dataset: str, **changes: Any) -> RunSpec:
    hparams = {"batch_size": 2, "resnet18": True, "weights": "none"}
    return RunSpec.create(
        dataset, "ERM", [0], steps=2, checkpoint_freq=1, hparams=hparams,
        holdout_fraction=0.5, **changes,
    )  # fmt: skip


def test_a_plain_folder_trains_with_any_number_of_workers(
    image_folder: str, tmp_path: Path
) -> None:
    spec = folder_spec(image_folder)
    alone = train(spec, tmp_path / "alone", num_workers=0)
    helped = train(spec, tmp_path / "helped", num_workers=2)
    assert [r["loss"] for r in alone] == [r["loss"] for r in helped]
    assert alone[-1]["args"]["dataset"] == "images"
    assert alone[-1]["args"]["environments"] == ["a", "b", "c"]
    assert {"env0_in_acc", "env2_out_acc"} <= set(alone[-1])


def test_image_run_resumes_exactly(image_folder: str, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 1:
            raise Killed

    spec = folder_spec(image_folder, augment_validation=True)
    whole = train(spec, tmp_path / "whole", num_workers=0)
    with pytest.raises(Killed):
        train(spec, tmp_path / "pieces", num_workers=0, on_step=kill)
    pieces = train(spec, tmp_path / "pieces", num_workers=1)
    assert [r["loss"] for r in whole] == [r["loss"] for r in pieces]
    assert [r["env1_out_acc"] for r in whole] == [r["env1_out_acc"] for r in pieces]


def a_few_of_each_class(pacs: Path, target: Path) -> Path:
    """A folder with links to five images of every class and domain."""
    for folder in pacs.glob("*/*"):
        here = target / "PACS" / folder.relative_to(pacs)
        here.mkdir(parents=True)
        for image in sorted(folder.iterdir())[:5]:
            (here / image.name).symlink_to(image.resolve())
    return target


def test_pacs_runs_with_the_published_preprocessing(pacs_dir: Path, tmp_path: Path) -> None:
    data = a_few_of_each_class(pacs_dir / "PACS", tmp_path / "data")
    spec = RunSpec.create(
        "PACS",
        "Fishr",
        [3],
        steps=2,
        checkpoint_freq=2,
        hparams={"batch_size": 4, "resnet18": True, "weights": "none", "penalty_anneal_iters": 0},
    )
    last = train(spec, tmp_path / "run", data_dir=str(data))[-1]
    assert np.isfinite(last["loss"])
    assert last["penalty"] > 0
    assert 0 <= last["env3_in_acc"] <= 1


def test_what_a_runs_own_code_changes_of_the_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Greedy(ERM):
        def on_start(self) -> None:
            torch.set_num_threads(3)
            torch.set_flush_denormal(True)

    monkeypatch.setitem(ALGORITHMS._entries, "Greedy", Greedy)
    usual = torch.get_num_threads()
    try:
        train(digits(algorithm="Greedy"), tmp_path)
    finally:
        torch.set_flush_denormal(False)
    assert "run changed the number of threads, the flushing of denormal numbers" in caplog.text
    assert torch.get_num_threads() == usual


def test_records_are_on_disk_before_the_run_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, done, synced = tmp_path / "results.jsonl", tmp_path / "done", []

    def fsync(descriptor: int) -> None:
        if results.exists() and os.fstat(descriptor).st_ino == results.stat().st_ino:
            synced.append((len(results.read_text().splitlines()), done.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    train(digits(), tmp_path)
    assert synced == [(1, False), (2, False), (3, False)]
