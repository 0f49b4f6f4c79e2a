"""Distances and cosines, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domainbed.diagnostics.curvature import closeness, compare


def random_vectors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(3, 50, generator=generator, dtype=torch.float64)


def test_compare():
    vectors = random_vectors(0)
    found, v = compare(vectors), vectors.numpy()
    for i in range(3):
        assert found.norms[i] == pytest.approx(np.linalg.norm(v[i]))
        for j in range(3):
            assert found.distances[i][j] == pytest.approx(np.linalg.norm(v[i] - v[j]))
            cosine = v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j])
            assert found.cosines[i][j] == pytest.approx(cosine)


def test_distances_of_nearly_equal_vectors():
    vectors = torch.full((2, 10), 1e3, dtype=torch.float64)
    vectors[1, 0] += 1e-6
    assert compare(vectors).distances[0][1] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_closeness(scale):
    estimates, exact = random_vectors(1, scale), random_vectors(2, scale)
    found = closeness(estimates, exact)
    for i, (a, b) in enumerate(zip(estimates.numpy(), exact.numpy())):
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found.cosine[i] == pytest.approx(cosine)
        assert found.correlation[i] == pytest.approx(np.corrcoef(a, b)[0, 1])
        relative = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert found.relative_distance[i] == pytest.approx(relative)


def test_a_multiple_points_the_same_way():
    exact = random_vectors(3)
    found = closeness(2 * exact, exact)
    assert found.cosine == pytest.approx([1, 1, 1])
    assert found.correlation == pytest.approx([1, 1, 1])
    assert found.relative_distance == pytest.approx([1, 1, 1])


def test_zero_vectors_give_numbers():
    zero = torch.zeros(1, 4, dtype=torch.float64)
    found = closeness(zero, zero)
    assert (found.cosine, found.correlation, found.relative_distance) == ([0], [0], [0])
    assert compare(zero).cosines == [[0]]


def test_tiny_vectors_keep_their_direction():
    """Squares of the gradients of a model that fits well."""
    found = compare(torch.tensor([[1e-14, 2e-14], [2e-14, 4e-14]], dtype=torch.float64))
    np.testing.assert_allclose(found.cosines, 1)
