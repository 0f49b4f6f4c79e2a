"""Random sweeps on disk, in the format of DomainBed."""

import itertools
import json
import random

from domainbed.runs.folder import RunFolder

DOMAINS = {"ColoredMNIST": 3, "PACS": 4, "Birds": 3, "DomainNet": 6}


def random_runs(seed, datasets=("ColoredMNIST",), algorithms=("Fishr", "ERM"), **options):
    """A list of runs, each a list of records; options as of `random_run` and the grid's sizes."""
    rng = random.Random(seed)
    n_hparams, n_trials = options.pop("n_hparams", 1), options.pop("n_trials", 2)
    p_missing, pairs = options.pop("p_missing", 0.0), options.pop("pairs", True)
    runs = []
    for dataset in datasets:
        singles = [[i] for i in range(DOMAINS[dataset])]
        both = [list(p) for p in itertools.combinations(range(DOMAINS[dataset]), 2)] * pairs
        grid = itertools.product(algorithms, singles + both, range(n_hparams), range(n_trials))
        for key in grid:
            run = random_run(rng, dataset, *key, **options)
            if rng.random() >= p_missing:
                runs.append(run)
    return runs


def random_run(rng, dataset, algorithm, test_envs, hparams_seed, trial_seed, levels=10**6, **args):
    hparams = {"lr": 10 ** rng.uniform(-5, -3), "batch_size": 32}
    args = {
        "algorithm": algorithm,
        "dataset": dataset,
        "test_envs": test_envs,
        "hparams_seed": hparams_seed,
        "trial_seed": trial_seed,
        "steps": 21,
        "hparams": None,
        "output_dir": f"/somewhere/{rng.random()}",
        **args,
    }
    return [
        {
            "args": args,
            "hparams": hparams,
            "step": step,
            "epoch": step / 7,
            "loss": rng.random(),
            **{
                f"env{i}_{split}_acc": rng.randrange(levels + 1) / levels
                for i in range(DOMAINS[dataset])
                for split in ("in", "out")
            },
        }
        for step in (0, 10, 20)
    ]


def write(root, runs, seed=0, done=False):
    """Writes each run into a folder with a random name; returns the folders in order."""
    rng = random.Random(seed)
    folders = []
    for records in runs:
        folder = root / f"{rng.getrandbits(64):016x}"
        folder.mkdir(parents=True)
        lines = [json.dumps(record, sort_keys=True) + "\n" for record in records]
        (folder / "results.jsonl").write_text("".join(lines))
        if done:
            RunFolder(folder).mark_done("".join(lines))
        folders.append(folder)
    return folders
