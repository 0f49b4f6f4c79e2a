"""Naive implementations of the methods that mix samples, or look at more than one to predict."""

from __future__ import annotations

import copy

import torch
from references import NaiveERM, concatenated, mean_loss, sample_loss


def naive_quantile(values, quantile):
    """Linear interpolation between the sorted numbers."""
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class NaiveDrawing(NaiveERM):
    """One that draws what the algorithm draws, from a copy of its source."""

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.draws = copy.deepcopy(algorithm.draws)
        return naive


class NaiveMixup(NaiveDrawing):
    def update(self, minibatches):
        order = self.draws.permutation(len(minibatches)).tolist()
        alpha, total = self.hparams["mixup_alpha"], 0
        for place, i in enumerate(order):
            (x_i, y_i) = minibatches[i]
            (x_j, y_j) = minibatches[order[(place + 1) % len(order)]]
            weight = self.draws.beta(alpha, alpha)
            losses = []
            for n in range(min(len(y_i), len(y_j))):
                mixed = weight * x_i[n] + (1 - weight) * x_j[n]
                logits = self.classifier(self.featurizer(mixed[None]))[0]
                losses.append(
                    weight * sample_loss(logits, y_i[n])
                    + (1 - weight) * sample_loss(logits, y_j[n])
                )
            total = total + sum(losses) / len(losses) / len(order)
        return self.step(total)


class NaiveRSC(NaiveERM):
    def update(self, minibatches):
        x, y = concatenated(minibatches)
        features = self.featurizer(x)
        masks, lost = [], []
        for z, label in zip(features, y, strict=True):
            z = z.detach().requires_grad_()
            logits = self.classifier(z[None])[0]
            gradient = torch.autograd.grad(logits[label], z)[0].tolist()
            limit = naive_quantile(gradient, 1 - self.hparams["rsc_f_drop_factor"])
            mask = torch.tensor([float(g < limit) for g in gradient], dtype=z.dtype)
            muted = self.classifier((z * mask)[None])[0]
            masks.append(mask)
            lost.append((logits.softmax(0)[label] - muted.softmax(0)[label]).item())
        limit = naive_quantile(lost, 1 - self.hparams["rsc_b_drop_factor"])
        masks = [
            torch.ones_like(mask) if own < limit else mask
            for mask, own in zip(masks, lost, strict=True)
        ]
        return self.step(mean_loss(self.classifier(features * torch.stack(masks)), y))


class NaiveMTL(NaiveDrawing):
    averages = None

    def is_paper(self):
        return self.hparams.get("fidelity") == "paper"

    def update(self, minibatches):
        total = 0
        for domain, (x, y) in enumerate(minibatches):
            z = self.featurizer(x)
            embedding = self.moved(domain, sum(row for row in z) / len(z)).repeat(len(z), 1)
            if not self.is_paper():
                embedding = self.draws.normal(*z.shape).to(z)
            total = total + mean_loss(self.classifier(torch.cat([z, embedding], dim=1)), y)
        return self.step(total)

    def moved(self, domain, mean):
        if self.averages is None:
            self.averages = [torch.zeros_like(mean) for _ in range(self.num_domains)]
        share = self.hparams["mtl_ema"]
        value = share * mean + (1 - share) * self.averages[domain]
        self.averages[domain] = value.detach()
        return value


class NaiveARM(NaiveERM):
    compared = ("featurizer", "classifier", "context_net")
    inputs = (1, 4, 4)

    @classmethod
    def twin(cls, algorithm, num_domains):
        cls.of_algorithm = algorithm.context_net
        return super().twin(algorithm, num_domains)

    def parameters(self):
        trained = self.hparams.get("fidelity") == "paper"
        return [*super().parameters(), *(self.context_net.parameters() if trained else ())]

    def new_optimizer(self):
        self.context_net = copy.deepcopy(self.of_algorithm)
        super().new_optimizer()

    def groups(self, minibatches):
        if self.hparams.get("fidelity") == "paper":
            return [len(y) for _, y in minibatches]
        size, n = self.hparams["batch_size"], sum(len(y) for _, y in minibatches)
        return [size] * (n // size) if n % size == 0 else [n]

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        maps, adapted, start = self.context_net(x), [], 0
        for size in self.groups(minibatches):
            mean = sum(maps[n] for n in range(start, start + size)) / size
            adapted += [torch.cat([x[n], mean]) for n in range(start, start + size)]
            start += size
        return self.step(self.domain_loss(torch.stack(adapted), y))


class NaiveSelfReg(NaiveDrawing):
    compared = ("featurizer", "classifier", "cdpl")

    @classmethod
    def twin(cls, algorithm, num_domains):
        cls.of_algorithm = algorithm.cdpl
        return super().twin(algorithm, num_domains)

    def parameters(self):
        trained = self.hparams.get("fidelity") == "paper"
        return [*super().parameters(), *(self.cdpl.parameters() if trained else ())]

    def new_optimizer(self):
        self.cdpl = copy.deepcopy(self.of_algorithm)
        super().new_optimizer()

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        share = self.draws.beta(0.5, 0.5)
        order = sorted(range(len(y)), key=lambda n: y[n].item())  # by class, as in DomainBed
        x, y = x[order], y[order]
        z = self.featurizer(x)
        logits, projected = self.classifier(z), self.cdpl(z)
        first, second, start = [], [], 0
        for label in sorted(set(y.tolist())):
            n = int((y == label).sum())
            first += (self.draws.permutation(n) + start).tolist()
            second += (self.draws.permutation(n) + start).tolist()
            start += n

        def apart(own, others):
            alone = [((own[n] - others[i]) ** 2).mean() for n, i in enumerate(first)]
            both = [share * others[i] + (1 - share) * others[j] for i, j in zip(first, second)]
            mixed = [((own[n] - each) ** 2).mean() for n, each in enumerate(both)]
            return share * sum(alone) / len(alone) + (1 - share) * sum(mixed) / len(mixed)

        risk = mean_loss(logits, y)
        penalty = apart(logits, logits) + 0.3 * apart(z, projected)
        return self.step(risk + min(risk.item(), 1.0) * penalty)


NAIVE = {
    "Mixup": NaiveMixup,
    "MTL": NaiveMTL,
    "ARM": NaiveARM,
    "RSC": NaiveRSC,
    "SelfReg": NaiveSelfReg,
}
