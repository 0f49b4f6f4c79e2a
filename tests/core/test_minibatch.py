"""Minibatches and nests of tensors."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import torch

from domainbed.algorithms.base import concatenate, domain_sizes
from domainbed.core.minibatch import Minibatch, joined, joined_extras, mapped, split, taken

Sample = namedtuple("Sample", "tokens mask")


def minibatch(x: Any, labels: list[int], **facts: Any) -> Minibatch:
    return Minibatch(x, torch.tensor(labels), **facts)


def test_a_minibatch_is_a_pair_with_facts() -> None:
    made = minibatch(torch.ones(2, 3), [0, 1], extras={"group": ["a", "b"]}, domain=4)
    x, y = made
    assert (x.shape, y.tolist(), len(made)) == ((2, 3), [0, 1], 2)
    assert isinstance(made, tuple)
    assert (made.extras, made.domain, made.index) == ({"group": ["a", "b"]}, 4, None)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other[0], x)
        assert (type(other), other.extras, other.domain) == (Minibatch, made.extras, 4)


def test_nests_keep_their_structure() -> None:
    nest = {"pair": (torch.tensor([1, 2]), [torch.tensor([3, 4])]), "text": "as it is"}
    nest["sample"] = Sample(torch.tensor([5, 6]), torch.tensor([True, False]))
    doubled = mapped(lambda tensor: 2 * tensor, nest)
    assert doubled["pair"][0].tolist() == [2, 4]
    assert doubled["pair"][1][0].tolist() == [6, 8]
    assert doubled["text"] == "as it is"
    assert type(doubled["sample"]) is Sample
    assert taken(nest, [1])["sample"].tokens.tolist() == [6]
    first, second = split(nest, [1, 1])
    assert (first["pair"][0].tolist(), second["pair"][1][0].tolist()) == ([1], [4])


def test_sequences_of_other_lengths_are_padded_with_zeros() -> None:
    short = {"tokens": torch.tensor([[7, 8]]), "pairs": torch.ones(1, 2, 2, dtype=torch.bool)}
    long = {"tokens": torch.tensor([[1, 2, 3]]), "pairs": torch.ones(1, 3, 3, dtype=torch.bool)}
    both = joined([short, long])
    assert both["tokens"].tolist() == [[7, 8, 0], [1, 2, 3]]
    assert both["pairs"][0].tolist() == [[True, True, False], [True, True, False], [False] * 3]
    assert both["pairs"].dtype == torch.bool


def test_algorithms_join_domains_as_the_dataset_says() -> None:
    parts = [torch.tensor([[7, 8]]), torch.tensor([[1, 2, 3]])]
    plain = [(x, torch.tensor([e])) for e, x in enumerate(parts)]
    x, y = concatenate(plain)
    assert (x.tolist(), y.tolist()) == ([[7, 8, 0], [1, 2, 3]], [0, 1])

    def with_nines(nests: Any) -> Any:
        return torch.cat([torch.nn.functional.pad(x, (0, 3 - x.shape[1]), value=9) for x in nests])

    own = [minibatch(x, [e], join=with_nines) for e, x in enumerate(parts)]
    assert concatenate(own)[0].tolist() == [[7, 8, 9], [1, 2, 3]]
    assert domain_sizes(own) == [1, 1]


def test_extras_are_joined_where_all_domains_have_them() -> None:
    x = torch.zeros(1, 1)
    first = minibatch(x, [0], extras={"group": ["a"], "weight": torch.tensor([0.5]), "own": ["b"]})
    second = minibatch(x, [1], extras={"weight": torch.tensor([2.0]), "group": ["c"]})
    found = joined_extras([first, second])
    assert found is not None
    assert list(found) == ["group", "weight"]
    assert (found["group"], found["weight"].tolist()) == (["a", "c"], [0.5, 2.0])
    assert joined_extras([first, (x, x)]) is None
