"""Which images of the test domains all, or only one, of several algorithms get wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from domainbed.core.files import digest_file
from domainbed.errors import UserError, in_shell, log
from domainbed.reporting.section import Section
from domainbed.reporting.tables import domain_names, only
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import read_predictions
from domainbed.runs.records import Records
from domainbed.selection import SelectionMethod

ALL, NONE, SOME = "all", "none", "some"

_KEYS = ["dataset", "test_env", "trial_seed"]


@dataclass(frozen=True)
class Misclassified:
    """What algorithms get wrong, on the split that the tables report.

    Attributes:
        algorithms: in the order that was asked for.
        images: one row per image of a test domain and trial: `dataset`, `test_env`, `domain` (its
            name), `trial_seed`, `image`, `label`, for each algorithm the class that it predicts
            (`predicted_NAME`), and `wrong`: "all", "none", the one algorithm that is wrong, or
            "some" of three or more.
        earlier: how many runs the method chose at a step before the last one, which their
            predictions are of.
        runs: how many runs were chosen.
        folders: by dataset, test domain and trial a run that predicts its images.
    """

    algorithms: list[str]
    images: pd.DataFrame
    earlier: int
    runs: int
    folders: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def counts(self) -> pd.DataFrame:
        """How many images, by dataset, domain and trial, and by who is wrong."""
        keys = ["dataset", "test_env", "domain", "trial_seed"]
        table = self.images.groupby([*keys, "wrong"]).size().unstack(fill_value=0)
        kinds = [NONE, ALL, *self.algorithms, *([SOME] if SOME in table else [])]
        table = table.reindex(columns=kinds, fill_value=0)
        table.insert(0, "images", table.sum(axis=1))
        return table.rename_axis(columns=None).reset_index().drop(columns="test_env")


def error_sections(found: Misclassified, top: int) -> list[Section]:
    """How many images are wrong, then for each dataset the first `top` of each kind."""
    counts = found.counts()
    header = [_HEADINGS.get(name, f"only {name} wrong") for name in counts.columns]
    differ = (
        f"{found.earlier} of {found.runs} runs were chosen at a step before the last one, which "
        "the predictions are of: the tables' accuracies differ"
    )
    first = _section("How many images are wrong", header, counts)
    sections = [first._replace(notes=[differ] if found.earlier else [])]
    columns = ["domain", "trial_seed", "image", "label"]
    header = ["domain", "trial", "image", "label", *found.algorithms]
    for kind in (ALL, *found.algorithms):
        chosen = found.images[found.images["wrong"] == kind]
        for dataset, images in chosen.groupby("dataset", sort=False):
            who = "all are" if kind == ALL else f"only {kind} is"
            part = f", the first {top} of {len(images)}" if len(images) > top else ""
            shown = images[[*columns, *map("predicted_{}".format, found.algorithms)]].head(top)
            sections.append(_section(f"{dataset}: {who} wrong{part}", header, shown))
    return sections


_HEADINGS = {
    **{name: name for name in ("dataset", "domain", "images")},
    **{"trial_seed": "trial", NONE: "none wrong", ALL: "all wrong", SOME: "some wrong"},
}


def _section(title: str, header: list[str], frame: pd.DataFrame) -> Section:
    rows = [list(map(str, row)) for row in frame.to_numpy().tolist()]
    return Section("errors", title, header, rows, [], frame)


def misclassified(
    records: Records,
    algorithms: Sequence[str],
    method: SelectionMethod,
    datasets: Sequence[str] | None = None,
) -> Misclassified:
    """Compares the predictions of the runs that a selection method chooses.

    Args:
        records: made by `load_records`.
        algorithms: two or more.
        method: chooses one run for each test domain and trial.
        datasets: only these; None for all.

    Raises:
        UserError: there are fewer than two algorithms, a name is unknown, the algorithms have no
            test domain and trial in common, or runs have no predictions, or those of other images,
            or labels are not classes.
    """
    names = list(dict.fromkeys(algorithms))
    if len(names) < 2:
        raise UserError(f"--algorithms {' '.join(names)}: give two or more, to compare them")
    chosen = _chosen(only(records, datasets, names), method)
    folders = chosen.pivot_table("folder", _KEYS, "algorithm", aggfunc="first")
    folders = folders.reindex(columns=names).dropna()
    if folders.empty:
        raise UserError(f"{' and '.join(names)} have no test domain and trial in common")
    named = folders.to_numpy().ravel()
    if lacking := [folder for folder in named if not RunFolder(folder).predictions.is_file()]:
        raise UserError(
            f"{len(lacking)} of {len(named)} chosen runs have no predictions, such as "
            f"{lacking[0]}: train them with --save_predictions, or, if they kept their weights, "
            f"use `domainbed model predict {in_shell(lacking[0])} --save_predictions`"
        )
    if unsealed := [f for f in named if not digest_file(RunFolder(f).predictions).exists()]:
        log.warning(
            "warning: predictions of %d of %d runs have no digest, as those of earlier versions: "
            "damage to them may not be noticed",
            len(unsealed), len(named),
        )  # fmt: skip
    steps = chosen.set_index("folder")["step"]
    images, earlier = [], 0
    for (dataset, env, trial), of_names in folders.iterrows():
        read = {name: _read(folder, int(env)) for name, folder in of_names.items()}
        earlier += sum(steps[of_names[name]] < step for name, (_, step) in read.items())
        found = _joined({name: frame for name, (frame, _) in read.items()}, list(of_names))
        domain = domain_names(records.runs, dataset)[env]
        images.append(found.assign(dataset=dataset, test_env=env, trial_seed=trial, domain=domain))
    columns = [*_KEYS, "domain", "image", "label", *map("predicted_{}".format, names), "wrong"]
    table = pd.concat(images, ignore_index=True)[columns]
    return Misclassified(names, table, earlier, folders.size, folders[names[0]].to_dict())


def _chosen(records: Records, method: SelectionMethod) -> pd.DataFrame:
    """The choices, with the folder of the run that is reported."""
    runs = records.runs[records.runs["test_envs"].map(len) == 1]
    runs = runs.assign(test_env=[envs[0] for envs in runs["test_envs"]])
    keys = [*_KEYS, "algorithm", "hparams_seed"]
    return method.select(records).merge(runs[[*keys, "folder"]], on=keys)


def _read(folder: str, env: int) -> tuple[pd.DataFrame, int]:
    """Image, label and predicted class of the test domain's in-split; the step they are of."""
    file = RunFolder(folder).predictions
    frame, facts = read_predictions(file, env, "in")
    if "predicted" not in frame:
        raise UserError(f"{file} predicts {facts['label_kind']} labels: expected one of classes")
    try:
        classes = np.array([str(name) for name in facts["classes"]], dtype=object)
        named = {column: classes[frame[column]] for column in ("label", "predicted")}
        return frame[["image"]].assign(**named), int(facts["step"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file} lacks the classes or the step of the run: predict again"
        ) from error


def _joined(frames: dict[str, pd.DataFrame], folders: Sequence[str]) -> pd.DataFrame:
    """The predictions of several algorithms for the same images, and who is wrong."""
    first, *others = (
        frame.set_index(["image", "label"])["predicted"].rename(f"predicted_{name}")
        for name, frame in frames.items()
    )
    for folder, other in zip(folders[1:], others, strict=True):
        if not first.index.sort_values().equals(other.index.sort_values()):
            raise UserError(
                f"{folders[0]} and {folder} predict other images or labels: compare runs on the "
                "same data, split alike"
            )
    table = pd.concat([first, *others], axis=1).reset_index()
    wrong = pd.DataFrame({name: table[f"predicted_{name}"] != table["label"] for name in frames})
    count = wrong.sum(axis=1)
    cases = [count == 0, count == len(frames), count == 1]
    return table.assign(wrong=np.select(cases, [NONE, ALL, wrong.idxmax(axis=1)], SOME))
