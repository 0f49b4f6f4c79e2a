"""What a new run says of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, build, run
from domainbed.training.remarks import remarks

TINY = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "batch_size": 2}


def spec_of(dataset: Any, **fields: Any) -> RunSpec:
    return RunSpec.create(str(dataset), "ERM", [1], steps=1, hparams=TINY, **fields)


def images(root: Path, groups: int = 10) -> Path:
    """Two domains of two classes, 40 images each, and a table of them."""
    random, lines = np.random.RandomState(0), ["path,label,domain,patient"]
    for domain in "ab":
        for i in range(40):
            file = root / f"{domain}{i}.png"
            Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
            lines.append(f"{file.name},{'good' if i % 2 else 'bad'},{domain},{domain}{i % groups}")
    (root / "m.csv").write_text("\n".join(lines))
    return root / "m.csv"


def test_equal_files_in_two_splits_are_named_each_time(tmp_path: Path) -> None:
    table = images(tmp_path)
    split, other = build(spec_of(table)).splits
    assert remarks(build(spec_of(table), RunOptions(data_dir=str(tmp_path)))) == []
    names = [line.partition(",")[0] for line in table.read_text().splitlines()[1:]]
    # Class by class, and in the order of the names, as a domain has them.
    own = [
        sorted((n for n in names if n[0] == d), key=lambda n: (int(n[1:-4]) % 2, n)) for d in "ab"
    ]
    pairs = [(own[0][split.inside[0]], own[0][split.out[0]])]
    pairs += [(own[0][split.inside[1]], own[1][other.inside[0]])]
    for first, second in pairs:
        (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    for _ in range(2):
        found = remarks(build(spec_of(table), RunOptions(data_dir=str(tmp_path))))
        assert found == [
            f"warning: 1 sample of the training split is in the {use} split as well, such as "
            f"{tmp_path / first} and {tmp_path / second}"
            for use, (first, second) in zip(("validation", "test"), pairs)
        ]
    run(spec_of(table), tmp_path / "run", RunOptions(num_workers=0, data_dir=str(tmp_path)))
    assert set(found) <= set((tmp_path / "run" / "out.txt").read_text().splitlines())


def test_groups_in_several_domains_and_what_is_lacking(tmp_path: Path) -> None:
    table = images(tmp_path)
    text = table.read_text().replace("good,a,a1\n", "rare,a,b0\n", 1)
    table.write_text(text)
    columns = {"group": "patient"}
    options = RunOptions(data_dir=str(tmp_path))
    found = remarks(build(spec_of(table, columns=columns, missing_classes="allow"), options))
    assert any("1 group of the" in line and line.endswith("such as b0") for line in found)
    assert "warning: class rare has 1 sample, and the median class 39" in found
    assert "warning: domain b has no rare: there, means over classes are of the others" in found
    assert any(
        line.startswith("warning: the validation split of domain a has no rare") for line in found
    )


class Rows(MultipleDomainDataset):
    """Vectors, of which one of the first domain is there again in the last one."""

    ENVIRONMENTS = ("a", "b", "c")
    small_images = True

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        self.input_shape, self.num_classes = (3,), 2
        x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
        x[69] = x[0]
        y = torch.arange(70) % 2
        parts = (slice(0, 34), slice(34, 67), slice(67, 70))
        self.datasets = [TensorDataset(x[part], y[part]) for part in parts]


def test_equal_rows_and_small_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Rows", Rows)
    spec = RunSpec.create("Rows", "ERM", [2], steps=1, holdout_fraction=0.34)
    found = remarks(build(spec))
    assert "warning: domain c has 3 samples, and the median domain 33" in found
    assert any("1 sample of the" in line for line in found)
    assert any(line.endswith("such as 0 of a and 2 of c") for line in found)
