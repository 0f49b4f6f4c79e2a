"""The inconsistency score, against brute force over the ellipsoid and over the pairs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.linalg import eigh

from domainbed.diagnostics.inconsistency import diagonal_ratios, full_ratios, pairs, score

NONE = 1e-12  # damping


def largest_rise(h_a, h_b, epsilon, steps=200_001):
    """max ½ θᵀH_Bθ on the ellipse ½ θᵀH_Aθ = ε in two dimensions, over a fine grid of angles."""
    angle = torch.linspace(0, math.pi, steps, dtype=torch.float64)
    theta = torch.stack([angle.cos(), angle.sin()])
    in_a = (theta * (h_a @ theta)).sum(dim=0) / 2
    in_b = (theta * (h_b @ theta)).sum(dim=0) / 2
    return (epsilon * in_b / in_a).max().item()


def random_hessians(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return roots @ roots.mT + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.1, 2.0])
def test_diagonal_ratios_solve_the_inner_problem(epsilon):
    diagonals = torch.tensor([[1.0, 4.0], [3.0, 2.0], [0.5, 5.0]], dtype=torch.float64)
    ratios, damped = diagonal_ratios(diagonals, NONE)
    for a, b in itertools.permutations(range(3), 2):
        expected = largest_rise(diagonals[a].diag(), diagonals[b].diag(), epsilon)
        assert epsilon * ratios[a, b].item() == pytest.approx(expected, rel=1e-8)
    assert ratios[0, 1].item() == pytest.approx(3)
    assert ratios[1, 0].item() == pytest.approx(2)
    assert damped.tolist() == [0, 0, 0]


def test_full_ratios_solve_the_inner_problem():
    hessians = random_hessians(3, 2)
    ratios, damped = full_ratios(hessians, NONE)
    for a, b in itertools.permutations(range(3), 2):
        expected = largest_rise(hessians[a], hessians[b], 0.3)
        assert 0.3 * ratios[a, b].item() == pytest.approx(expected, rel=1e-8)
    assert ratios.diagonal().tolist() == pytest.approx([1, 1, 1])
    assert damped.tolist() == [0, 0, 0]


def test_full_ratios_are_generalised_eigenvalues():
    hessians = random_hessians(2, 6, seed=1)
    ratios, _ = full_ratios(hessians, NONE)
    largest = eigh(hessians[1].numpy(), hessians[0].numpy(), eigvals_only=True)[-1]
    assert ratios[0, 1].item() == pytest.approx(largest, rel=1e-8)


def test_full_ratios_of_diagonal_hessians():
    diagonals = torch.rand(3, 5, dtype=torch.float64) + 0.01
    matrices = torch.stack([d.diag() for d in diagonals])
    for damping in (NONE, 0.1):
        torch.testing.assert_close(
            full_ratios(matrices, damping), diagonal_ratios(diagonals, damping)
        )


def test_damping_adds_the_same_to_all_domains():
    diagonals = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]], dtype=torch.float64)
    ratios, damped = diagonal_ratios(diagonals, 0.1)  # of a mean of 1
    assert ratios[0, 1].item() == pytest.approx(3.1 / 0.1)
    assert ratios[1, 0].item() == pytest.approx(1)  # where neither is curved
    assert damped.tolist() == [2, 1]


def test_nothing_curved_at_all():
    ratios, _ = diagonal_ratios(torch.zeros(2, 3, dtype=torch.float64), 0.1)
    assert ratios.tolist() == [[1, 1], [1, 1]]


def test_negative_curvatures_count_as_zero():
    diagonals = torch.tensor([[-5.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    matrices = torch.stack([d.diag() for d in diagonals])
    for ratios, damped in (diagonal_ratios(diagonals, 0.1), full_ratios(matrices, 0.1)):
        assert ratios[0, 1].item() == pytest.approx((1 + 0.1) / 0.1)  # the mean is 1
        assert ratios[1, 0].item() == pytest.approx(2.1 / 1.1)
        assert damped.tolist() == [1, 0]


def test_score_by_brute_force():
    generator = torch.Generator().manual_seed(4)
    epsilon = 0.2
    risks = torch.rand(4, generator=generator, dtype=torch.float64)
    diagonals = torch.rand(4, 7, generator=generator, dtype=torch.float64) + 0.1
    found = pairs(risks, diagonal_ratios(diagonals, NONE)[0], epsilon)
    totals = {}
    for i, j in itertools.permutations(range(4), 2):
        rise = max(float(diagonals[j, k] / diagonals[i, k]) for k in range(7))
        totals[i, j] = float(risks[j]) - float(risks[i]) + epsilon * rise
    assert {(pair.a, pair.b): pair.total for pair in found} == pytest.approx(totals, rel=1e-9)
    assert score(found, range(4)) == pytest.approx(max(totals.values()))
    assert score(found, [0, 2]) == pytest.approx(max(totals[0, 2], totals[2, 0]))
    for pair in found:
        assert pair.curvature_term == pytest.approx(epsilon * pair.curvature_ratio)
        assert pair.total == pytest.approx(pair.risk_difference + pair.curvature_term)


def test_identical_domains_have_the_least_score():
    diagonals = torch.tensor([[1.0, 2.0]] * 2, dtype=torch.float64)
    found = pairs(torch.tensor([0.5, 0.5]), diagonal_ratios(diagonals, NONE)[0], 0.3)
    assert score(found, [0, 1]) == pytest.approx(0.3)


def test_one_domain_has_no_score():
    assert score([], [0]) is None
