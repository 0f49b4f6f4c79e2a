"""Splits equal a naive shuffle of a Python list."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hparams_reference import naive_seed_hash

from domainbed.datasets.domain import TensorDomain
from domainbed.errors import UserError
from domainbed.training.sampling import Split, split_domains, split_indices, without_unreadable


def with_out(domain, positions):
    """The same samples, of which these validate."""
    fixed = copy.copy(domain)
    fixed.out_split = positions
    return fixed


def domains(*sizes):
    return [TensorDomain(torch.zeros(n, 1), torch.zeros(n)) for n in sizes]


def naive_split(n, fraction, seed):
    keys = list(range(n))
    np.random.RandomState(seed).shuffle(keys)
    cut = int(n * fraction)
    return keys[:cut], keys[cut:]


@pytest.mark.parametrize("n", [2, 5, 99, 1797, 23334])
@pytest.mark.parametrize("fraction", [0.2, 0.29, 0.5])
def test_split_indices(n, fraction):
    for seed in (0, 1981683110, 2**31 - 1):
        actual = split_indices(n, fraction, seed)
        assert actual == naive_split(n, fraction, seed)
        assert all(type(i) is int for part in actual for i in part[:3])


def test_known_split():
    assert split_indices(10, 0.2, 0) == ([2, 8], [4, 9, 1, 6, 7, 3, 0, 5])


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_domains(trial):
    sizes = [50, 37, 64]
    for domain, split in enumerate(split_domains(domains(*sizes), [1], 0.2, trial)):
        out, inside = naive_split(sizes[domain], 0.2, naive_seed_hash(trial, domain))
        assert (split.out, split.inside, split.unlabeled) == (out, inside, [])


def test_adaptation_cuts_the_test_domain_again():
    sizes = [50, 37, 64]
    splits = split_domains(domains(*sizes), [1], 0.2, 2, uda_holdout_fraction=0.3)
    out, inside = naive_split(37, 0.2, naive_seed_hash(2, 1))
    chosen, kept = naive_split(len(inside), 0.3, naive_seed_hash(2, 1))
    assert splits[1].out == out
    assert splits[1].unlabeled == [inside[i] for i in chosen]
    assert splits[1].inside == [inside[i] for i in kept]
    assert splits[0].unlabeled == splits[2].unlabeled == []
    assert sorted(splits[1].out + splits[1].inside + splits[1].unlabeled) == list(range(37))


def test_too_small_a_domain():
    with pytest.raises(UserError, match="domain 1 has 4 images"):
        split_domains(domains(50, 4), [0], 0.2, 0)
    with pytest.raises(UserError, match=r"domain 1 has 5 images, too few for a holdout_fraction"):
        split_domains(domains(50, 5), [0], 0.8, 0)  # which leaves one to train on
    assert len(split_domains(domains(50, 5), [0], 0.6, 0)[1].inside) == 2


def test_too_few_images_to_adapt_to():
    with pytest.raises(UserError, match=r"domain 0 has 21 images, too few for a uda_holdout_frac"):
        split_domains(domains(21, 21), [0], 0.2, 0, uda_holdout_fraction=0.01)


def test_unreadable_images_are_left_out():
    split = Split([0, 1], [2, 3, 5], [4])
    assert without_unreadable(split, 0, [1, 2, 4]) == Split([0], [3, 5], [])
    assert without_unreadable(Split([0, 1], [2, 3], []), 1, []) == Split([0, 1], [2, 3], [])
    with pytest.raises(UserError, match="domain 1 has 2 images that cannot be read"):
        without_unreadable(split, 1, [2, 3])  # one image to train on


def test_the_cut_is_the_same_whatever_cannot_be_read():
    whole, lacking = domains(50, 50)
    lacking.unreadable = [7, 8]
    first = split_domains([whole], [], 0.2, 0)[0]
    second = split_domains([lacking], [], 0.2, 0)[0]
    assert second.out == [i for i in first.out if i not in (7, 8)]
    assert second.inside == [i for i in first.inside if i not in (7, 8)]


def test_a_domain_may_fix_its_out_split():
    free, fixed = domains(10, 10)
    first, second = split_domains([free, with_out(fixed, [9, 3])], [], 0.2, 0)
    assert first == split_domains([free], [], 0.2, 0)[0]
    assert (second.out, second.inside) == ([9, 3], [0, 1, 2, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("mixed", [False, True])
def test_an_out_split_of_the_domains_own(mixed):
    """It comes in the domain's order, or in random order with classes mixed."""
    labels = torch.arange(100) // 50
    domain = with_out(TensorDomain(torch.zeros(100, 1), labels), list(range(0, 100, 5)))
    (split,) = split_domains([domain], [], 0.2, 0, mixed=mixed)
    own, others = list(range(0, 100, 5)), [i for i in range(100) if i % 5]
    assert (sorted(split.out), sorted(split.inside)) == (own, others)
    assert ((split.out, split.inside) == (own, others)) != mixed
    assert (len(labels[split.inside][:40].unique()) == 2) == mixed
    assert split_domains([domain], [], 0.2, 0, mixed=mixed) == [split]


def grouped(groups, labels):
    """A domain of these samples."""
    domain = TensorDomain(torch.zeros(len(labels), 1), torch.tensor(labels))
    domain.groups = groups
    return domain


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("trial", range(4))
def test_no_split_cuts_a_group(stratified, trial):
    """Nor that for adaptation; and all splits have about their share."""
    random = np.random.RandomState(trial)
    groups = [f"p{n}" for n in random.randint(0, 40, 300)]
    domain = grouped(groups, random.randint(0, 3, 300).tolist())
    splits = split_domains([domain] * 2, [1], 0.2, trial, 0.3, stratified=stratified)
    for split in splits:
        parts = [split.out, split.inside, split.unlabeled]
        assert sorted(split.out + split.inside + split.unlabeled) == list(range(300))
        of_parts = [{groups[i] for i in part} for part in parts]
        assert sum(map(len, of_parts)) == len(set(groups))
        assert abs(len(split.out) - 60) <= 14
    assert abs(len(splits[1].unlabeled) - 0.3 * 240) <= 12
    assert split_domains([domain], [], 0.2, trial, stratified=stratified)[0] == splits[0]


def test_a_stratified_split_has_each_class_in_proportion():
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    for trial in range(5):
        (split,) = split_domains([grouped(None, labels)], [], 0.2, trial, stratified=True)
        assert torch.tensor(labels)[split.out].bincount(minlength=4).tolist() == [10, 2, 1, 0]
        assert len(split.inside) == 50
    fixed = with_out(grouped(None, labels), [0])
    assert split_domains([fixed], [], 0.2, 4, stratified=True)[0] == split


def test_groups_that_cannot_be_kept_whole():
    whole = grouped(["p"] * 20, [0] * 20)
    with pytest.raises(UserError, match="domain 0 has 20 images of 1 group, too few for a holdout"):
        split_domains([whole], [], 0.2, 0)
    (split,) = split_domains([grouped(["p"] * 12 + ["q"] * 8, [0] * 20)], [], 0.2, 0)
    assert sorted(split.out) == list(range(12, 20))
    cut = with_out(grouped(["p"] * 10 + ["q"] * 10, [0] * 20), range(15))
    with pytest.raises(UserError, match="own split cuts 1 group, such as 'q'"):
        split_domains([cut], [], 0.2, 0)


def test_a_test_domain_may_have_no_validation_images():
    fixed = [with_out(grouped(None, [0] * 6), out) for out in ([0], [])]
    assert [len(split.out) for split in split_domains(fixed, [1], 0.2, 0)] == [1, 0]
    with pytest.raises(UserError, match="domain 1 has 6 images, too few"):
        split_domains(fixed, [0], 0.2, 0)
