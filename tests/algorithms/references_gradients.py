"""Naive implementations of the methods that compare, mask or look past gradients of domains."""

from __future__ import annotations

import copy

import torch
from references import NaiveERM, concatenated, mean_loss
from torch import nn
from torch.func import functional_call


def mean(tensors):
    return sum(tensors) / len(tensors)


def signs(tensor):
    return (tensor > 0).to(tensor.dtype) - (tensor < 0).to(tensor.dtype)


class NaiveMasked(NaiveERM):
    """Gradients of each domain in turn, then a mask for each parameter."""

    def update(self, minibatches):
        parameters, losses, gradients = self.parameters(), [], []
        for x, y in minibatches:
            losses.append(self.domain_loss(x, y))
            gradients.append(torch.autograd.grad(losses[-1], parameters))
        for position, parameter in enumerate(parameters):
            of_domains = [row[position] for row in gradients]
            mask = self.mask(of_domains)
            parameter.grad = mask * mean(of_domains) / (1e-10 + mask.sum() / mask.numel())
        self.optimizer.step()
        return mean(losses).item()


class NaiveANDMask(NaiveMasked):
    def mask(self, gradients):
        agreement = mean([signs(g) for g in gradients]).abs()
        return (agreement > self.hparams["tau"] - 1e-6).to(agreement.dtype)


class NaiveSANDMask(NaiveMasked):
    def mask(self, gradients):
        centre, domains = mean(gradients), len(gradients)
        if domains == 1:
            variance = torch.full_like(centre, 1e-17)
        else:
            variance = sum((g - centre) ** 2 for g in gradients) / (domains - 1)
        agreement = mean([signs(g) for g in gradients]).abs()
        mask = torch.tanh(self.hparams["k"] * (agreement - self.hparams["tau"]) / variance)
        return torch.where(mask > 0, mask, torch.zeros_like(mask))


class NaiveIGA(NaiveERM):
    def update(self, minibatches):
        parameters = self.parameters()
        losses = [self.domain_loss(x, y) for x, y in minibatches]
        rows = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(own, parameters, create_graph=True)]
            )
            for own in losses
        ]
        # The paper's mean gradient, with its derivative: it makes no difference.
        spread = sum(((row - mean(rows)) ** 2).sum() for row in rows)
        return self.step(mean(losses) + self.hparams["penalty"] * spread)


class NaiveMLDG(NaiveERM):
    """DomainBed's reading, with clones and real Adams; or the paper's."""

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.draws = copy.deepcopy(algorithm.draws)
        return naive

    def update(self, minibatches):
        order = self.draws.permutation(len(minibatches)).tolist()
        held_out = min(self.hparams["n_meta_test"], len(order) - 1)
        train, test = order[: len(order) - held_out], order[len(order) - held_out :]
        if self.hparams.get("fidelity") == "paper":
            return self.by_paper([minibatches[i] for i in train], [minibatches[j] for j in test])
        if self.hparams.get("mldg_pairs") == "cyclic":
            pairs = [(e, order[(n + 1) % len(order)]) for n, e in enumerate(order)]
        else:
            pairs = [(e, test[n % len(test)]) for n, e in enumerate(train)]
        return self.by_pairs(minibatches, pairs)

    def by_pairs(self, minibatches, pairs):
        parameters = self.parameters()
        total, gradients = 0, [torch.zeros_like(p) for p in parameters]
        for i, j in pairs:
            size = min(len(minibatches[i][0]), len(minibatches[j][0]))
            clone = copy.deepcopy(nn.Sequential(self.featurizer, self.classifier))
            adam = torch.optim.Adam(
                clone.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
            )
            losses = []
            for domain, weight in [(i, 1.0), (j, self.hparams["mldg_beta"])]:
                x, y = minibatches[domain]
                loss = mean_loss(clone(x[:size]), y[:size])
                losses.append(weight * loss.item())
                adam.zero_grad()
                loss.backward()
                for gradient, own in zip(gradients, clone.parameters(), strict=True):
                    gradient += weight * own.grad / len(minibatches)
                adam.step()
            total += sum(losses) / len(minibatches)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return total

    def by_paper(self, train, test):
        network = nn.Sequential(self.featurizer, self.classifier)
        named = dict(network.named_parameters())
        risk = mean([self.domain_loss(x, y) for x, y in train])
        slopes = torch.autograd.grad(risk, list(named.values()), create_graph=True)
        moved = {
            name: value - self.hparams["lr"] * slope
            for (name, value), slope in zip(named.items(), slopes, strict=True)
        }
        after = mean([mean_loss(functional_call(network, moved, (x,)), y) for x, y in test])
        return self.step(risk + self.hparams["mldg_beta"] * after)


class NaiveTRM(NaiveERM):
    compared = ("featurizer", "classifier", "heads")

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.heads = copy.deepcopy(algorithm.heads)
        naive.alpha = 1 - torch.eye(num_domains, dtype=torch.float64)
        return naive

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        features = self.featurizer(x)
        loss = mean_loss(self.classifier(features), y)
        if self.updates < self.hparams["iters"]:
            return self.step(loss)
        z = list(features.split([len(own) for _, own in minibatches]))
        labels = [own for _, own in minibatches]
        self.train_heads(z, labels)
        terms = [self.term(own, z, labels) for own in range(len(z))]
        return self.step(loss + mean(terms))

    def train_heads(self, z, labels):
        for head, own, y in zip(self.heads, z, labels, strict=True):
            if self.hparams["class_balanced"]:
                head.weight.data = self.classifier.weight.data.clone()
            sgd = torch.optim.SGD(head.parameters(), lr=0.1)
            for _ in range(30):
                sgd.zero_grad()
                mean_loss(head(own.detach()), y).backward()
                sgd.step()

    def term(self, own, z, labels):
        head, row = self.heads[own], self.alpha[own]
        row /= row.sum()
        others = [i for i in range(len(z)) if i != own]
        risks = {i: mean_loss(head(z[i]), labels[i]) for i in others}
        # DomainBed multiplies by views that the steps below change before the backward pass.
        views = self.hparams.get("fidelity") == "domainbed"
        transfer = sum(risks[i] * (row[i].data if views else row[i].clone()) for i in others)
        (slope,) = torch.autograd.grad(transfer, head.weight, retain_graph=True)
        loss = mean_loss(head(z[own]), labels[own])
        (own_slope,) = torch.autograd.grad(loss, head.weight, create_graph=True)
        inverse = self.neumann(slope, head, z[own].detach(), labels[own])
        for i in others:
            row[i] *= (self.hparams["groupdro_eta"] * row[i] * risks[i].detach()).exp()
        return transfer - self.hparams["cos_lambda"] * (inverse * own_slope).sum()

    def neumann(self, vector, head, z, y):
        """Through the Hessian as a matrix."""
        shape = head.weight.shape

        def risk(flat):
            return mean_loss(z @ flat.reshape(shape).T + head.bias.detach(), y)

        hessian = torch.autograd.functional.hessian(risk, head.weight.detach().flatten())
        vector = vector.flatten()
        total = vector
        for n in range(10):
            vector = vector - hessian @ vector
            first = n == 0 and self.hparams.get("fidelity") == "domainbed"
            total = 2 * vector if first else total + vector
            if total.abs().max() > 10:
                break
        return total.reshape(shape)


class NaiveTransfer(NaiveERM):
    compared = ("featurizer", "classifier", "adv_classifier")

    def new_optimizer(self):
        super().new_optimizer()
        self.adv_classifier = copy.deepcopy(self.classifier)

    def gap(self, minibatches):
        losses = [mean_loss(self.adv_classifier(self.featurizer(x)), y) for x, y in minibatches]
        values = [loss.item() for loss in losses]
        most, least = values.index(max(values)), values.index(min(values))
        return self.hparams["t_lambda"] * (losses[most] - losses[least])

    def update(self, minibatches):
        untrained = self.hparams["gda"] and self.hparams.get("fidelity") == "domainbed"
        risk = self.domain_loss(*concatenated(minibatches))
        if not untrained:
            self.step(risk)
            self.step(self.gap(minibatches))
        self.adv_classifier = copy.deepcopy(self.classifier)
        others, centre = list(self.adv_classifier.parameters()), list(self.classifier.parameters())
        for _ in range(self.hparams["d_steps_per_g"]):
            slopes = torch.autograd.grad(self.gap(minibatches), others)
            with torch.no_grad():
                for value, slope in zip(others, slopes, strict=True):
                    value += self.hparams["lr_d"] * slope
                apart = sum(((a - c) ** 2).sum() for a, c in zip(others, centre)) ** 0.5
                if apart > self.hparams["delta"]:
                    for value, fixed in zip(others, centre, strict=True):
                        value.copy_(fixed + self.hparams["delta"] / apart * (value - fixed))
        return risk.item()


NAIVE = {
    "MLDG": NaiveMLDG,
    "ANDMask": NaiveANDMask,
    "SANDMask": NaiveSANDMask,
    "IGA": NaiveIGA,
    "TRM": NaiveTRM,
    "Transfer": NaiveTransfer,
}
