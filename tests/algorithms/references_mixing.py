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


NAIVE = {"Mixup": NaiveMixup, "RSC": NaiveRSC}
