"""What pages take for granted: a short sweep, real data, a few pictures of pets, a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

REPOSITORY = Path(__file__).parents[2]

# What is left of configs/quickstart.yaml: 12 runs in place of 126.
FEW_RUNS = {
    "algorithms": ["ERM", "Fishr"],
    "trials": 1,
    "steps": 3,
    "checkpoint_freq": 2,
    "hparams": {"batch_size": 8, "Fishr": {"penalty_anneal_iters": 1}},
}


def shorten(config: Path) -> None:
    """Leaves few runs of a sweep, of few steps."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | FEW_RUNS))


def link_data(folder: Path) -> None:
    """A little of the real data where there is some: of MNIST a tenth, of PACS two images a class.

    What a snippet adds stays here.
    """
    folder.mkdir()
    if "DOMAINBED_DATA_DIR" not in os.environ:
        return
    source = Path(os.environ["DOMAINBED_DATA_DIR"]).absolute()
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for part, images in (("train", 6000), ("t10k", 1000)):
        for kind, header, each in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            name = f"MNIST/raw/{part}-{kind}-ubyte"
            content = (source / name).read_bytes()[: header + images * each]
            few = content[:4] + images.to_bytes(4, "big") + content[8:]
            (folder / name).write_bytes(few)
    for label in source.glob("PACS/*/*/"):
        target = folder / label.relative_to(label.parents[2])
        target.mkdir(parents=True)
        for image in sorted(label.iterdir())[:2]:
            (target / image.name).symlink_to(image)


def write_pets(folder: Path) -> None:
    """`pets/<domain>/<class>/<image>`, and `pets.csv` that lists them."""
    lines = ["path,label,domain,split"]
    for domain, grey in (("drawn", 60), ("painted", 120), ("photo", 180)):
        for label in ("cat", "dog"):
            for number in range(4):
                path = folder / "pets" / domain / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (48, 40), (grey, 10 * number, 99)).save(path)
                split = "in" if number else "out"
                lines.append(f"{path.relative_to(folder)},{label},{domain},{split}")
    (folder / "pets.csv").write_text("\n".join(lines) + "\n")


def run_shell(commands: str, folder: Path, preamble: str = "") -> str:
    """Runs a snippet in `folder`, with this Python and this package; what it printed.

    Raises:
        AssertionError: a command failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-e", "-c", f"{preamble}\n{commands}"],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}"
    return done.stdout
