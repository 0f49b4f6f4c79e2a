"""The contract of domains, for every way to store one."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from far_device import FAR, sent_far
from image_files import write_folder
from torch.utils.data import Dataset, TensorDataset

from domainbed.algorithms.base import concatenate
from domainbed.core.minibatch import tensors_of
from domainbed.core.seeding import seed_hash
from domainbed.datasets import (
    DATASETS,
    MultipleDomainDataset,
    TensorDomain,
    dataset_facts,
    domains_of,
    load_dataset,
)
from domainbed.datasets.base import ForeignDomain
from domainbed.datasets.domain import Domain, Draw, LoadedDomain, evaluation_draws
from domainbed.errors import UserError

CPU = torch.device("cpu")
KINDS = ("tensors", "files", "packed", "foreign")
READ = KINDS[1:]
N = 8


class Noisy(Dataset[Any]):
    """Eight numbers with noise from every global source; augmented ones are negative."""

    def __init__(self, labels: bool = True) -> None:
        if labels:
            self.targets = torch.arange(N) // 4

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return torch.tensor([10.0 * index + noise]), index // 4

    def augmented(self, index: int) -> tuple[torch.Tensor, int]:
        x, y = self[index]
        return -x, y


def image_dataset(folder: Path, **hparams: Any) -> Any:
    root = folder / "images"
    if not root.exists():
        write_folder(root, sizes=((40, 50), (60, 44)))
    return load_dataset(f"folder:{root}", "", [0], hparams, 0)


@pytest.fixture
def domain(request: pytest.FixtureRequest, tmp_path: Path) -> Domain:
    """Eight images, four of each of two classes in turn."""
    if request.param == "tensors":
        x = torch.arange(N * 50.0).reshape(N, 2, 5, 5)
        return domains_of([TensorDataset(x, torch.arange(N) // 4)])[0]
    if request.param == "foreign":
        return domains_of([Noisy()])[0]
    path = "fast" if request.param == "packed" else "exact"
    return domains_of(image_dataset(tmp_path, data_path=path))[1]


all_kinds = pytest.mark.parametrize("domain", KINDS, indirect=True)
all_that_are_read = pytest.mark.parametrize("domain", READ, indirect=True)


def draws(augment: bool = True, **changes: Any) -> list[Draw]:
    """Of two steps."""
    fields = {"seed": 7, "domain": 1, "augment": augment, **changes}
    indices = (torch.tensor([3, 0, 3]), torch.tensor([7, 3]))
    return [Draw(chosen, step=step, **fields) for step, chosen in enumerate(indices)]


def assert_same(first: Any, second: Any) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (x, y), (other_x, other_y) in zip(first, second):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@all_kinds
def test_length_and_labels(domain: Domain) -> None:
    assert len(domain) == N
    assert domain.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (domain.labels.dtype, domain.labels.device) == (torch.int64, CPU)
    assert (list(domain.unreadable), domain.out_split) == ([], None)


@all_kinds
def test_batches_hold_what_is_drawn_in_that_order(domain: Domain) -> None:
    first, second = domain.batches(draws(augment=False))
    assert first[1].tolist() == [0, 0, 0]
    assert second[1].tolist() == [1, 0]
    assert second[1].dtype == torch.int64
    assert (len(first[0]), len(second[0])) == (3, 2)
    singles = [next(domain.batches([Draw(torch.tensor([i]))]))[0][0] for i in (7, 3)]
    if not isinstance(domain, ForeignDomain):  # whose noise depends on the place as well
        assert torch.equal(second[0], torch.stack(singles))


@all_kinds
@pytest.mark.parametrize("augment", [False, True])
def test_workers_change_nothing(domain: Domain, augment: bool) -> None:
    alone = list(domain.batches(draws(augment)))
    assert_same(domain.batches(draws(augment)), alone)
    assert_same(domain.batches(draws(augment), workers=2), alone)


class Groups(LoadedDomain):
    """Images whose label is the group of the process that reads them."""

    labels = torch.zeros(N)

    def __len__(self) -> int:
        return N

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), os.getpgrp()


def test_signals_to_the_group_of_a_run_do_not_reach_its_readers() -> None:
    (_, alone), _ = Groups().batches(draws(False))
    (_, groups), _ = Groups().batches(draws(False), workers=1)
    assert set(alone.tolist()) == {os.getpgrp()}
    assert os.getpgrp() not in groups.tolist()


@all_kinds
def test_batches_do_not_depend_on_those_before(domain: Domain) -> None:
    assert_same(domain.batches(draws()[1:]), list(domain.batches(draws()))[1:])


@all_that_are_read
def test_what_is_random_depends_on_run_domain_step_and_place(domain: Domain) -> None:
    ((first, _), (second, _)) = domain.batches(draws())
    assert not torch.equal(first[0], first[2])  # one image twice
    assert not torch.equal(first[2], second[1])
    for change in ({"seed": 8}, {"domain": 2}):
        assert not torch.equal(next(domain.batches(draws(**change)))[0], first)
    assert not torch.equal(next(domain.batches(draws(augment=False)))[0], first)


@all_kinds
def test_global_sources_are_left_alone(domain: Domain) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert len(list(domain.batches(draws()))) == 2
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@all_kinds
def test_to_a_device(domain: Domain) -> None:
    fixed = copy.copy(domain)
    fixed.out_split = [1, 2]
    moved = fixed.to(CPU)
    assert moved is not fixed
    assert type(moved) is type(domain)
    assert (moved.device, moved.out_split, domain.out_split) == (CPU, [1, 2], None)
    assert_same(moved.batches(draws()), domain.batches(draws()))


@all_kinds
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_to_a_gpu(domain: Domain) -> None:
    moved = domain.to(torch.device("cuda"))
    for augment in (False, True):
        pairs = zip(moved.batches(draws(augment), workers=2), domain.batches(draws(augment)))
        for (x, y), (expected, labels) in pairs:
            assert (x.device.type, y.device.type) == ("cuda", "cuda")
            assert torch.allclose(x.cpu(), expected, atol=0.02)
            assert torch.equal(y.cpu(), labels)
    assert moved.labels.device == CPU


@all_kinds
@pytest.mark.parametrize("augment", [False, True])
def test_nothing_waits_for_what_is_sent_to_a_gpu(domain: Domain, augment: bool) -> None:
    far = domain.to(FAR)
    with sent_far() as sent:
        batches = list(far.batches(draws(augment)))
    assert {t.device for pair in batches for t in pair} == {FAR}
    assert [len(y) for _, y in batches] == [3, 2]
    assert sent.waited == []


@all_kinds
def test_evaluation_batches(domain: Domain) -> None:
    indices = [5, 0, 7, 1, 2]
    batches = list(domain.evaluation_batches(indices, batch_size=2))
    assert [len(y) for _, y in batches] == [2, 2, 1]
    assert torch.cat([y for _, y in batches]).tolist() == [1, 0, 1, 0, 0]
    whole = list(domain.evaluation_batches(indices, workers=1))
    assert_same(whole, [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))])
    assert len(whole[0][0]) == 5


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_evaluation_draws_hold_every_image_once(n: int) -> None:
    indices = list(range(n))[::-1]
    drawn = list(evaluation_draws(indices, split="out", seed=1, domain=2, step=3, augment=True))
    assert torch.cat([draw.indices for draw in drawn]).tolist() == indices
    assert [len(draw.indices) for draw in drawn[:-1]] == [64] * ((n - 1) // 64)
    assert [draw.use for draw in drawn] == [f"out {i}" for i in range(0, n, 64)]


def test_seeds_of_draws() -> None:
    trained = Draw(torch.tensor([4, 9]), seed=1, domain=2, step=3)
    assert trained.image_seeds() == [seed_hash(1, "augmentation", 2, 3, place) for place in (0, 1)]
    assert trained.batch_seed() == seed_hash(1, "augmentation", 2, 3, "training")
    (evaluated,) = evaluation_draws([4, 9], split="in", seed=1, domain=2, step=3)
    assert evaluated.image_seeds() == [
        seed_hash(1, "augmentation", 2, 3, index) for index in (4, 9)
    ]
    assert evaluated.batch_seed() == seed_hash(1, "augmentation", 2, 3, "in 0")


def test_tensors_stay_channels_last(tmp_path: Path) -> None:
    data = TensorDataset(torch.rand(3, 2, 4, 4), torch.tensor([0, 1, 0]))
    domain = domains_of([data])[0].to(CPU)
    x, _ = next(domain.batches([Draw(torch.tensor([2, 0]))]))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, data.tensors[0][[2, 0]])


def test_foreign_labels_are_read_where_they_are_not_listed() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert domains_of([Noisy(labels=False)])[0].labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_foreign_images_without_augmentation_are_read_plainly() -> None:
    pairs = [(torch.tensor([float(i)]), i) for i in range(3)]
    x, y = next(domains_of([pairs])[0].batches([Draw(torch.tensor([2, 1]), augment=True)]))
    assert (x.flatten().tolist(), y.tolist()) == ([2, 1], [2, 1])


class Fixed(MultipleDomainDataset):
    def __init__(self, out_splits: Any) -> None:
        self.datasets = [Noisy(), TensorDataset(torch.zeros(N, 1), torch.zeros(N))]
        self.out_splits = out_splits


def test_a_datasets_out_splits_reach_its_domains() -> None:
    assert [domain.out_split for domain in domains_of(Fixed([[1], [2, 3]]))] == [[1], [2, 3]]
    assert [domain.out_split for domain in domains_of(Fixed(None))] == [None, None]


def test_domains_are_not_wrapped_again_and_those_of_a_shared_dataset_are_not_changed(
    tmp_path: Path,
) -> None:
    dataset = image_dataset(tmp_path)
    assert domains_of(dataset)[0].files is dataset[0].files
    dataset.out_splits = [[0], [1], [2]]
    assert [domain.out_split for domain in domains_of(dataset)] == [[0], [1], [2]]
    assert dataset[0].out_split is None


@pytest.mark.parametrize("path", ["exact", "fast"])
def test_unreadable_images_are_known(path: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    (tmp_path / "images" / "b" / "dog" / "1.png").write_bytes(b"no image")
    dataset = image_dataset(tmp_path, data_path=path, corrupt_images="skip")
    assert [list(domain.unreadable) for domain in domains_of(dataset)] == [[], [5], []]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(workers: int, tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    (tmp_path / "images" / "b" / "dog" / "1.png").write_bytes(b"no image")
    domain = domains_of(image_dataset(tmp_path))[1]
    with pytest.raises(UserError, match=r"b/dog/1.png cannot be read") as error:
        list(domain.evaluation_batches([4, 5], workers=workers))
    assert "\n" not in str(error.value)


def test_facts_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        """As DomainBed's are: it does not say what its images are like."""

    monkeypatch.setitem(DATASETS._entries, "Bare", Bare)
    for name, label, small in (
        ("ColoredMNIST", "ColoredMNIST", True),
        ("PACS", "PACS", False),
        ("Bare", "Bare", False),
        ("folder:/some/where", "where", False),
        ("unknown", "unknown", False),
    ):
        facts = dataset_facts(name)
        assert (facts.name, facts.small_images) == (label, small)


def of_nests() -> list[Domain]:
    """The same four samples of dicts with extras, in memory and read one at a time."""
    tokens, y = torch.arange(12).view(4, 3), torch.tensor([0, 1, 1, 0])
    x = {"tokens": tokens, "pair": (tokens.float(), tokens > 5)}
    extras = {"weight": torch.tensor([0.5, 1.0, 1.5, 2.0]), "author": ["a", "b", "c", "d"]}
    read = [
        (
            {"tokens": tokens[i], "pair": (tokens[i].float(), tokens[i] > 5)},
            int(y[i]),
            {"weight": extras["weight"][i].item(), "author": extras["author"][i]},
        )
        for i in range(4)
    ]
    return [TensorDomain(x, y, extras), *domains_of([read])]


@pytest.mark.parametrize("workers", [0, 1])
def test_nests_with_extras(workers: int) -> None:
    drawn = [Draw(torch.tensor([3, 1]), domain=5), Draw(torch.tensor([2]), domain=5)]
    for domain in of_nests():
        first, second = domain.to(CPU).minibatches(drawn, workers)
        x, y = first
        assert (x["tokens"].tolist(), y.tolist()) == ([[9, 10, 11], [3, 4, 5]], [0, 1])
        assert x["pair"][1].tolist() == [[True] * 3, [False] * 3]
        assert (first.index.tolist(), first.domain, second.index.tolist()) == ([3, 1], 5, [2])
        assert first.extras["weight"].tolist() == [2.0, 1.0]
        assert (list(first.extras["author"]), list(second.extras["author"])) == (["d", "b"], ["c"])
        (whole,) = domain.evaluation_batches(range(4))
        assert (len(whole[1]), whole.domain, whole.index.tolist()) == (4, None, [0, 1, 2, 3])


def test_nothing_waits_for_nests_that_are_sent_to_a_gpu() -> None:
    for domain in of_nests():
        far = domain.to(FAR)
        with sent_far() as sent:
            (batch,) = far.minibatches([Draw(torch.tensor([3, 1]))])
        assert {each.device for each in tensors_of([*batch, batch.extras])} == {FAR}
        assert (batch.extras["author"], batch.index.device) == (["d", "b"], CPU)
        assert sent.waited == []


def test_a_collate_and_a_join_of_the_dataset() -> None:
    class Lists(MultipleDomainDataset):
        def __init__(self) -> None:
            words = [torch.tensor([7]), torch.tensor([7, 8]), torch.tensor([7, 8, 9])]
            self.datasets = [[(x, 0) for x in words[:2]], [(x, 1) for x in words]]

        def collate(self, samples: Any) -> Any:
            tokens = [x for x, _ in samples]
            padded = torch.nn.utils.rnn.pad_sequence(tokens, True, padding_value=self.padding)
            return padded, torch.tensor([y for _, y in samples])

        def join(self, nests: Any) -> Any:
            longest = max(x.shape[1] for x in nests)
            pads = [torch.full((len(x), longest - x.shape[1]), self.padding) for x in nests]
            return torch.cat([torch.cat(pair, dim=1) for pair in zip(nests, pads)])

        padding = -1

    domains = domains_of(Lists())
    batches = [next(domain.minibatches([Draw(torch.arange(2))])) for domain in domains]
    assert [x.tolist() for x, _ in batches] == [[[7, -1], [7, 8]]] * 2
    batches[1] = next(domains[1].minibatches([Draw(torch.tensor([2]))], workers=1))
    assert concatenate(batches)[0].tolist() == [[7, -1, -1], [7, 8, -1], [7, 8, 9]]
