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


class NaiveSagNet(NaiveERM):
    compared = ("featurizer", "classifier", "style_classifier")

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.style_classifier = copy.deepcopy(algorithm.style_classifier)
        naive.draws = copy.deepcopy(algorithm.draws)
        rates = {name: naive.hparams[name] for name in ("lr", "weight_decay")}
        naive.optimizers = {
            name: torch.optim.Adam(getattr(naive, name).parameters(), **rates)
            for name in cls.compared
        }
        return naive

    def randomised(self, features, content):
        weights = self.draws.uniform(len(features), 1).to(features.dtype)
        order = self.draws.permutation(len(features)).tolist()
        rows = []
        for n, partner in enumerate(order):
            (mean, var), (mean_p, var_p) = (
                (row.mean(), ((row - row.mean()) ** 2).sum() / (len(row) - 1))
                for row in (features[n], features[partner])
            )
            if content:
                other = (features[partner] - mean_p) / (var_p + 1e-5).sqrt()
                rows.append(other.detach() * (var + 1e-5).sqrt() + mean)
                continue
            own = (features[n] - mean) / (var + 1e-5).sqrt()
            weight = weights[n, 0]
            mean, var = (weight * a + (1 - weight) * b for a, b in [(mean, mean_p), (var, var_p)])
            rows.append(own * (var + 1e-5).sqrt() + mean)
        return torch.stack(rows)

    def step_of(self, names, loss):
        parts = {name: list(getattr(self, name).parameters()) for name in names}
        for parameters in parts.values():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        for name in names:
            self.optimizers[name].step()
        return loss.item()

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        loss = mean_loss(self.classifier(self.randomised(self.featurizer(x), False)), y)
        first = self.step_of(["featurizer", "classifier"], loss)
        loss = mean_loss(self.style_classifier(self.randomised(self.featurizer(x), True)), y)
        self.step_of(["style_classifier"], loss)
        scores = self.style_classifier(self.randomised(self.featurizer(x), True))
        every = [sample_loss(row, k) for row in scores for k in range(len(row))]
        self.step_of(["featurizer"], self.hparams["sag_w_adv"] * sum(every) / len(every))
        return first


def binary_loss(discriminator, inputs, labels):
    """The mean of −t log σ(D) − (1 − t) log(1 − σ(D)) over samples with labels t."""
    terms = []
    for row, label in zip(inputs, labels, strict=True):
        probability = 1 / (1 + torch.exp(-discriminator(row[None])[0, 0]))
        terms.append(-label * torch.log(probability) - (1 - label) * torch.log(1 - probability))
    return sum(terms) / len(terms)


class NaiveURM(NaiveERM):
    compared = ("featurizer", "classifier", "discriminator")

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.discriminator = copy.deepcopy(algorithm.discriminator)
        naive.draws = copy.deepcopy(algorithm.draws)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        sgd = naive.hparams["urm_discriminator_optimizer"] == "sgd"
        naive.disc_opt = kind["sgd" if sgd else "adam"](
            naive.discriminator.parameters(),
            lr=naive.hparams["urm_discriminator_lr"],
            weight_decay=naive.hparams["weight_decay"],
            **({"momentum": 0.9} if sgd else {}),
        )
        return naive

    def update(self, minibatches):
        x, y = concatenated(minibatches)
        z, weight = self.featurizer(x), self.hparams["urm_adv_lambda"]
        ones, zeros = [1.0] * len(z), [0.0] * len(z)
        fooled = binary_loss(self.discriminator, z, ones)
        first = self.step(mean_loss(self.classifier(z), y) + weight * fooled)
        noise = self.draws.uniform(*z.shape).to(z.dtype)
        if self.hparams["urm_generator_output"] == "tanh":
            noise = 2 * noise - 1
        smoothing = self.hparams["urm_discriminator_label_smoothing"]
        if smoothing:
            ones, zeros = ((smoothing * self.draws.uniform(len(z)).double()) for _ in range(2))
            ones = 1 - smoothing + ones
        told = binary_loss(self.discriminator, noise, ones)
        told = told + weight * binary_loss(self.discriminator, z.detach(), zeros)
        self.disc_opt.zero_grad()
        told.backward()
        self.disc_opt.step()
        return first


def contrastive(features, labels):
    """ADRMX's S as loops over samples, with both weights of one half."""
    rows = [row / (row**2).sum().sqrt() if row.any() else 0 * row for row in features]
    total, alone = 0, 0
    for i, own in enumerate(rows):
        weights = {j: 0.5 * torch.exp(own @ row / 0.07) for j, row in enumerate(rows) if j != i}
        positives = [j for j in weights if labels[j] == labels[i]]
        if not positives:
            alone += 1
            continue
        denominator = sum(weights.values()) + 1e-5
        logarithms = [torch.log(weights[j] / denominator + 1e-5) for j in positives]
        total = total - sum(logarithms) / len(positives)
    return total / (len(rows) - alone + 1)


class NaiveADRMX:
    compared = (
        *("featurizer", "domain_featurizer", "discriminator"),
        *("classifier", "final_classifier", "domain_classifier"),
    )

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = cls()
        naive.hparams, naive.updates = dict(algorithm.hparams), 0
        naive.num_classes = algorithm.num_classes
        for name in (*cls.compared, "draws"):
            setattr(naive, name, copy.deepcopy(getattr(algorithm, name)))
        settings = {"lr": naive.hparams["lr"], "betas": (naive.hparams["beta1"], 0.9)}
        naive.others = [getattr(naive, n) for n in cls.compared if n != "discriminator"]
        naive.disc_opt = torch.optim.Adam(naive.discriminator.parameters(), **settings)
        parameters = [p for module in naive.others for p in module.parameters()]
        naive.gen_opt = torch.optim.Adam(parameters, **settings)
        return naive

    def remix(self, f, f_d, labels, domains):
        total = 0
        for c in range(self.num_classes):
            members = [n for n, label in enumerate(labels) if label == c]
            order = self.draws.permutation(len(members)).tolist()
            if self.hparams.get("fidelity") == "paper":
                order = [members[k] for k in order]
                order = order[:1] + [n for n in order if domains[n] != domains[order[0]]]
            if len(order) < 2:
                continue
            p, q = order[:2]
            total = total + sample_loss(self.classifier((f[p] + f_d[q])[None])[0], labels[p])
        return total / self.num_classes

    def update(self, minibatches):
        self.updates += 1
        x, y = concatenated(minibatches)
        labels, domains, weights = y.tolist(), domains_of(minibatches), self.hparams
        f_l, f_d = self.featurizer(x), self.domain_featurizer(x)
        f = f_l - f_d
        disc_loss = mean_loss(self.discriminator(f), domains)
        rounds = weights["d_steps_per_g_step"]
        if self.updates % (1 + rounds) < rounds:
            loss, optimizer = disc_loss, self.disc_opt
        else:
            optimizer = self.gen_opt
            loss = mean_loss(self.classifier(f_l), y) + mean_loss(self.final_classifier(f), y)
            loss = loss + weights["dclf_lambda"] * mean_loss(self.domain_classifier(f_d), domains)
            loss = loss + weights["rmxd_lambda"] * self.remix(f, f_d, labels, domains)
            both = contrastive(f_l, labels) + contrastive(f, labels)
            loss = loss + weights["cnt_lambda"] * both - weights["disc_lambda"] * disc_loss
        self.disc_opt.zero_grad()
        self.gen_opt.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


NAIVE = {
    "CDANN": NaiveCDANN,
    "CAD": NaiveCAD,
    "CondCAD": NaiveCondCAD,
    "SagNet": NaiveSagNet,
    "URM": NaiveURM,
    "ADRMX": NaiveADRMX,
}
