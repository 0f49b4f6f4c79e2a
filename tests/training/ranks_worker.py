"""What `test_ranks.py` starts under `torchrun`: `ranks_worker.py OUT WHAT…`.

WHAT is "runs", "fails", "all", or names of `CASES`. Of each case it writes the largest difference
between shared updates and those of one process, relative to the largest number, and how many rows
of a batch this process sent through the featurizer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import build, random_minibatches, switching_at
from torch import nn

from domainbed import networks
from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import predictor_of
from domainbed.algorithms.selfreg import SelfReg
from domainbed.config.run_fields import RunOptions
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.datasets.domain import Draw, LoadedDomain
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import checkpoint, ranks
from domainbed.training.evaluation import Evaluator, Value
from domainbed.training.ranks import align, joined
from domainbed.training.shared_passes import share_passes, share_reading
from domainbed.training.trainer import run

SIZES, UPDATES = (5, 4, 6), 3
SMALL = {"shape": (2, 8, 8)}
VECTORS = {"shape": (6,), "mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.5}
OPTIONS = RunOptions(keep="all", save_predictions=True, device="cpu")
SELECTED = RunOptions(keep="selected", device="cpu")
IMAGES = {"shape": (3, 32, 32), "weights": "none", "resnet18": False, "resnet_dropout": 0.5}


def spec_of(algorithm: str = "DANN", **fields: Any) -> RunSpec:
    hparams = {"batch_size": 9, "mlp_dropout": 0.5, "mlp_width": 8, "grad_penalty": 0.1}
    hparams |= {"gradient_clip": 0.1, "lr_schedule": "cosine"} if algorithm == "DANN" else {}
    metrics = ("accuracy", "auroc", "brier")
    usual = {"steps": 8, "checkpoint_freq": 3, "averages": ("ema",), "metrics": metrics}
    fields = {**usual, "hparams": hparams, **fields}
    return RunSpec.create("ColoredDigits", algorithm, [2], **fields)


def batch_norm_spec() -> RunSpec:
    """Of an algorithm whose batch norm trains beside its featurizer.

    Adam moves a weight by up to the learning rate whatever the size of its gradient: at the default
    rate, rounding alone changes which of the few images are recognized, and does so differently on
    different processors.
    """
    return spec_of(algorithm="SelfReg", hparams={"batch_size": 9, "lr": 5e-5})


VARIANTS: dict[str, dict[str, Any]] = {
    "MLDG, second derivatives": {"algorithm": "MLDG", "fidelity": "paper"},
    "ARM, trained context": {"algorithm": "ARM", "fidelity": "paper"},
    "MTL, means": {"algorithm": "MTL", "fidelity": "paper"},
    "DANN, gradient penalty": {"algorithm": "DANN", "grad_penalty": 1.0, "mlp_dropout": 0.5},
    "Fishr, all parameters": {"algorithm": "Fishr", "fishr_parameters": "all"},
    "IRM, vectors and dropout": {"algorithm": "IRM", **VECTORS},
    "IGA, vectors and dropout": {"algorithm": "IGA", **VECTORS},
    "ERM, nests": {"algorithm": "ERM", "featurizer": "Tokens"},
    "ERM, dropout and stochastic depth": {
        **{"algorithm": "ERM", "backbone": "efficientnet_b0"},
        **IMAGES,
    },
}


@networks.NETWORKS.register
class Tokens(networks.Featurizer):
    """Of a nest: the sum over the tokens that are no padding."""

    n_outputs = 6

    def __init__(self, described: Any, hparams: Any) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(20, self.n_outputs), nn.Dropout(0.5)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        z = self.dropout(self.embedding(x["tokens"]))
        return (z * x["mask"].unsqueeze(2)).sum(dim=1)


def as_tokens(pairs: Any) -> Any:
    """The same samples as sequences, which are longer from domain to domain."""
    rows = [
        (x.flatten(1)[:, : 3 + e].abs().mul(10).long() % 20, y) for e, (x, y) in enumerate(pairs)
    ]
    return [({"tokens": tokens, "mask": tokens > 0}, y) for tokens, y in rows]


CASES = {
    **{
        name: {"algorithm": name}
        for name, cls in ALGORITHMS.items()
        if not cls.needs_features and not cls.whole_batch_inside
    },
    **VARIANTS,
}


def trained(options: dict[str, Any], is_shared: bool) -> tuple[dict[str, torch.Tensor], int]:
    """What some updates lead to, and the rows that the featurizer's first layer saw at the last."""
    options = {**SMALL, **options}
    name, shape = options.pop("algorithm"), options["shape"]
    options = {**switching_at(1, name), **options}
    algorithm = build(name, len(SIZES), dtype=torch.float64, **options).train()
    if is_shared:
        share_passes(algorithm)
    rows = [0]
    parameters = [m for m in algorithm.featurizer.modules() if list(m.parameters(recurse=False))]
    if name == "ERM":  # others ask whether there are hooks
        parameters[0].register_forward_hook(lambda m, x, z: rows.append(len(z)))
    torch.manual_seed(7)
    found: dict[str, torch.Tensor] = {}
    for update in range(UPDATES):
        pairs = random_minibatches(SIZES, update, shape, dtype=torch.float64)
        pairs = as_tokens(pairs) if options.get("featurizer") == "Tokens" else pairs
        metrics = algorithm.update(pairs)
        found |= {f"{key} {update}": torch.as_tensor(value) for key, value in metrics.items()}
    seen = rows[-1]
    found |= {key: value.clone() for key, value in algorithm.state_dict().items()}
    algorithm.eval()
    with torch.no_grad():
        found["prediction"] = predictor_of(algorithm)(pairs[0][0])
    return found, seen


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    parts = [
        (first[key] - second[key]).abs().max() / first[key].abs().max().clamp(min=1)
        for key in first
        if first[key].is_floating_point()
    ]
    return float(torch.stack([part.double() for part in parts]).max())


def compared(name: str) -> dict[str, float]:
    began = time.monotonic()
    alone, _ = trained(CASES[name], False)
    shared, rows = trained(CASES[name], True)
    seconds = time.monotonic() - began
    return {"difference": difference(alone, shared), "rows": rows, "seconds": seconds}


def refused(work: Callable[[], None]) -> str:
    """What this process says of it; "" where it leaves that to another."""
    try:
        work()
    except UserError as error:
        return str(error)
    except SystemExit:
        return ""
    raise AssertionError("it was not refused")


class Labelled(LoadedDomain):
    """Images with noise that their seeds decide; counts how many are read."""

    reads = 0
    labels = torch.arange(20)

    def __len__(self) -> int:
        return 20

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, int]:
        Labelled.reads += 1
        return index + torch.randn(3, 2, 2), index


DRAWS = [
    Draw(torch.tensor(indices), seed=3, step=step)
    for step, indices in enumerate([[4, 1, 1, 9, 2], [7], [8, 3]])
]


def recorded_of(out: Path) -> list[dict[str, Any]]:
    """What an algorithm is told at records, where the second process measures something else."""
    told: list[dict[str, Any]] = []
    evaluate = Evaluator.evaluate

    def differs(self: Evaluator, *arguments: Any) -> list[Value]:
        return [v._replace(value=v.value + ranks._number) for v in evaluate(self, *arguments)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Evaluator, "evaluate", differs)
        patched.setattr(SelfReg, "on_record", lambda self, record: told.append(dict(record)))
        run(batch_norm_spec(), out, SELECTED)
    return told


def next_step_when_stopped(out: Path) -> int:
    """That of the checkpoint, which the first process takes its time to write."""
    save = checkpoint.save

    def slowly(*arguments: Any) -> None:
        time.sleep(0.2)
        save(*arguments)

    def stops(taken: int) -> None:
        if taken == 5 and ranks._number == 1:  # the others are not asked
            request_stop()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "save", slowly)
        with stopping_on([]), pytest.raises(Interrupted):
            run(spec_of(), out, OPTIONS, on_step=stops)
    return int(checkpoint._read(RunFolder(out).checkpoint)["progress"]["next_step"])


def do_runs(out: Path) -> dict[str, Any]:
    """Two whole runs, one that was stopped, and some that are refused."""
    run(spec_of(), out / "whole", OPTIONS)
    recorded = recorded_of(out / "selected")
    stopped_at = next_step_when_stopped(out / "pieces")
    stopped = RunFolder(out / "pieces").state()
    run(spec_of(), out / "pieces", OPTIONS)
    run(spec_of(), out / "pieces", OPTIONS)  # is done
    hparams = {"backbone": "resnet18", "weights": "none", "freeze_bn": False}
    batch_norm = RunSpec.create("ColoredDigits", "ERM", [2], hparams=hparams)
    styles = RunSpec.create("ColoredDigits", "MixStyle+CORAL", [2])
    reading = Labelled()
    alone = list(reading.batches(DRAWS))
    parted = share_reading(reading.to(torch.device("cpu")))
    Labelled.reads = 0
    shared = list(parted.batches(DRAWS))
    network = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    nn.init.constant_(network.weight, ranks._number + 1)
    align(network)
    return {
        "read": [torch.equal(a, b) for a, b in zip(sum(alone, ()), sum(shared, ()), strict=True)],
        "reads": Labelled.reads,
        "weights": network.weight.tolist(),
        "recorded": recorded,
        "stopped": stopped,
        "stopped at": stopped_at,
        "another run": refused(lambda: run(spec_of(trial_seed=1), out / "whole", OPTIONS)),
        "batch norm": refused(lambda: run(batch_norm, out / "batch_norm", OPTIONS)),
        "styles": refused(lambda: run(styles, out / "styles", OPTIONS)),
    }


def fail(out: Path) -> dict[str, str]:
    """A run in which the second process alone comes upon an error."""

    def fails(taken: int) -> None:
        if taken == 2 and ranks._number == 1:
            raise UserError("no such image")

    return {"error": refused(lambda: run(spec_of(), out / "failed", OPTIONS, on_step=fails))}


def main() -> None:
    out, chosen = Path(sys.argv[1]), sys.argv[2:]
    chosen = list(CASES) if chosen == ["all"] else chosen
    with joined("cpu"):
        said = do_runs(out) if "runs" in chosen else {}
        said |= fail(out) if "fails" in chosen else {}
        found = {name: compared(name) for name in chosen if name in CASES}
        (out / f"{ranks._number}.json").write_text(
            json.dumps({"cases": found, "said": said}, indent=1)
        )


if __name__ == "__main__":
    main()
