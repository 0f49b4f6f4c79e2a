"""Naive implementations of the adversarial and contrastive algorithms, see `references`."""

from __future__ import annotations

import copy
import math

import torch
from references import NaiveDANN, NaiveERM, concatenated, mean_loss, sample_loss


def domains_of(minibatches):
    return [e for e, (own, _) in enumerate(minibatches) for _ in own]


class NaiveCDANN(NaiveDANN):
    compared = ("featurizer", "classifier", "discriminator", "class_embeddings")

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.class_embeddings = copy.deepcopy(algorithm.class_embeddings)
        parts = [*naive.discriminator.parameters(), *naive.class_embeddings.parameters()]
        naive.optimizers["d"] = naive.adam(parts, "d")
        return naive

    def update(self, minibatches):
        self.updates += 1
        x, y = concatenated(minibatches)
        domains, labels = domains_of(minibatches), y.tolist()
        features = self.featurizer(x)
        paper = self.hparams.get("fidelity") == "paper"
        classes = len(set(labels)) if paper else max(labels) + 1
        loss, norms = 0, 0
        for n, label in enumerate(labels):
            told = (features[n] + self.class_embeddings.weight[label])[None]
            own = sample_loss(self.discriminator(told)[0], domains[n])
            loss = loss + own / (labels.count(label) * classes)
            penalised = own
            if self.hparams.get("grad_penalty_of") == "softmax":
                probabilities = torch.softmax(self.discriminator(told)[0], 0)
                penalised = sum(probabilities[domain] for domain in domains)
            slope = torch.autograd.grad(penalised, told, create_graph=True)[0]
            norms = norms + (slope**2).sum() / len(labels)
        disc_loss = loss + self.hparams["grad_penalty"] * norms
        rounds = self.hparams["d_steps_per_g_step"]
        if self.updates % (1 + rounds) < rounds:
            return self.apply("d", disc_loss)
        risk = mean_loss(self.classifier(features), y)
        return self.apply("g", risk - self.hparams["lambda"] * disc_loss)


def bottleneck(z, labels, domains, conditional, flipped, drops_by_label):
    """B / (τ / 0.07): over all samples, and their pairs; `z` is divided by the root of τ."""
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        same_class = [j for j in others if labels[j] == labels[i]]
        support = same_class if conditional else others
        event = [j for j in support if (domains[j] != domains[i]) == flipped]
        if not event or (drops_by_label and not same_class):
            continue
        weights = {j: torch.exp(z[i] @ z[j]) for j in support}
        probability = sum(weights[j] for j in event) / sum(weights.values())
        terms.append(torch.log(probability) * (-1 if flipped else 1))
    return sum(terms) / len(terms) if terms else z.sum() * 0


class NaiveCAD(NaiveERM):
    conditional = False

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        if algorithm.hparams["is_project"]:
            naive.project = copy.deepcopy(algorithm.project)
            naive.compared = (*cls.compared, "project")
            naive.new_optimizer()
        return naive

    def parameters(self):
        project = getattr(self, "project", None)
        return super().parameters() + (list(project.parameters()) if project else [])

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        features = self.featurizer(x)
        z = self.project(features) if self.hparams["is_project"] else features
        if self.hparams["is_normalized"]:
            z = torch.stack([row / (row**2).sum().sqrt() for row in z])
        temperature = self.hparams["temperature"]
        drops = not self.conditional and self.hparams.get("fidelity", "domainbed") == "domainbed"
        penalty = (temperature / 0.07) * bottleneck(
            z / math.sqrt(temperature),
            *(y.tolist(), domains_of(minibatches)),
            *(self.conditional, self.hparams["is_flipped"], drops),
        )
        risk = mean_loss(self.classifier(features), y)
        return self.step(risk + self.hparams["lmbda"] * penalty)


class NaiveCondCAD(NaiveCAD):
    conditional = True


NAIVE = {"CDANN": NaiveCDANN, "CAD": NaiveCAD, "CondCAD": NaiveCondCAD}
