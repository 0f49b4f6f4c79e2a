"""Classes that were written for forks, adapted and run as they are."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, ERM, adapt, register_algorithm
from domainbed.algorithms.foreign_code import undriven
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import run
from domainbed.training.trial import trial


@pytest.fixture(autouse=True)
def _no_new_names(monkeypatch):
    monkeypatch.setattr(ALGORITHMS, "_entries", {**ALGORITHMS._entries})


class Method(nn.Module):
    """What the forks' classes below share."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams
        width = torch.Size(input_shape).numel()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=hparams.lr)

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class OfPairs(Method):
    """DomainBed, with a method for tensors whose weights have PyTorch's usual layout."""

    def __init__(self, *args):
        super().__init__(*args)
        self.conv = nn.Conv2d(3, 4, 3)

    def update(self, minibatches, unlabeled=None):
        x, y = (torch.cat(part) for part in zip(*minibatches))
        nn.utils.parameters_to_vector(self.conv.parameters())
        assert x.view(len(x), -1).shape == (8, 3 * 28 * 28)
        return self.descend(F.cross_entropy(self.predict(x), y))


class OfLists(Method):
    """SWAD: lists of tensors by name, and whatever else a script passes."""

    def update(self, x, y, **kwargs):
        assert {"step"} == kwargs.keys()
        weight = torch.ones(2).cuda() * torch.ones(2, device="cuda:0")
        self.descend(F.cross_entropy(self.predict(torch.cat(x)), torch.cat(y), weight.to("cuda")))


class OfTriples(Method):
    """Batches (x, y, env), the step, no unlabeled; returns a tensor."""

    def update(self, minibatches, step):
        for _, _, env in minibatches:
            assert env.shape == (4,)
        assert [int(env[0]) for _, _, env in minibatches] == [0, 1]
        loss = sum(F.cross_entropy(self.predict(x), y) for x, y, _ in minibatches)
        self.descend(loss)
        return loss.detach() * 0 + step


class Pooled(Method):
    """SubpopBench: one batch with positions and attributes, and sizes of groups."""

    def __init__(self, data_type, input_shape, num_classes, num_attributes, num_examples, hparams,
                 grp_sizes=None):  # fmt: skip
        super().__init__(input_shape, num_classes, num_attributes, hparams)
        assert (data_type, num_attributes, num_examples) == ("images", 2, sum(grp_sizes))
        assert len(grp_sizes) == num_classes * num_attributes
        self.register_buffer("seen", torch.zeros(num_examples))

    def update(self, minibatch, step):
        all_i, all_x, all_y, all_a = minibatch
        self.seen[all_i] += 1
        assert all_a.tolist() == [0] * 4 + [1] * 4
        return self.descend(F.cross_entropy(self.predict(all_x), all_y))


class TakesItsOwn(nn.Module):
    """WOODS: a model, an optimizer, and a dataset that hands out batches."""

    def __init__(self, model, dataset, optimizer, hparams):
        super().__init__()
        self.model, self.dataset, self.optimizer = model, dataset, optimizer
        self.domains = dataset.get_nb_training_domains()

    def predict(self, all_x):
        return self.model(all_x)

    def update(self):
        x, y = self.dataset.get_next_batch()
        out, _ = self.predict(x)
        by_domain, _ = self.dataset.split_tensor_by_domains(out, y, self.domains)
        assert by_domain.shape == (2, 4, 2)
        assert y.shape == (8, 1)
        self.optimizer.zero_grad()
        self.dataset.loss_by_domain(out, y, self.domains).mean().backward()
        self.optimizer.step()


def test_classes_of_each_family_run():
    for cls in (OfPairs, OfLists, OfTriples, Pooled, TakesItsOwn):
        register_algorithm(adapt(cls))
        assert trial(cls.__name__) == ("runs", ""), cls


class Driven(OfPairs):
    """What `update` leaves untrained, its train script trains by another method."""

    def update(self, minibatches, unlabeled=None):
        return {"seen": len(minibatches)}

    def train_main(self, minibatches):
        self.descend(F.cross_entropy(self.predict(minibatches[0][0]), minibatches[0][1]))


class NeverTrained(OfPairs):
    """Two predictions, and an update that forgets to step."""

    def update(self, minibatches):
        return "done"

    def predict(self, x):
        return {"features": x.mean(dim=(2, 3)), "main": self.network(x), "other": -self.network(x)}


def spec_of(cls):
    register_algorithm(adapt(cls), name=cls.__name__)
    fixed = {"batch_size": 4}
    return RunSpec.create("Debug28", cls.__name__, [0], steps=5, checkpoint_freq=2, hparams=fixed)


def test_what_nothing_trains_ends_with_an_error(tmp_path):
    reasons = {
        Driven: "Driven trains also by train_main, which its own train script calls: call it",
        NeverTrained: "no weight of NeverTrained changed in 5 updates",
    }
    for cls, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            run(spec_of(cls), tmp_path / cls.__name__)
        assert trial(cls.__name__)[0] == "does not run"


def test_hooks_call_what_a_train_script_calls(tmp_path):
    class Hooked(adapt(Driven)):
        def on_start(self):
            self.sizes = [len(split) for split in self.facts.splits]
            (x, y), *_ = [split[0] for split in self.facts.splits]
            assert (x.shape, y.shape) == ((3, 28, 28), ())

        def on_step(self):
            batches = [next(split.batches(size=3)) for split in self.facts.splits]
            assert [len(y) for _, y in batches] == [3, 3]
            getattr(self.model, "train_" + "main")(batches)  # a call here would count as its file's

    register_algorithm(Hooked)
    assert trial("Hooked") == ("runs", "")


def test_several_predictions_are_evaluated_under_their_names(tmp_path):
    class Two(NeverTrained):
        def update(self, x, y, **kwargs):
            return self.descend(F.cross_entropy(self.network(torch.cat(x)), torch.cat(y)))

    run(spec_of(Two), tmp_path)
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    for split in ("in", "out"):
        both = [record[f"env0_{split}_acc"], record[f"env0_{split}_accuracy_other"]]
        assert sum(both) == pytest.approx(1), "of two classes one is right"


def test_updates_resume_exactly(tmp_path):
    spec, stopped_at = spec_of(Pooled), 3
    run(spec, tmp_path / "whole")
    with pytest.raises(Interrupted), stopping_on({}):
        run(spec, tmp_path / "two", on_step=lambda step: step == stopped_at and request_stop())
    run(spec, tmp_path / "two")
    names = ("loss", "env0_in_acc", "env0_out_acc")
    whole, two = (
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("whole", "two")
    )
    assert [[r[n] for n in names] for r in whole] == [[r[n] for n in names] for r in two]


class OfListsOnERM(ERM):
    """SWAD's update on this package's ERM."""

    def update(self, x, y, **kwargs):
        return {"seen": len(x), **super().update(list(zip(x, y)))}


def test_subclasses_of_this_package_are_called_as_they_ask():
    class Usual(ERM):
        def update(self, minibatches, unlabeled=None):
            return super().update([(x, y) for x, y in minibatches], unlabeled)

    assert adapt(Usual) is Usual
    assert Usual.memory_format == torch.contiguous_format
    register_algorithm(adapt(OfListsOnERM))
    assert trial("OfListsOnERM") == ("runs", "")


def test_what_a_class_lacks_is_named():
    class Unset(OfPairs):
        def update(self, minibatches):
            return self.hparams["unset"]

    class Bare(OfPairs):
        def update(self, minibatches):
            return {}[0]

    class CountsGpus(OfPairs):
        def update(self, minibatches):
            return torch.cuda.current_device()

    class Computed(OfPairs):
        def update(self, x, y, features):
            return {}

    class Base(OfPairs):
        def __init__(self, input_shape, num_classes, num_domains, hparams, gaussian):
            pass

    reasons = {
        Unset: "hyper-parameter 'unset' has no value",
        Bare: f"KeyError(0) ({__file__}, line ",
        Computed: "the update of Computed needs 'features', which its train script computes",
        Base: "the constructor of Base needs 'gaussian'",
    }
    if not torch.cuda.is_available():
        reasons[CountsGpus] = "CountsGpus needs a GPU"
    for cls, reason in reasons.items():
        register_algorithm(adapt(cls), name=cls.__name__)
        assert reason in trial(cls.__name__)[1]


def test_a_script_that_clusters_again_is_noticed(tmp_path):
    class Clustered(OfPairs):
        def recluster(self, loader):
            self.clusters = list(loader)

        def saved(self):
            return self.network.state_dict()

    (tmp_path / "train.py").write_text(
        "algorithm.update(x)\nalgorithm.recluster(y)\nalgorithm.saved()\n"
    )
    assert undriven(Clustered, tmp_path) == ["recluster"]
    assert undriven(Clustered, None) == []
    assert undriven(OfPairs, tmp_path) == []
