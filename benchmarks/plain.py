"""The plain baseline: a run as one writes it first. It uses nothing of this package.

Contiguous tensors of 32 bits, a DataLoader for each domain, ERM by Adam, and all splits evaluated
at each record in batches of 64. As a script it does one run in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset

BATCH = 64


class PlainCNN(nn.Module):
    """The network of small images (Gulrajani and Lopez-Paz 2020, table 7), with its classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 64, 128, 128, 128)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2 if n == 1 else 1, 1) for n, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.classifier = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            x = norm(F.relu(convolution(x)))
        return self.classifier(x.mean(dim=(2, 3)))


def plain_resnet(depth: int, classes: int) -> nn.Module:
    """torchvision's, with the statistics of batch norm frozen, as in the published protocol."""
    from torchvision import models

    network = getattr(models, f"resnet{depth}")(num_classes=classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


class PlainERM:
    """One network and its Adam."""

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        self.network, self.device = network.to(device), device
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def update(self, minibatches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        x = torch.cat([x for x, _ in minibatches]).to(self.device)
        y = torch.cat([y for _, y in minibatches]).to(self.device)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, data: Dataset) -> float:
        self.network.eval()
        right = 0
        for x, y in DataLoader(data, BATCH):
            right += (self.network(x.to(self.device)).argmax(1) == y.to(self.device)).sum().item()
        self.network.train()
        return right / len(data)  # type: ignore[arg-type]


def coloured(images: torch.Tensor, digits: torch.Tensor) -> list[TensorDataset]:
    """Three domains of (n, 2, H, W) from (N, H, W) bytes (Arjovsky et al. 2019, section 5.1)."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    images, digits = images[order], digits[order]

    def flip(bits: torch.Tensor, probability: float) -> torch.Tensor:
        return bits ^ (torch.rand(len(bits), generator=generator) < probability)

    domains = []
    for i, noise in enumerate((0.1, 0.2, 0.9)):
        labels = flip(digits[i::3] < 5, 0.25)
        colours = flip(labels, noise)
        shown = torch.stack([~colours, colours], 1)[:, :, None, None]
        domains.append(TensorDataset(images[i::3].float().div(255)[:, None] * shown, labels.long()))
    return domains


def load(dataset: str, data_dir: str) -> list[TensorDataset]:
    """ColoredMNIST, or ColoredDigits."""
    if dataset == "ColoredMNIST":
        from torchvision.datasets import MNIST

        parts = [MNIST(data_dir, train=train) for train in (True, False)]
        return coloured(torch.cat([p.data for p in parts]), torch.cat([p.targets for p in parts]))
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().byte()
    return coloured(images, torch.from_numpy(digits.target))


def split(domains: list[TensorDataset]) -> list[tuple[Subset, Subset]]:
    """The in-split and the out-split of each domain."""
    pairs = []
    for domain in domains:
        order, held = torch.randperm(len(domain)).tolist(), len(domain) // 5
        pairs.append((Subset(domain, order[held:]), Subset(domain, order[:held])))
    return pairs


def endless(data: Dataset, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Minibatches, drawn with replacement."""
    sampler = RandomSampler(data, replacement=True, num_samples=10**9)  # type: ignore[arg-type]
    return iter(DataLoader(data, batch_size, sampler=sampler))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=("ColoredMNIST", "ColoredDigits"), required=True)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--test_env", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint_freq", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=BATCH)
    args = parser.parse_args()
    pairs = split(load(args.dataset, args.data_dir))
    erm = PlainERM(PlainCNN(2, 2))
    loaders = [
        endless(inside, args.batch_size)
        for e, (inside, _) in enumerate(pairs)
        if e != args.test_env
    ]
    for step in range(args.steps):
        loss = erm.update([next(loader) for loader in loaders])
        if step % args.checkpoint_freq == 0 or step == args.steps - 1:
            print(step, loss, [erm.accuracy(part) for pair in pairs for part in pair], flush=True)


if __name__ == "__main__":
    main()
