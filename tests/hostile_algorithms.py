"""Algorithms as other people write them: state in every place that Python allows."""

from __future__ import annotations

import copy
import itertools
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import Algorithm

LR = 0.05
Pair = namedtuple("Pair", "first second")


class Base(Algorithm):
    """Linear, on vectors; a subclass adds its own bookkeeping in `setup` and `update`."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = nn.Linear(input_shape[0], 5)
        self.classifier = nn.Linear(5, num_classes)
        self.network = nn.Sequential(self.featurizer, nn.Tanh(), self.classifier)
        self.setup()

    def setup(self):
        self.optimizer = self.adam(self.network.parameters())

    def adam(self, parameters):
        return torch.optim.Adam(parameters, lr=LR)

    def risk(self, minibatches):
        x, y = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
        return F.cross_entropy(self.predict(x), y)

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    def update(self, minibatches, unlabeled=None):
        return self.step(self.optimizer, self.weight() * self.risk(minibatches))

    def weight(self):
        return 1.0

    def predict(self, x):
        return self.network(x)


class OddOptimizers(Base):
    """One optimizer in a dict, one in a list, one momentum SGD under an odd name."""

    def setup(self):
        self.by_part = {"phi": self.adam(self.featurizer.parameters())}
        self.others = [self.adam(self.classifier.parameters())]
        self.zz_late = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=0.9)

    def update(self, minibatches, unlabeled=None):
        for optimizer in (self.by_part["phi"], self.others[0], self.zz_late):
            metrics = self.step(optimizer, self.risk(minibatches))
        return metrics


class Scheduler(Base):
    def setup(self):
        super().setup()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.3)

    def update(self, minibatches, unlabeled=None):
        metrics = super().update(minibatches)
        self.scheduler.step()
        return metrics


class CosineScheduler(Scheduler):
    def setup(self):
        super().setup()
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=7)


class LambdaScheduler(Scheduler):
    def setup(self):
        super().setup()
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: 1 / (1 + t))


class Queue(Base):
    """A deque with a bound, a defaultdict, an OrderedDict and a Counter weight the loss."""

    def setup(self):
        super().setup()
        self.queue = deque([1.0], maxlen=3)
        self.seen = defaultdict(int)
        self.recent = OrderedDict()
        self.counts = Counter()

    def weight(self):
        self.queue.append(len(self.queue) + self.seen["steps"])
        self.seen["steps"] += 1
        self.recent[self.seen["steps"]] = 1.0
        self.counts["updates"] += 1
        return sum(self.queue) + len(self.recent) + self.counts["updates"]


class SharedQueue(Base):
    """A helper fills the same deque that the algorithm reads."""

    class Filler:
        def __init__(self, queue):
            self.queue = queue

    def setup(self):
        super().setup()
        self.queue = deque(maxlen=9)
        self.filler = self.Filler(self.queue)

    def weight(self):
        self.filler.queue.append(1.0)
        return 1.0 + len(self.queue)


class Helper(Base):
    """DomainBed's moving average: an object with a dict of tensors, and a counter."""

    class MovingAverage:
        def __init__(self, decay):
            self.decay, self.averages, self.updates = decay, {}, 0

        def update(self, values):
            self.updates += 1
            for name, value in values.items():
                old = self.averages.get(name, torch.zeros_like(value))
                self.averages[name] = self.decay * old + (1 - self.decay) * value
            return self.averages

    def setup(self):
        super().setup()
        self.average_per_domain = [self.MovingAverage(0.8) for _ in range(2)]

    def update(self, minibatches, unlabeled=None):
        for domain, average in enumerate(self.average_per_domain):
            average.update({"mean": minibatches[domain][0].mean(0)})
        shift = sum(a.averages["mean"].sum() * a.updates for a in self.average_per_domain)
        return self.step(self.optimizer, self.risk(minibatches) * (1 + shift.abs()))


class CallableHelper(Base):
    """A moving average that is called."""

    class Average:
        def __init__(self):
            self.value = 1.0

        def __call__(self, new):
            self.value = 0.5 * self.value + 0.5 * new
            return self.value

    def setup(self):
        super().setup()
        self.average = self.Average()

    def weight(self):
        return self.average(3.0)


class PlainTensors(Base):
    """A tensor that is no buffer, one that is not persistent, a NumPy array and scalar."""

    def setup(self):
        super().setup()
        self.plain = torch.zeros(())
        self.register_buffer("hidden", torch.ones(()), persistent=False)
        self.array, self.scalar = np.ones(2), np.float32(0.1)

    def weight(self):
        self.plain = self.plain + 1
        self.hidden = self.hidden * 1.1
        self.array[0] += 0.25
        self.scalar = self.scalar * np.float32(1.3)
        return self.plain + self.hidden + float(self.array.sum()) + float(self.scalar)


class RandomSources(Base):
    """Random sources of its own: both of NumPy's kinds, Python's and PyTorch's."""

    def setup(self):
        import random

        super().setup()
        self.legacy = np.random.RandomState(3)
        self.modern = np.random.default_rng(4)
        self.python = random.Random(5)
        self.torch = torch.Generator().manual_seed(6)

    def weight(self):
        drawn = self.legacy.rand() + self.modern.random() + self.python.random()
        return drawn + torch.rand((), generator=self.torch)


class ParametersInAList(Base):
    """Parameters that PyTorch does not see; their optimizer does."""

    def setup(self):
        super().setup()
        self.scales = [nn.Parameter(torch.ones(())), torch.zeros((), requires_grad=True)]
        self.scale_optimizer = self.adam(self.scales)

    def update(self, minibatches, unlabeled=None):
        loss = self.risk(minibatches) * self.scales[0].exp() + self.scales[1].square()
        loss = loss + self.scales[1] * 0.3
        self.scale_optimizer.zero_grad()
        metrics = self.step(self.optimizer, loss)
        self.scale_optimizer.step()
        return metrics


class Recreated(Base):
    """After two updates, an Adam over other parameters, with other settings."""

    def setup(self):
        super().setup()
        self.calls = 0

    def update(self, minibatches, unlabeled=None):
        self.calls += 1
        if self.calls == 3:
            self.optimizer = torch.optim.Adam(
                self.classifier.parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=0.1
            )
        return super().update(minibatches)


class RecreatedSameCount(Recreated):
    """As many parameters before and after, but others."""

    def setup(self):
        self.optimizer = self.adam(self.featurizer.parameters())
        self.calls = 0


class RecreatedAsSGD(Recreated):
    def update(self, minibatches, unlabeled=None):
        if self.calls == 2:
            self.calls = 10
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        return super().update(minibatches)


class InnerLoop(Base):
    """Fish as DomainBed has it: a clone and its Adam, made anew in every update."""

    def setup(self):
        self.optimizer_inner_state = None

    def update(self, minibatches, unlabeled=None):
        self.network_inner = copy.deepcopy(self.network)
        self.optimizer_inner = self.adam(self.network_inner.parameters())
        if self.optimizer_inner_state is not None:
            self.optimizer_inner.load_state_dict(self.optimizer_inner_state)
        for x, y in minibatches:
            metrics = self.step(self.optimizer_inner, F.cross_entropy(self.network_inner(x), y))
        self.optimizer_inner_state = self.optimizer_inner.state_dict()
        meta, inner = self.network.state_dict(), self.network_inner.state_dict()
        self.network.load_state_dict({k: meta[k] + 0.5 * (inner[k] - meta[k]) for k in meta})
        return metrics


class LazyModule(Base):
    """A teacher that is copied from the student at the second update, and averaged from then."""

    def setup(self):
        super().setup()
        self.teacher, self.calls = None, 0

    def update(self, minibatches, unlabeled=None):
        self.calls += 1
        metrics = self.step(self.optimizer, self.weight() * self.risk(minibatches))
        if self.calls == 2:
            self.teacher = copy.deepcopy(self.network)
        return metrics

    def weight(self):
        if self.teacher is None:
            return 1.0
        with torch.no_grad():
            for mine, other in zip(
                self.teacher.parameters(), self.network.parameters(), strict=True
            ):
                mine.mul_(0.9).add_(0.1 * other)
        return 1 + sum(p.abs().sum() for p in self.teacher.parameters())


class HiddenModule(Base):
    """A teacher in a list, where PyTorch does not see it."""

    def setup(self):
        super().setup()
        self.teachers = [copy.deepcopy(self.network)]

    def weight(self):
        with torch.no_grad():
            for mine, other in zip(
                self.teachers[0].parameters(), self.network.parameters(), strict=True
            ):
                mine.mul_(0.9).add_(0.1 * other)
        return 1 + sum(p.detach().abs().sum() for p in self.teachers[0].parameters())


class LateParameter(Base):
    """A parameter that the second update adds, to the optimizer as well."""

    def setup(self):
        super().setup()
        self.scale, self.calls = None, 0

    def update(self, minibatches, unlabeled=None):
        self.calls += 1
        if self.calls == 2:
            del self.scale
            self.scale = nn.Parameter(torch.zeros(()))
            self.optimizer.add_param_group({"params": [self.scale], "lr": 0.3})
        return super().update(minibatches)

    def weight(self):
        return 1.0 if self.scale is None else (self.scale + self.calls).exp()


class ReplacedModule(Base):
    """A module whose place is taken by one of another class, which learns from then on."""

    def setup(self):
        super().setup()
        self.extra, self.calls = nn.Sequential(nn.Identity()), 0

    def update(self, minibatches, unlabeled=None):
        self.calls += 1
        if self.calls == 2:
            self.extra = nn.Bilinear(1, 1, 1)
            with torch.no_grad():
                for parameter in self.extra.parameters():
                    parameter.fill_(0.1)
            parameters = [*self.network.parameters(), *self.extra.parameters()]
            self.optimizer = self.adam(parameters)
        return super().update(minibatches)

    def weight(self):
        one = torch.ones(1, 1)
        return self.extra(one, one).exp().squeeze() if self.calls > 1 else 1.0


class HelpersByName(Helper):
    """Helpers that a defaultdict makes when they are first asked for."""

    def setup(self):
        super().setup()
        self.by_name = defaultdict(lambda: Helper.MovingAverage(0.5))

    def weight(self):
        return self.by_name["risk"].update({"one": torch.ones(())})["one"].item()

    def update(self, minibatches, unlabeled=None):
        return Base.update(self, minibatches)


class Constants(Queue):
    """What inspection cannot see, but no update changes."""

    class Setting:
        __slots__ = ("decay",)

    def setup(self):
        super().setup()
        self.setting, self.pair = self.Setting(), Pair(1, 2.0)
        self.setting.decay = 0.5
        self.fixed = frozenset({1})
        self.place, self.sizes, self.kind = Path("here"), torch.Size([2, 3]), torch.float32


class OptimizerAroundAnother(Base):
    """As sharpness-aware minimisation is written."""

    class Around(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": LR})
            self.inner = torch.optim.Adam(self.param_groups, lr=LR)

        def step(self):
            self.inner.step()

    def setup(self):
        self.optimizer = self.Around(list(self.network.parameters()))


HOSTILE = [
    cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Base) and cls is not Base
]


# What no file can bring back, and where it is.


class Slots(Base):
    where = "counter"

    class Counter:
        __slots__ = ("count",)

    def setup(self):
        super().setup()
        self.counter = self.Counter()
        self.counter.count = 0

    def weight(self):
        self.counter.count += 1
        return self.counter.count


class Iterating(Base):
    where = "numbers[0]"

    def setup(self):
        super().setup()
        self.numbers = [itertools.count(1)]

    def weight(self):
        return next(self.numbers[0])


class Generating(Base):
    where = "helper.numbers"

    class Numbers:
        def __init__(self):
            self.numbers = (n for n in range(1, 99))

    def setup(self):
        super().setup()
        self.helper = self.Numbers()

    def weight(self):
        return next(self.helper.numbers)


class OwnList(Base):
    where = "window['last']"

    class Window(list): ...

    def setup(self):
        super().setup()
        self.window = {"last": self.Window()}

    def weight(self):
        self.window["last"].append(1.0)
        return sum(self.window["last"])


class OwnTuple(Base):
    where = "pair"

    def setup(self):
        super().setup()
        self.pair = Pair(1.0, 2.0)

    def weight(self):
        self.pair = Pair(self.pair.second, self.pair.first + 1)
        return self.pair.first


class KeyedByObjects(Base):
    where = "counts"

    def setup(self):
        super().setup()
        self.counts = {}

    def weight(self):
        self.counts[self.classifier.bias] = self.counts.get(self.classifier.bias, 0) + 1
        return self.counts[self.classifier.bias]


class LateHelper(Base):
    where = "average"

    def setup(self):
        super().setup()
        self.average = None

    def weight(self):
        self.average = self.average or CallableHelper.Average()
        return self.average(3.0)


class LateHelpersInAList(Base):
    where = "averages[0]"

    def setup(self):
        super().setup()
        self.averages = []

    def weight(self):
        self.averages.append(CallableHelper.Average())
        return self.averages[0](3.0)


class LateHiddenModule(HiddenModule):
    where = "teachers[0]"

    def setup(self):
        super().setup()
        self.teachers = []

    def weight(self):
        self.teachers = self.teachers or [copy.deepcopy(self.network)]
        return super().weight()


class LateModuleOfAFunction(Base):
    where = "local"

    def weight(self):
        class Local(nn.Linear): ...

        if "local" not in self._modules:
            self.local = Local(1, 1)
        return 1 + self.local.weight.detach().square().sum()


REFUSED = [
    cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Base) and cls is not Base and cls not in HOSTILE
]
