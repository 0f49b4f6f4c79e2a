"""The tables by plain loops over records, as the protocol words it; text without the widths."""

import numpy as np

DOMAIN_NAMES = {
    "ColoredMNIST": ["+90%", "+80%", "-90%"],
    "PACS": list("ACPS"),
    "Birds": list("012"),
}
ALGORITHMS = ["ERM", "CORAL", "IRM", "VREx", "Fish", "Fishr", "DANN"]
DATASETS = ["ColoredMNIST", "PACS", "Birds"]


def domains_of(record):
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def training_domain(group, env):
    best = None
    for record in sorted(group, key=lambda r: r["step"]):
        if record["args"]["test_envs"] != [env]:
            continue
        others = [i for i in range(domains_of(record)) if i != env]
        val = np.mean([record[f"env{i}_out_acc"] for i in others])
        if best is None or val > best[0]:
            best = val, record[f"env{env}_in_acc"]
    return best


def leave_one_domain_out(group, env):
    best = None
    for step in sorted({record["step"] for record in group}):
        records = {tuple(sorted(r["args"]["test_envs"])): r for r in group if r["step"] == step}
        if (env,) not in records:
            continue
        others = [i for i in range(domains_of(records[(env,)])) if i != env]
        pairs = [tuple(sorted((env, i))) for i in others]
        if any(pair not in records for pair in pairs):
            continue
        accs = [records[p][f"env{i}_in_acc"] for p, i in zip(pairs, others, strict=True)]
        val = np.sum(accs) / len(others)
        if best is None or val > best[0]:
            best = val, records[(env,)][f"env{env}_in_acc"]
    return best


def oracle(group, env):
    single = [record for record in group if record["args"]["test_envs"] == [env]]
    if not single:
        return None
    last = max(single, key=lambda record: record["step"])
    return last[f"env{env}_out_acc"], last[f"env{env}_in_acc"]


METHODS = {
    "training-domain": training_domain,
    "leave-one-domain-out": leave_one_domain_out,
    "oracle": oracle,
}


def accuracy(records, method, dataset, algorithm, env, trial):
    best = None
    for seed in sorted({r["args"]["hparams_seed"] for r in records}):
        group = [
            r
            for r in records
            if (r["args"]["dataset"], r["args"]["algorithm"]) == (dataset, algorithm)
            and (r["args"]["trial_seed"], r["args"]["hparams_seed"]) == (trial, seed)
            and env in r["args"]["test_envs"]
        ]
        score = METHODS[method](group, env)
        if score is not None and (best is None or score[0] >= best[0]):
            best = score
    return None if best is None else best[1]


def shown(accs):
    if not accs:
        return None, "X"
    mean = 100 * np.mean(list(accs))
    err = 100 * np.std(list(accs) / np.sqrt(len(accs)))
    return mean, f"{mean:.1f} +/- {err:.1f}" if len(accs) > 1 else f"{mean:.1f}"


def average(means):
    return "X" if None in means else f"{sum(means) / len(means):.1f}"


def average_of_domains(means, over_trials):
    """With the error over trials; a mean that is the same but for its last digits is the same."""
    mean, text = over_trials
    if None in means or abs(sum(means) / len(means) - mean) < 1e-9:
        return "X" if None in means else text
    return " ".join([average(means), *text.split()[1:]])


def tables(records, method):
    """A list of grids of texts: one for each dataset, then the averages."""
    datasets = [d for d in DATASETS if d in {r["args"]["dataset"] for r in records}]
    algorithms = [a for a in ALGORITHMS if a in {r["args"]["algorithm"] for r in records}]
    trials = sorted({r["args"]["trial_seed"] for r in records})
    grids, per_dataset = [], {}
    for dataset in datasets:
        grid = [["Algorithm", *DOMAIN_NAMES[dataset], "Avg"]]
        for algorithm in algorithms:
            row, means, by_trial = [], [], {trial: [] for trial in trials}
            for env in range(len(DOMAIN_NAMES[dataset])):
                accs = []
                for trial in trials:
                    acc = accuracy(records, method, dataset, algorithm, env, trial)
                    if acc is not None:
                        accs.append(acc)
                        by_trial[trial].append(acc)
                mean, text = shown(accs)
                means.append(mean)
                row.append(text)
            over_trials = shown([np.mean(a) for a in by_trial.values() if a])
            grid.append([algorithm, *row, average_of_domains(means, over_trials)])
            per_dataset[dataset, algorithm] = over_trials
        grids.append(grid)
    grid = [["Algorithm", *datasets, "Avg", "Mean rank"]]
    for algorithm in algorithms:
        cells = [per_dataset[dataset, algorithm] for dataset in datasets]
        ranks = []
        for dataset in datasets:
            mine = per_dataset[dataset, algorithm][0]
            others = [per_dataset[dataset, name][0] for name in algorithms if name != algorithm]
            if mine is None:
                ranks.append(None)
                continue
            better = sum(o > mine for o in others if o is not None)
            equal = sum(o == mine for o in others if o is not None)
            ranks.append(1 + better + equal / 2)
        row = [text for _, text in cells]
        grid.append([algorithm, *row, average([mean for mean, _ in cells]), average(ranks)])
    return [*grids, grid]
