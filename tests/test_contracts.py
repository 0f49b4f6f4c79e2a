"""What holds for every registered algorithm and dataset."""

from __future__ import annotations

import inspect
import io
import math

import pytest
import torch
from helpers import (
    CLASSES,
    assert_same_tensors,
    build,
    flat_parameters,
    random_minibatches,
    resumed,
    small_hparams,
    switching_at,
)

from domainbed.algorithms import ALGORITHMS, Algorithm, get_algorithm_class
from domainbed.core.names import DATASET_DOMAINS, TEST_DOMAINS
from domainbed.datasets import DATASETS
from domainbed.download.catalogue import SOURCES
from domainbed.errors import UserError
from domainbed.hparams import search_space
from domainbed.spec import RunSpec
from domainbed.training.experiment import build as build_experiment
from domainbed.training.state import capture

WITHOUT_ADD_ON = {  # they set gradients by hand, or have several losses; Fishr has the penalty
    *("Fish", "Fishr", "ANDMask", "SANDMask", "MLDG", "ADRMX", "SagNet"),
    *("Transfer", "URM", "IRMGames", "GGA_L"),
    # add-ons themselves: Fishr's penalty goes below them
    *("SAM", "ASAM", "GSAM", "SAGM", "MixStyle", "EFDMix", "DSU"),
}
FITTED = {name for name in ALGORITHMS if ALGORITHMS[name].needs_features}  # test_fitted.py
TRAINED = [name for name in ALGORITHMS if name not in FITTED]
ADD_ONS = [f"Fishr+{name}" for name in TRAINED if name not in WITHOUT_ADD_ON]
NAMES = [*TRAINED, *ADD_ONS]
SIZES = (4, 3)
DIGITS = [DATASETS[name]("", [0], {}) for name in ("ColoredDigits", "RotatedDigits")]


def all_tensors(owner, seen):
    """Every tensor that can be reached from `owner` through attributes and containers."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, torch.Tensor):
        yield owner
    elif isinstance(owner, dict):
        for value in list(owner.values()):
            yield from all_tensors(value, seen)
    elif isinstance(owner, (list, tuple)):
        for value in owner:
            yield from all_tensors(value, seen)
    elif isinstance(owner, (torch.nn.Module, torch.optim.Optimizer)):
        yield from all_tensors(vars(owner), seen)


def saved(state):
    """As the bytes of a file."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def declares_what_commands_show(name):
    cls = get_algorithm_class(name)
    assert issubclass(cls, Algorithm)
    assert cls.paper
    assert cls.__doc__
    parameters = list(inspect.signature(cls).parameters)
    assert parameters == ["input_shape", "num_classes", "num_domains", "hparams"]
    assert all(d.doc for d in search_space(name, "PACS").values())


def predicts_each_sample_by_itself(name):
    algorithm = build(name)
    x = random_minibatches((5,))[0][0]
    logits = algorithm.eval().predict(x)
    assert logits.shape == (5, CLASSES)
    assert logits.isfinite().all()
    assert torch.equal(algorithm.predict(x), logits)
    if not get_algorithm_class(name).predicts_batches:
        assert torch.allclose(algorithm.predict(x[:2]), logits[:2], atol=1e-6)


def a_prediction_changes_nothing_that_an_update_depends_on(name):
    algorithm = build(name)
    algorithm.update(random_minibatches(SIZES))
    before, source = saved(capture(algorithm)), torch.get_rng_state()
    algorithm.eval().predict(random_minibatches((5,))[0][0])
    algorithm.train()
    assert saved(capture(algorithm)) == before
    assert torch.equal(torch.get_rng_state(), source)


def steps_change_the_weights_and_the_metrics_are_finite(name):
    algorithm = build(name)
    before = flat_parameters(algorithm.featurizer), flat_parameters(algorithm.classifier)
    for step in range(3):  # with two domains, of IRMGames a turn of each network
        metrics = algorithm.update(random_minibatches(SIZES, step))
        assert metrics
        assert all(type(v) is float and math.isfinite(v) for v in metrics.values())
    after = flat_parameters(algorithm.featurizer), flat_parameters(algorithm.classifier)
    for old, new in zip(before, after, strict=True):
        assert (old != new).float().mean() > 0.5


def resumes_bit_for_bit(name):
    annealed = switching_at(2, name)
    for done in (0, 1, 3):
        original = build(name, **annealed)
        for step in range(done):
            original.update(random_minibatches(SIZES, step))
        copy = resumed(original, build(name, seed=99, **annealed))
        for step in range(done, done + 3):
            minibatches = random_minibatches(SIZES, step)
            assert copy.update(minibatches) == original.update(minibatches)
        assert_same_tensors(copy, original)


def works_with_few_domains_and_samples_or_says_what_to_change(name):
    cls = get_algorithm_class(name)
    for sizes in ((4,), (1,), (1, 1), (1, 3), (2, 2)):
        if len(sizes) < cls.least_domains:
            with pytest.raises(UserError, match="needs at least 2 training domains"):
                build(name, len(sizes))
            continue
        algorithm = build(name, len(sizes))
        alone = sum(sizes) < getattr(cls, "base_class", cls).least_in_all
        if min(sizes) < cls.least_samples or alone:
            with pytest.raises(UserError, match=r"needs at least 2 samples .*'batch_size'"):
                algorithm.update(random_minibatches(sizes))
        else:
            for step in range(2):
                metrics = algorithm.update(random_minibatches(sizes, step))
                assert all(math.isfinite(value) for value in metrics.values())
        assert flat_parameters(algorithm).isfinite().all()


def all_state_moves_with_the_module(name):
    """A float32 run goes on in float64, through capture and restore."""
    original = build(name)
    original.update(random_minibatches(SIZES))
    moved = resumed(original, build(name, seed=9, dtype=torch.float64))
    for step in range(1, 3):
        moved.update(random_minibatches(SIZES, step, dtype=torch.float64))
    found = [t for t in all_tensors(moved, set()) if t.is_floating_point() and t.dim()]
    assert len(found) > len(list(moved.parameters()))
    assert {t.dtype for t in found} == {torch.float64}
    assert {t.device for t in found} == {torch.device("cpu")}


def trains_in_half_precision(name):
    """Under bf16 autocast the weights stay near those of float32."""
    weights = []
    for enabled in (False, True):
        algorithm = build(name)
        for step in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
                metrics = algorithm.update(random_minibatches((16, 16), step))
            assert all(math.isfinite(value) for value in metrics.values())
        weights.append(flat_parameters(algorithm.classifier))
    start = flat_parameters(build(name).classifier)
    assert weights[1].dtype == torch.float32
    moved, apart = (weights[0] - start).norm(), (weights[0] - weights[1]).norm()
    assert apart < 0.35 * moved


def has_the_same_weights_with_the_same_seed(name):
    twins = [build(name), build(name)]
    for twin in twins:
        twin.update(random_minibatches(SIZES))
    assert_same_tensors(*twins)


def trains_on_embedded_data(name):
    for dataset in DIGITS:
        minibatches = [tuple(t[:4] for t in domain.tensors) for domain in dataset.datasets[1:]]
        torch.manual_seed(0)
        algorithm = get_algorithm_class(name)(
            dataset.input_shape, dataset.num_classes, len(minibatches), small_hparams(name)
        )
        for _ in range(2):
            assert all(math.isfinite(v) for v in algorithm.update(minibatches).values())
        assert algorithm.predict(minibatches[0][0]).shape == (4, dataset.num_classes)


CONTRACT = (
    declares_what_commands_show,
    predicts_each_sample_by_itself,
    a_prediction_changes_nothing_that_an_update_depends_on,
    steps_change_the_weights_and_the_metrics_are_finite,
    resumes_bit_for_bit,
    works_with_few_domains_and_samples_or_says_what_to_change,
    all_state_moves_with_the_module,
    trains_in_half_precision,
    has_the_same_weights_with_the_same_seed,
    trains_on_embedded_data,
)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    for holds in CONTRACT:
        holds(name)


@pytest.mark.parametrize("name", sorted(WITHOUT_ADD_ON | FITTED))
def test_fishr_cannot_be_added(name):
    with pytest.raises(UserError, match=f"Fishr cannot be added to {name}"):
        get_algorithm_class(f"Fishr+{name}")


def test_autocast_sees_every_inner_step_of_fish():
    """Autocast caches weights cast to bf16; a cache across inner steps would be stale."""
    experiment = build_experiment(RunSpec.create("ColoredDigits", "ERM", [0], precision="bf16"))
    layer = torch.nn.Linear(1, 1, bias=False)
    with experiment.precision():
        first = layer(torch.ones(1, 1)).item()
        with torch.no_grad():
            layer.weight += 1
        second = layer(torch.ones(1, 1)).item()
    assert second == pytest.approx(first + 1, abs=0.02)


@pytest.mark.parametrize("name", list(DATASETS))
def test_dataset_class(name):
    cls = DATASETS[name]
    assert cls.__doc__
    assert cls.N_STEPS > 0
    assert cls.CHECKPOINT_FREQ > 0
    assert tuple(cls.ENVIRONMENTS) == DATASET_DOMAINS[name]
    assert cls.test_domains == TEST_DOMAINS.get(name)
    assert len(cls.ENVIRONMENTS) == len(cls.info.domains)
    assert len(cls.info.images) in (len(cls.info.domains), 0)
    assert name in SOURCES or cls.info.folder in ("", "MNIST")
    assert list(inspect.signature(cls).parameters)[:3] == ["root", "test_envs", "hparams"]
