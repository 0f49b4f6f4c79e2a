"""Colored MNIST in the setup of IRM, against a reference written from the papers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.core.settings import load
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.experiments.irm_colored_mnist.restart import (
    COLOR_FLIPS,
    PENALTIES,
    ColoredImages,
    Network,
    accuracy,
    forward_pass,
    make_domains,
    read_images,
    run_restart,
    seed_of,
    train,
)
from domainbed.experiments.irm_colored_mnist.results import published_values, table, to_text
from domainbed.experiments.irm_colored_mnist.settings import Config, Settings

REPOSITORY = Path(__file__).parents[2]
ALGORITHMS = ("ERM", "IRM", "VREx", "Fishr", "Fishr-offdiagonal", "Fishr-uncentred")
SMALL = Settings(steps=8, hidden_dim=5, lr=0.01, penalty_weight=37.0, anneal_step=4)


def random_images(n=24, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, size, size), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (n,), generator=generator)


class TestData:
    def test_pixels_and_colours_are_reproduced_from_the_draws(self):
        images, digits = random_images(600, size=4)
        generator = torch.Generator().manual_seed(seed_of("data", 3))
        order = torch.randperm(500, generator=generator).tolist()
        groups = (order[::2], order[1::2], range(500, 600))
        domains = make_domains(images, digits, restart=3, label_flip=0.25)
        for domain, group, flip in zip(domains, groups, (0.2, 0.1, 0.9), strict=True):
            label_draws = torch.rand(len(group), generator=generator).tolist()
            color_draws = torch.rand(len(group), generator=generator).tolist()
            expected = {0: [], 1: []}
            for index, label_draw, color_draw in zip(group, label_draws, color_draws, strict=True):
                label = int((digits[index] < 5).item() != (label_draw < 0.25))
                color = int(label != (color_draw < flip))
                channels = np.zeros((2, 16), dtype=np.float32)
                channels[color] = images[index].numpy().reshape(16) / np.float32(255)
                expected[color].append((channels.reshape(32), label))
            rows = expected[0] + expected[1]
            assert domain.color_sizes == (len(expected[0]), len(expected[1]))
            np.testing.assert_array_equal(domain.colored().numpy(), [x for x, _ in rows])
            np.testing.assert_array_equal(domain.labels.numpy(), [[y] for _, y in rows])

    def test_grey_images_are_in_both_channels(self):
        test = make_domains(*random_images(60), restart=0)[2]
        red, green = test.gray().chunk(2, dim=1)
        assert torch.equal(red, test.images)
        assert torch.equal(green, test.images)
        first, second = test.colored().chunk(2, dim=1)
        assert torch.equal(first + second, test.images)

    def test_blocks_are_the_images_in_order(self):
        images = torch.rand(3000, 4)
        blocks = ColoredImages(images, torch.zeros(3000, 1), (1100, 1900)).blocks()
        assert [(color, len(x)) for color, x in blocks] == [(0, 1024), (0, 76), (1, 1024), (1, 876)]
        assert torch.equal(torch.cat([x for _, x in blocks]), images)

    def test_a_colour_without_images(self):
        images = torch.rand(4, 9)
        domain = ColoredImages(images, torch.zeros(4, 1), (0, 4))
        network = Network(pixels=9, hidden_dim=5, seed=1)
        logits = forward_pass(network, [domain]).logits
        torch.testing.assert_close(logits, network(domain.colored()))

    @pytest.mark.parametrize("label_flip", [0.0, 0.25])
    def test_frequencies(self, label_flip):
        n = 60_000
        digits = torch.arange(n) % 10
        images = digits.to(torch.uint8)[:, None, None] + torch.zeros(1, 1, 1, dtype=torch.uint8)
        domains = make_domains(images, digits, restart=1, label_flip=label_flip)
        assert [len(domain.labels) for domain in domains] == [25_000, 25_000, 10_000]
        for domain, flip in zip(domains, COLOR_FLIPS, strict=True):
            shown = (domain.images * 255).round()
            wrong = (domain.labels.bool() != (shown < 5)).double().mean()
            colors = torch.arange(len(shown)) >= domain.color_sizes[0]
            differ = (domain.labels.squeeze(1).bool() != colors).double().mean()
            assert wrong == pytest.approx(label_flip, abs=0.015 * (label_flip > 0))
            assert differ == pytest.approx(flip, abs=0.015)

    def test_algorithms_share_what_restarts_do_not(self):
        images, digits = random_images(120)
        first, again, other = (make_domains(images, digits, restart=r)[0] for r in (0, 0, 1))
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)

    def test_too_few_images(self):
        with pytest.raises(UserError, match="5 images: expected at least 6"):
            make_domains(*random_images(5), restart=0)

    def test_real_images(self, mnist_dir):
        images, digits = read_images(str(mnist_dir))
        every, every_digit = DATASETS["ColoredMNIST"].read(str(mnist_dir))
        assert images.shape == (60_000, 14, 14)
        for row, column in ((0, 0), (5, 7), (13, 13)):
            pixels = every[:60_000, 2 * row, 2 * column]
            assert torch.equal(images[:, row, column], pixels)
        assert torch.equal(digits, every_digit[:60_000])


class Reference:
    """The whole update on (n, 2P) inputs: a loop over samples, one gradient each."""

    def __init__(self, network, domains, algorithm, settings):
        self.parameters = [p.detach().clone().requires_grad_() for p in network.parameters()]
        self.data = [(d.colored(), d.labels.squeeze(1)) for d in domains]
        self.algorithm, self.settings = algorithm, settings
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.lr)

    def risk(self, x, y, scale=1.0):
        w1, b1, w2, b2, w3, b3 = self.parameters
        hidden = torch.clamp(w1 @ x + b1, min=0)
        logit = (w3 @ torch.clamp(w2 @ hidden + b2, min=0) + b3).squeeze() * scale
        return torch.log(1 + torch.exp(-logit)) if y else torch.log(1 + torch.exp(logit))

    def mean_risk(self, domain, scale=1.0):
        return sum(self.risk(x, y, scale) for x, y in zip(*domain, strict=True)) / len(domain[1])

    def gradients(self, domain):
        rows = []
        for x, y in zip(*domain, strict=True):
            gradient = torch.autograd.grad(self.risk(x, y), self.parameters[-2:], create_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradient]))
        return torch.stack(rows)

    def penalty(self):
        if self.algorithm == "ERM":
            return 0.0
        if self.algorithm == "VREx":
            first, second = (self.mean_risk(domain) for domain in self.data)
            return (first - second) ** 2
        if self.algorithm == "IRM":
            squares = []
            for domain in self.data:
                scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
                risk = self.mean_risk(domain, scale)
                squares.append(torch.autograd.grad(risk, scale, create_graph=True)[0] ** 2)
            return sum(squares) / 2
        first, second = (self.statistic(self.gradients(domain)) for domain in self.data)
        mean = (first + second) / 2
        return ((first - mean) ** 2).sum() + ((second - mean) ** 2).sum()

    def statistic(self, rows):
        centred = rows - rows.mean(0)
        if self.algorithm == "Fishr":
            return (centred**2).sum(0) / len(rows)
        if self.algorithm == "Fishr-uncentred":
            return (rows**2).sum(0) / len(rows)
        return sum(torch.outer(row, row) for row in centred) / len(rows)

    def update(self, step):
        settings = self.settings
        loss = sum(self.mean_risk(domain) for domain in self.data) / 2
        loss = loss + settings.l2_weight * sum((p**2).sum() for p in self.parameters)
        if self.algorithm != "ERM":
            weight = 1.0 if step < settings.anneal_step else settings.penalty_weight
            loss = loss + weight * self.penalty()
            if weight > 1:
                loss = loss / weight
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_are_those_of_the_reference(algorithm):
    training = [d.to(torch.float64) for d in make_domains(*random_images(24), restart=2)[:2]]
    assert all(min(domain.color_sizes) > 0 for domain in training)
    network = Network(pixels=9, hidden_dim=5, seed=1).double()
    start = copy.deepcopy(network)
    reference = Reference(network, training, algorithm, SMALL)
    for step in range(SMALL.steps):
        reference.update(step)
    taken = []
    train(network, training, algorithm, SMALL, taken.append)
    assert taken == list(range(1, SMALL.steps + 1))
    for mine, expected, before in zip(
        network.parameters(), reference.parameters, start.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(mine, before, rtol=0, atol=1e-3)


def test_the_reference_covers_all_algorithms():
    assert tuple(PENALTIES) == ALGORITHMS


def test_network():
    network = Network(pixels=196, hidden_dim=390, seed=5)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(390, 392), (390,), (390, 390), (390,), (1, 390), (1,)]
    for layer in (network.first, network.second, network.classifier):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not layer.bias.any()
    assert not torch.equal(network.first.weight, Network(196, 390, seed=6).first.weight)


def test_accuracy():
    labels = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    logits = torch.tensor([[-1.0], [0.0], [0.5], [-0.5]])
    assert accuracy(torch.nn.Identity(), logits, labels) == 0.75


def test_run_restart():
    images, digits = random_images(60)
    result = run_restart(SMALL, "Fishr", 4, images, digits)
    again = run_restart(SMALL, "Fishr", 4, images, digits)
    other = run_restart(SMALL, "ERM", 4, images, digits)
    assert {**result, "seconds": 0} == {**again, "seconds": 0}
    assert result["seeds"] == other["seeds"]
    assert result["settings"]["anneal_step"] == 4
    assert all(0 <= result[name] <= 1 for name in ("train_acc", "test_acc", "gray_test_acc"))
    with pytest.raises(UserError, match="unknown algorithm 'fishr'"):
        run_restart(SMALL, "fishr", 4, images, digits)


def test_accuracies_of_a_restart_are_those_of_its_network():
    """On images whose label is their brightness, what was learnt is told apart from chance."""
    digits = torch.arange(120) % 10
    images = ((digits < 5) * 255).to(torch.uint8)[:, None, None].repeat(1, 2, 2)
    settings = Settings(steps=150, hidden_dim=8, lr=0.02, label_flip=0.0)
    result = run_restart(settings, "ERM", 0, images, digits)
    assert (result["train_acc"], result["gray_test_acc"]) == (1.0, 1.0)


@pytest.mark.slow
def test_real_mnist(mnist_dir):
    images, digits = read_images(str(mnist_dir))
    result = run_restart(Settings(steps=60), "ERM", 0, images, digits)
    assert result["train_acc"] > 0.83  # the colour alone gives 0.85
    assert result["test_acc"] < 0.25


class TestConfig:
    def test_defaults_are_the_published_values(self):
        config = load(Config, REPOSITORY / "configs" / "irm_colored_mnist.yaml")
        assert config == Config()
        assert config.restarts == tuple(range(10))
        assert config.settings == Settings()

    def test_flags_win(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("algorithms: Fishr\nsteps: 7\nrestarts: [4, 2]\n")
        config = load(Config, file, {"steps": 9})
        assert (config.algorithms, config.steps, config.restarts) == (("Fishr",), 9, (4, 2))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("restarts: 2\nstep: 3", "line 2, field 'step': unknown field. Did you mean 'steps'"),
            ("label_flip: 1.5", "line 1, field 'label_flip': expected a number from 0 on, below 1"),
            ("lr: -1", "field 'lr': expected a number from 0 on, below 1e\\+30, found -1"),
            ("lr: .nan", "field 'lr': expected a number from 0 on, below 1e\\+30, found nan"),
            ("algorithms: [ERM, Fish]", "line 1.*unknown algorithm 'Fish'. Did you mean 'Fishr'"),
            ("jobs: 0", "expected a whole number from 1 on, found 0"),
            ("- 3", "line 1: expected fields with values"),
        ],
    )
    def test_errors_name_the_place(self, text, message, tmp_path):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load(Config, tmp_path / "mine.yaml")
        with pytest.raises(UserError, match=r"^--steps: expected a whole number from 1 on"):
            load(Config, None, {"steps": 0})

    def test_settings_have_folders_of_their_own(self):
        digests = {Settings(**change).digest() for change in ({}, {"steps": 7}, {"label_flip": 0})}
        assert len(digests) == 3

    def test_a_folder_of_results_keeps_its_name(self):
        assert Settings().digest() == "53baa6b9a32e"
        assert Settings(label_flip=0, steps=7).digest() == "e14853929b2d"


def made_up_results(label_flip=0.25, **changed):
    def result(algorithm, restart, test_acc):
        return {
            "algorithm": algorithm,
            "restart": restart,
            "settings": Settings(label_flip=label_flip, **changed).identity(),
            "seeds": {"data": 11 + restart, "initialisation": 21 + restart},
            "train_acc": 0.8,
            "test_acc": test_acc,
            "gray_test_acc": 0.7,
            "seconds": 30.0 + restart,
        }

    return [result("Fishr", 0, 0.6), result("Fishr", 2, 0.7), result("Fishr-uncentred", 0, 0.5)]


class TestTable:
    def test_values(self):
        frame = table(made_up_results()).set_index("algorithm")
        fishr = frame.loc["Fishr"]
        assert (fishr["restarts"], fishr["seconds"]) == (2, 31.0)
        assert fishr["test_acc"] == pytest.approx(65.0)
        assert fishr["test_acc_std"] == pytest.approx(5.0)  # divided by n
        assert (fishr["published_test_acc"], fishr["published_test_acc_std"]) == (69.5, 1.0)
        assert np.isnan(frame.loc["Fishr-uncentred"]["published_test_acc"])

    def test_published_values(self):
        published = published_values(0.25).set_index("algorithm")["published_test_acc"]
        assert dict(published) == {"ERM": 14.0, "IRM": 65.6, "VREx": 67.2, "Fishr": 69.5}
        assert published_values(0.0) is None
        assert "published_test_acc" not in table(made_up_results(label_flip=0.0))

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"steps": 500}, "steps is 500 (the paper's: 501)"),
            ({"lr": 0.001}, "lr is 0.001 (the paper's: 0.0004898536566546834)"),
            ({"label_flip": 0.0}, "there are none for label_flip 0.0"),
        ],
    )
    def test_published_values_stand_beside_the_papers_settings_only(self, changed, reason):
        results = made_up_results(**changed)
        assert "published_test_acc" not in table(results)
        assert reason in " ".join(to_text(results, "text").split())
        assert "No published values" not in to_text(made_up_results(), "text")

    def test_text_and_markdown(self):
        lines = to_text(made_up_results(), "text").splitlines()
        assert lines[1].split("  ")[0] == "Algorithm"
        assert "65.0 +/- 5.0  69.5 +/- 1.0" in lines[2]
        assert "50.0 +/- 0.0  -" in lines[3]
        assert lines[-1] == "  Seeds (initialisation) by restart: 0: 21, 2: 23."
        assert "| 65.0 ± 5.0 | 69.5 ± 1.0 |" in to_text(made_up_results(), "markdown")

    def test_csv_and_json(self):
        header, first, _ = to_text(made_up_results(), "csv").splitlines()
        assert header.startswith("algorithm,restarts,train_acc,train_acc_std,test_acc")
        assert first.startswith("Fishr,2,80.0,0.0,65.0,")
        parsed = json.loads(to_text(made_up_results(), "json"))
        assert parsed["table"][0]["published_test_acc"] == 69.5
        assert parsed["table"][1]["published_test_acc"] is None
        assert parsed["results"] == made_up_results()

    def test_nothing_yet(self):
        assert to_text([], "csv").strip() == ""
