"""Fishr's options and its add-on, against loops over samples."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import build, flat_parameters, numbers, random_minibatches, resumed, small_hparams
from references import NAIVE, NaiveAnnealed, mean_loss, per_sample_gradients
from torch import nn

from domainbed.algorithms import (
    ALGORITHMS,
    CORAL,
    ERM,
    Algorithm,
    Fishr,
    PooledAlgorithm,
    get_algorithm_class,
)
from domainbed.errors import UserError
from domainbed.hparams import default_hparams, options, search_space
from domainbed.spec import RunSpec

VECTORS, SIZES = (6,), (3, 5)
SMALL_MLP = {"mlp_width": 4, "mlp_depth": 2, "mlp_dropout": 0.0}
PENALTY = {"lambda": 300.0, "penalty_anneal_iters": 1, "ema": 0.8}
ADDED = {f"fishr_{name}": value for name, value in PENALTY.items()}

NAIVE_STATISTICS = {
    "variance": lambda g: ((g - g.mean(0)) ** 2).mean(0),
    "second_moment": lambda g: (g**2).mean(0),
    "covariance": lambda g: (g - g.mean(0)).T @ (g - g.mean(0)) / len(g),
    "mean": lambda g: g.mean(0),
}


class NaiveVariant(NaiveAnnealed):
    """Fishr with options; the gradients are those of `parts` of the network."""

    before, weight_name, anneal_name = 0.0, "lambda", "penalty_anneal_iters"

    def __init__(self, *args, statistic="variance", reduction="mean", parts=("classifier",)):
        super().__init__(*args)
        self.statistic, self.reduction, self.parts = statistic, reduction, parts
        self.averages = [0.0] * self.num_domains

    def penalty(self, minibatches):
        values = []
        for domain, (x, y) in enumerate(minibatches):
            rows = self.rows(x, y)
            average = self.averages[domain] * self.hparams["ema"]
            average = average + (1 - self.hparams["ema"]) * NAIVE_STATISTICS[self.statistic](rows)
            self.averages[domain] = average.detach()
            values.append((average / (1 - self.hparams["ema"])).flatten())
        mean = sum(values) / len(values)
        squares = [(value - mean) ** 2 for value in values]
        if self.reduction == "sum":
            return sum(square.sum() for square in squares) / len(squares)
        return sum(square.mean() for square in squares) / len(squares)

    def rows(self, x, y):
        network = nn.Sequential(self.featurizer, self.classifier)
        names = {"featurizer": "0.", "classifier": "1."}
        everything = list(network.named_parameters())
        kept = torch.cat(
            [
                torch.full((p.numel(),), any(n.startswith(names[part]) for part in self.parts))
                for n, p in everything
            ]
        )
        return per_sample_gradients(x, y, network)[:, kept]

    def update(self, minibatches):
        weight, penalty = self.penalty_weight(), self.penalty(minibatches)
        x, y = (torch.cat(each) for each in zip(*minibatches, strict=True))
        return self.step(mean_loss(self.classifier(self.featurizer(x)), y) + weight * penalty)


def assert_same_weights(algorithm, naive):
    torch.testing.assert_close(
        flat_parameters(algorithm.featurizer, algorithm.classifier),
        flat_parameters(naive.featurizer, naive.classifier),
        rtol=1e-8,
        atol=1e-9,
    )


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize(
    ("chosen", "naive_options"),
    [
        ({"fishr_statistic": "second_moment"}, {"statistic": "second_moment"}),
        ({"fishr_statistic": "covariance"}, {"statistic": "covariance"}),
        ({"fishr_statistic": "mean"}, {"statistic": "mean"}),
        ({"fishr_reduction": "sum"}, {"reduction": "sum"}),
        ({"fishr_statistic": "covariance", "fishr_reduction": "sum"},
         {"statistic": "covariance", "reduction": "sum"}),
        ({"fishr_parameters": "all"}, {"parts": ("featurizer", "classifier")}),
        ({"fishr_parameters": "featurizer"}, {"parts": ("featurizer",)}),
        ({"fishr_parameters": "classifier, featurizer.output, featurizer.input"},
         {"parts": ("featurizer", "classifier")}),
        ({"ema": 0.0}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_variant_follows_the_naive_one(chosen, naive_options, nonlinear):
    hparams = {"weight_decay": 0.01, **SMALL_MLP, **PENALTY, **chosen}
    algorithm = build(
        "Fishr", 2, dtype=torch.float64, shape=VECTORS, nonlinear_classifier=nonlinear, **hparams
    )
    parts = (algorithm.featurizer, algorithm.classifier, dict(algorithm.hparams), 2)
    naive = NaiveVariant(*parts, **naive_options)
    for step in range(4):
        minibatches = random_minibatches(SIZES, step, VECTORS, dtype=torch.float64)
        algorithm.update(minibatches)
        naive.update(minibatches)
        assert_same_weights(algorithm, naive)


def test_part_of_a_classifier():
    """One layer of a nonlinear classifier: the average has its parameters alone."""
    algorithm = build(
        "Fishr", shape=VECTORS, nonlinear_classifier=True, fishr_parameters="classifier.4",
        **SMALL_MLP,
    )  # fmt: skip
    assert algorithm.matching.variance_ema.shape == (2, 1 * 3 + 3)
    algorithm.update(random_minibatches(SIZES, 0, VECTORS))
    assert (algorithm.matching.variance_ema > 0).any()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"fishr_parameters": "head"}, "no layer 'head'; expected 'classifier', 'all', or some of"),
        ({"fishr_parameters": "classifie"}, "no layer 'classifie'"),
        ({"fishr_parameters": ""}, "no layer ''"),
    ],
)
def test_unknown_layers(chosen, message):
    with pytest.raises(UserError, match=message):
        build("Fishr", shape=VECTORS, **SMALL_MLP, **chosen)


def test_full_covariances_of_too_many_parameters():
    with pytest.raises(UserError, match=r"'covariance', of 371,\d{3} parameters: at most 4,096"):
        build("Fishr", fishr_statistic="covariance", fishr_parameters="all")


def test_a_wrong_option_is_told_before_anything_is_built():
    with pytest.raises(UserError, match=r"'fishr_statistic' of Fishr cannot be 'var'.*covariance"):
        RunSpec.create("ColoredDigits", "Fishr", [0], hparams={"fishr_statistic": "var"})
    with pytest.raises(UserError, match="unknown hyper-parameter 'fishr_statistic' of CORAL"):
        RunSpec.create("ColoredDigits", "CORAL", [0], hparams={"fishr_statistic": "mean"})
    assert not set(options("Fishr")) & set(search_space("Fishr", "PACS"))
    assert "fishr_statistic" not in default_hparams("Fishr", "PACS")


class TestAddOn:
    def test_on_erm_it_is_fishr(self):
        """Without a switch, where Fishr alone begins with a new Adam."""
        fishr = build("Fishr", **(PENALTY | {"penalty_anneal_iters": 0}))
        added = build("Fishr+ERM", **(ADDED | {"fishr_penalty_anneal_iters": 0}))
        for step in range(3):
            minibatches = random_minibatches(SIZES, step)
            theirs, own = numbers(fishr.update(minibatches)), numbers(added.update(minibatches))
            assert own["fishr_penalty"] == pytest.approx(theirs["penalty"], rel=1e-6)
        for name, value in fishr.state_dict().items():
            if name != "update_count":
                here = name if name.startswith("matching.") else f"base.{name}"
                torch.testing.assert_close(added.state_dict()[here], value)

    @pytest.mark.parametrize("name", ["CORAL", "VREx", "IRM"])
    def test_adds_the_naive_penalty_to_the_naive_loss(self, name):
        own = {"irm_penalty_anneal_iters": 2, "vrex_penalty_anneal_iters": 2}
        hparams = {**SMALL_MLP, **ADDED, **own}
        algorithm = build(f"Fishr+{name}", 2, dtype=torch.float64, shape=VECTORS, **hparams)
        parts = (algorithm.featurizer, algorithm.classifier, dict(algorithm.hparams), 2)
        naive = NAIVE[name](*parts)
        variant = NaiveVariant(*parts)
        variant.hparams = variant.hparams | PENALTY
        variant.featurizer, variant.classifier = naive.featurizer, naive.classifier
        step_alone = naive.step
        for step in range(4):
            minibatches = random_minibatches(SIZES, step, VECTORS, dtype=torch.float64)
            weight = PENALTY["lambda"] if step >= PENALTY["penalty_anneal_iters"] else 0.0
            naive.step = lambda loss, m=minibatches, w=weight: step_alone(
                loss + w * variant.penalty(m)
            )
            algorithm.update(minibatches)
            naive.update(minibatches)
            assert_same_weights(algorithm, naive)

    def test_on_dann_it_leaves_the_discriminator_steps_alone(self):
        algorithm = build("Fishr+DANN", **ADDED, **SMALL_MLP)
        metrics = [algorithm.update(random_minibatches(SIZES, step)) for step in range(4)]
        assert [("fishr_penalty" in m) for m in metrics] == [("gen_loss" in m) for m in metrics]
        assert algorithm.fishr_update_count.item() == 2

    def test_goes_on_after_an_interruption(self):
        whole = build("Fishr+IRM", **ADDED)
        for step in range(2):
            whole.update(random_minibatches(SIZES, step))
        again = resumed(whole, build("Fishr+IRM", seed=1, **ADDED))
        for each in (whole, again):
            each.update(random_minibatches(SIZES, 2))
        assert torch.equal(flat_parameters(whole), flat_parameters(again))

    @pytest.mark.parametrize("name", ["ERM", "CORAL", "IRM", "VREx", "DANN"])
    def test_one_pass_serves_both_losses(self, name):
        algorithm, passes = build(f"Fishr+{name}", **ADDED), []
        algorithm.featurizer.register_forward_hook(lambda *_: passes.append("featurizer"))
        assert "fishr_penalty" in algorithm.update(random_minibatches(SIZES))
        assert passes == ["featurizer"]

    def test_names_and_hyper_parameters(self):
        cls = get_algorithm_class("Fishr+CORAL")
        assert cls.base_class is CORAL
        assert isinstance(build("Fishr+CORAL").base, CORAL)
        assert cls is get_algorithm_class("Fishr+CORAL")
        assert cls.__name__ == "Fishr+CORAL"
        space = search_space("Fishr+CORAL", "PACS")
        added = ["fishr_lambda", "fishr_penalty_anneal_iters", "fishr_ema"]
        assert list(space) == [*search_space("CORAL", "PACS"), *added]
        assert {"grad_penalty_of", "fishr_statistic"} <= set(options("Fishr+DANN"))
        assert RunSpec.create("ColoredDigits", "Fishr+CORAL", [0]).algorithm == "Fishr+CORAL"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("Fishr+Fish", "Fishr cannot be added to Fish, whose own 'update' would leave the pen"),
            ("Fishr+Fishr", "it has the penalty already"),
            ("Fishr+CORALL", "unknown algorithm 'CORALL'. Did you mean 'CORAL'"),
        ],
    )
    def test_what_it_cannot_be_added_to(self, name, message):
        with pytest.raises(UserError, match=message):
            get_algorithm_class(name)

    def test_relatives_of_fishr_and_names_of_registration(self, monkeypatch):
        monkeypatch.setitem(ALGORITHMS._entries, "Mine", type("Impl", (Fishr,), {}))
        with pytest.raises(
            UserError, match=r"'Fishr\+Mine': .* to Mine, it has the penalty already"
        ):
            get_algorithm_class("Fishr+Mine")
        monkeypatch.setitem(ALGORITHMS._entries, "Renamed", type("Impl", (ERM,), {}))
        assert get_algorithm_class("Fishr+Renamed").__name__ == "Fishr+Renamed"

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({"update": lambda self, minibatches, unlabeled=None: {}}, "whose own 'update' would"),
            (
                {"objective": lambda self, minibatches, unlabeled=None: 0},
                "own 'objective' would",
            ),
            ({"predict": lambda self, x: self.network(2 * x)}, "'predict' hides the classifier's"),
        ],
    )
    def test_what_would_train_without_the_penalty(self, body, reason, monkeypatch):
        """As Mixup written for DomainBed, which steps its own optimizer in its own `update`."""
        monkeypatch.setitem(ALGORITHMS._entries, "Mixup", type("Mixup", (ERM,), body))
        message = rf"no algorithm 'Fishr\+Mixup': Fishr cannot be added to Mixup, .*{reason}"
        with pytest.raises(UserError, match=message):
            RunSpec.create("ColoredDigits", "Fishr+Mixup", [0])

    @pytest.mark.parametrize("parent", [Algorithm, PooledAlgorithm])
    def test_what_has_no_loss_to_add_to(self, parent, monkeypatch):
        monkeypatch.setitem(ALGORITHMS._entries, "Bare", type("Bare", (parent,), {}))
        with pytest.raises(UserError, match="to Bare, it has no 'objective_of', to whose loss"):
            get_algorithm_class("Fishr+Bare")

    def test_an_objective_from_outside(self, monkeypatch):
        """A class that has `objective_of` alone carries the penalty, and reports its own loss."""

        class Halved(ERM):
            def objective_of(self, forward):
                return 0.5 * forward.pooled_risk(), {"seen": 1.0}

        monkeypatch.setitem(ALGORITHMS._entries, "Halved", Halved)
        hparams = {**small_hparams("ERM"), **SMALL_MLP, **ADDED, "fishr_penalty_anneal_iters": 0}
        torch.manual_seed(0)
        algorithm = get_algorithm_class("Fishr+Halved")(VECTORS, 3, 2, hparams)
        minibatches = random_minibatches(SIZES, 0, VECTORS)
        x, y = (torch.cat(each) for each in zip(*minibatches, strict=True))
        halved = 0.5 * nn.functional.cross_entropy(algorithm.predict(x), y).item()
        before = flat_parameters(algorithm)
        metrics = algorithm.update(minibatches)
        assert metrics["loss"] == pytest.approx(halved)
        assert list(metrics) == ["loss", "seen", "fishr_penalty"]
        assert not torch.equal(flat_parameters(algorithm), before)

    def test_hooks_reach_the_other_algorithm(self, monkeypatch):
        calls = []
        hooks = {
            "on_start": lambda self: calls.append("start"),
            "on_record": lambda self, metrics: metrics.update(noted=1.0),
            "on_end": lambda self: calls.append("end"),
        }
        monkeypatch.setitem(ALGORITHMS._entries, "Hooked", type("Hooked", (ERM,), hooks))
        cls = get_algorithm_class("Fishr+Hooked")
        algorithm = cls(VECTORS, 3, 2, {**small_hparams("ERM"), **SMALL_MLP, **ADDED})
        record = {"step": 0.0}
        algorithm.on_start()
        algorithm.on_record(record)
        algorithm.on_end()
        assert calls == ["start", "end"]
        assert record == {"step": 0.0, "noted": 1.0}


def test_the_published_fishr_is_the_default():
    torch.manual_seed(0)
    plain = build("Fishr", **PENALTY)
    spelled_out = build(
        "Fishr", fishr_parameters="classifier", fishr_statistic="variance",
        fishr_reduction="mean", **PENALTY,
    )  # fmt: skip
    assert isinstance(plain, Fishr)
    twin = copy.deepcopy(plain)
    for step in range(3):
        for algorithm in (plain, spelled_out, twin):
            algorithm.update(random_minibatches(SIZES, step))
    assert torch.equal(flat_parameters(plain), flat_parameters(spelled_out))
    assert torch.equal(flat_parameters(plain), flat_parameters(twin))
