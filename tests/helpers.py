"""Small inputs for the tests of algorithms."""

from __future__ import annotations

import io

import torch

from domainbed.algorithms import get_algorithm_class
from domainbed.core.files import read_sealed_json, sealed_json
from domainbed.hparams import default_hparams, search_space
from domainbed.training.restoring import restore
from domainbed.training.state import capture

SHAPE = (2, 8, 8)
CLASSES = 3
SMALL_DISCRIMINATOR = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def random_minibatches(sizes, seed=0, shape=SHAPE, classes=CLASSES, dtype=torch.float32):
    """One minibatch per domain, of the given sizes; the domains differ in mean and in scale."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for domain, size in enumerate(sizes):
        noise = torch.randn((size, *shape), generator=generator, dtype=torch.float64)
        labels = torch.randint(classes, (size,), generator=generator)
        pairs.append(((noise * (1 + 0.5 * domain) + 0.3 * domain).to(dtype), labels))
    return pairs


def small_hparams(algorithm, **overrides):
    """The defaults on small images, with what a test changes."""
    hparams = default_hparams(algorithm, "ColoredMNIST")
    if "mlp_depth" in hparams:
        hparams |= SMALL_DISCRIMINATOR
    if algorithm.endswith("ERMPlusPlus"):
        hparams |= {"linear_steps": 0, "sma_start": 2}
    if algorithm.endswith("GGA"):
        hparams |= {"gga_start": 0, "gga_searches": 1, "gga_noise": 1e-3}
    if algorithm.endswith("PCL"):
        hparams |= {"pcl_dropout": 0.0, "pcl_width": 8}
    if algorithm.endswith("JTT"):
        hparams["jtt_first"] = 0.0  # a first network as it starts, so that the second one trains
    return hparams | overrides


def switching_at(update, algorithm):
    """Hyper-parameters with which everything that an algorithm changes once changes then."""
    names = search_space(algorithm, "ColoredMNIST")
    return {name: update for name in names if name.endswith("iters")}


def build(algorithm, domains=2, seed=0, dtype=torch.float32, shape=SHAPE, **overrides):
    """A freshly initialised algorithm, by its registered name."""
    torch.manual_seed(seed)
    cls = get_algorithm_class(algorithm)
    return cls(shape, CLASSES, domains, small_hparams(algorithm, **overrides)).to(dtype)


def through_a_file(state):
    """What comes back when `state` is saved and loaded without trust in the file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(algorithm, fresh):
    """`fresh`, an instance from the same constructor call, with all state of `algorithm`."""
    restore(fresh, through_a_file(capture(algorithm)))
    return fresh


def numbers(metrics):
    """What an update returned, as numbers."""
    return {name: float(value) for name, value in metrics.items()}


def flat_parameters(*modules):
    """All parameters as one vector, detached."""
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def assert_same_tensors(first, second):
    """Equal state dicts, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


def edit_json(file, **values):
    """Changes a JSON object that the program wrote, as if it had written these values."""
    file.write_text(sealed_json({**read_sealed_json(file), **values}))
