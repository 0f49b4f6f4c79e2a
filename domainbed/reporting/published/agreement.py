"""Whether a sweep's tables agree with a paper's, and why a cell cannot be compared with it."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from domainbed.config.protocols import get_protocol, protocol_names
from domainbed.core.names import DATASET_DOMAINS, trained_algorithm
from domainbed.errors import UserError
from domainbed.reporting.published import CELL, Source, get_source, published_values, steps_of
from domainbed.reporting.render import to_frame
from domainbed.reporting.section import NOTHING, Section
from domainbed.reporting.statistics import TIE
from domainbed.reporting.tables import AVERAGE, MEAN_RANK, Report
from domainbed.reporting.units import Unit
from domainbed.runs.records import NOT_RECORDED, RUN_KEYS
from domainbed.selection import SELECTION_METHODS, SelectionMethod

_COLUMNS = [*CELL, "mean", "std_err", "n_trials", "published_mean", "published_std_err"]
_BACKBONE = {"resnet18", "resnet50_augmix", "backbone", "featurizer"}


class Mismatch(NamedTuple):
    """One condition under which a cell was made in another way than the paper's.

    Attributes:
        what: "trials", "draws", "steps", "backbone", "protocol", a field of a run, …
        here, published: its values, as text.
    """

    what: str
    here: str
    published: str


def agreement(report: Report, source: str) -> pd.DataFrame:
    """Every cell of a report that the paper has a number for, one row each.

    Mean ranks are left out, since a paper ranks among other algorithms; so is the average over
    all datasets where the report does not have those of the paper.

    Returns:
        `selection`, `table`, `dataset`, `algorithm` and `domain` say which cell, as in
        `reporting.to_frame`; `mean`, `std_err` (NaN where there is none) and `n_trials` are the
        sweep's, `published_mean` and `published_std_err` the paper's; `difference` is the sweep's
        mean minus the paper's in percentage points, `combined_std_err` the root of the sum of both
        squared standard errors; `within` says whether the difference is at most that (and what
        rounding may do), None where the cells cannot be compared or one has no standard error;
        `mismatches` is a tuple of `Mismatch`, why they cannot be compared.

    Raises:
        UserError: there is no such paper, or it has no number for any cell.
    """
    if others := {report.records.metric, report.records.selection_metric} - {"accuracy"}:
        raise UserError(
            f"papers choose by accuracy and print it, and these tables have {', '.join(others)}: "
            "leave --metric and --selection_metric out"
        )
    paper, values = get_source(source), published_values(source)
    ours, theirs = set(report.records.runs["dataset"]), set(values["dataset"]) - {AVERAGE}
    values = values.rename(columns={"mean": "published_mean", "std_err": "published_std_err"})
    cells = to_frame(report).merge(values, on=CELL)
    is_shared = (cells["test_env"] != MEAN_RANK) & (ours == theirs)
    cells = cells[cells["dataset"].isin(ours) | is_shared]
    if cells.empty:
        raise UserError(
            f"{source} has no number for these runs (of {', '.join(sorted(ours))}): it has "
            f"{', '.join(values['dataset'].unique())}; `domainbed published {source}` prints them"
        )
    usual, runs = _conditions(report.records.runs, paper)
    mismatches = [
        tuple(_mismatches(cell, _runs_of(cell, runs, ours), paper, usual))
        for cell in cells.to_dict("records")
    ]
    difference = cells["mean"] - cells["published_mean"]
    error = np.hypot(cells["std_err"], cells["published_std_err"])
    within = [
        None if reasons or math.isnan(allowed) else abs(off) <= allowed + TIE
        for reasons, off, allowed in zip(mismatches, difference.tolist(), error.tolist())
    ]
    found = {"difference": difference, "combined_std_err": error, "within": within}
    return cells[_COLUMNS].assign(**found, mismatches=mismatches)


def _conditions(
    runs: pd.DataFrame, paper: Source
) -> tuple[dict[str, str], dict[tuple[str, str], pd.DataFrame]]:
    """The paper's conditions by name, and by dataset and algorithm those of each run.

    Each run has a row with a column for each condition, its `test_envs`, and `hparams_seeds`, how
    many its test domains and trial have.
    """
    fields = {
        "precision": "float32",
        "holdout_fraction": 0.2,
        "task": "domain_generalization",
        "shared_draws": False,
        **get_protocol(paper.protocol).fields,
        **paper.fields,
    }
    for name in ("eval_splits", "averages"):  # which change no number, and have rows of their own
        fields.pop(name, None)
    longer = [f"{name} {steps}" for name, steps in get_protocol(paper.protocol).steps.items()]
    usual = {
        "steps": ", ".join([str(paper.steps), *longer]),
        "backbone": paper.backbone,
        "protocol": paper.protocol,
        "fixed hyper-parameters": "none" if paper.draws > 1 else "chosen for each dataset",
        **{name: str(value) for name, value in fields.items()},
    }
    named = {name: get_protocol(name).fields for name in protocol_names()}
    rows = [
        {
            "steps": usual["steps"] if steps == steps_of(paper, run["dataset"]) else str(steps),
            "backbone": run["features"] or _backbone(run["hparams"]),
            "protocol": run["protocol"],
            "fixed hyper-parameters": usual["fixed hyper-parameters"] if is_chosen else fixed,
            **_fields(run["args"], fields, named.get(run["protocol"], fields)),
        }
        for run in runs.to_dict("records")
        for steps in [_steps(run["args"], run["last_step"])]
        for fixed, is_chosen in [_fixed(run, paper)]
    ]
    keys = [key for key in RUN_KEYS if key != "hparams_seed"]
    seeds = runs.groupby(keys)["hparams_seed"].transform("nunique")
    conditions = pd.DataFrame(rows, index=runs.index).assign(
        test_envs=runs["test_envs"], hparams_seeds=seeds
    )
    return usual, dict(iter(conditions.groupby([runs["dataset"], runs["algorithm"]])))


def _runs_of(
    cell: Mapping[Any, Any], runs: Mapping[tuple[str, str], pd.DataFrame], datasets: set[str]
) -> pd.DataFrame:
    """The runs that a cell rests on."""
    method: SelectionMethod = SELECTION_METHODS[cell["selection"]]
    of_cell = {cell["dataset"]} & datasets or datasets
    groups = [runs[key] for name in of_cell if (key := (name, cell["algorithm"])) in runs]
    if not groups:
        return pd.DataFrame()
    found, env = pd.concat(groups), cell["test_env"]
    tested = [[int(env)] if env.isdigit() else envs for envs in found["test_envs"]]
    pairs = zip(found["test_envs"], tested)
    return found[[any(method.uses(envs, each) for each in of_run) for envs, of_run in pairs]]


def _mismatches(
    cell: Mapping[Any, Any], runs: pd.DataFrame, paper: Source, usual: Mapping[str, str]
) -> Iterator[Mismatch]:
    if math.isnan(cell["mean"]):
        yield Mismatch("result", "none", "there is one")
    if runs.empty:
        return
    if cell["n_trials"] < paper.trials:
        yield Mismatch("trials", str(cell["n_trials"]), str(paper.trials))
    if (draws := runs["hparams_seeds"].min()) < paper.draws:
        yield Mismatch("draws", str(draws), str(paper.draws))
    for what, value in usual.items():
        if others := sorted(set(runs[what]) - {value}):
            yield Mismatch(what, ", ".join(others), value)
    # An average is over the test domains that are there.
    if cell["dataset"] in DATASET_DOMAINS and not cell["test_env"].isdigit():
        tested = len({envs for envs in runs["test_envs"] if len(envs) == 1})
        if tested < (domains := len(DATASET_DOMAINS[cell["dataset"]])):
            yield Mismatch("test domains", str(tested), str(domains))


def _steps(args: dict[str, Any], last_step: int) -> int:
    """How many steps a run has: as many as planned, if no further record is to come."""
    steps, interval = args.get("steps"), args.get("checkpoint_freq")
    if not steps or (interval and last_step + interval < steps):
        return last_step + 1
    return int(steps)


def _fields(
    args: dict[str, Any], usual: Mapping[str, Any], of_protocol: Mapping[str, Any]
) -> dict[str, str]:
    """The values of a run's fields; the usual one where the run has that of its own protocol.

    How protocols differ is said by their names. What a run does not say is taken to be usual.
    """
    values = {name: args.get(name, of_protocol.get(name, usual[name])) for name in usual}
    return {
        name: str(usual[name] if value == of_protocol.get(name, usual[name]) else value)
        for name, value in values.items()
    }


def _backbone(hparams: dict[str, Any]) -> str:
    if named := hparams.get("featurizer") or hparams.get("backbone"):
        return str(named)
    if hparams.get("resnet18"):
        return "ResNet-18"
    return "ResNet-50 (AugMix)" if hparams.get("resnet50_augmix") else "ResNet-50"


def _fixed(run: Mapping[Any, Any], paper: Source) -> tuple[str, bool]:
    """The hyper-parameters that were not drawn, and whether they are those of the paper.

    Those that name the backbone are left out.
    """
    try:
        fixed = set(json.loads(run["args"].get("hparams") or "{}")) - _BACKBONE
    except (ValueError, TypeError):
        return NOT_RECORDED, False
    chosen = paper.fixed(trained_algorithm(run["algorithm"]), run["dataset"])
    is_chosen = fixed <= {*chosen} and all(
        run["hparams"].get(name) == value for name, value in chosen.items() if name not in _BACKBONE
    )
    return ", ".join(sorted(fixed)) or "none", is_chosen


def agreement_sections(cells: pd.DataFrame, source: str) -> list[Section]:
    """The sweep's numbers and the paper's side by side, one table per method and dataset."""
    subject = ("Dataset: " + cells["dataset"]).where(cells["table"] == "dataset", "Averages")
    place = cells["domain"].where(cells["table"] == "dataset", cells["dataset"])
    header = ["Algorithm", "domain", "here", "published", "difference", "std err", "within it"]
    sections = []
    groups = cells.assign(place=place).groupby(["selection", subject], sort=False)
    unit = Unit()
    for (selection, name), group in groups:
        rows = [
            [
                cell["algorithm"],
                cell["place"],
                unit.with_error(cell["mean"], cell["std_err"]),
                unit.with_error(cell["published_mean"], cell["published_std_err"]),
                unit.text(cell["difference"], signed=True),
                unit.text(cell["combined_std_err"]),
                _verdict(cell),
            ]
            for cell in group.to_dict("records")
        ]
        title = f"{name}, model selection method: {selection}, beside {source}"
        as_json = [json.dumps([m._asdict() for m in found]) for found in group["mismatches"]]
        frame = group.drop(columns="place").assign(mismatches=as_json)
        sections.append(Section("beside", title, header, rows, _notes(group, source), frame))
    return sections


def _verdict(cell: Mapping[Any, Any]) -> str:
    if cell["within"] is None:
        return "not compared" if cell["mismatches"] else NOTHING
    return "yes" if cell["within"] else "no"


def _notes(cells: pd.DataFrame, source: str) -> list[str]:
    """Why cells are not compared, each reason once, and how many of the others agree."""
    reasons: dict[str, list[str]] = {}
    for cell in cells.to_dict("records"):
        for what, here, published in cell["mismatches"]:
            text = f"not compared: {what} {here} (published: {published})"
            reasons.setdefault(text, []).append(f"{cell['algorithm']} on {cell['place']}")
    notes = [
        f"{text}: {'all cells' if len(where) == len(cells) else ', '.join(where)}"
        for text, where in reasons.items()
    ]
    compared = cells["within"].dropna()
    if len(compared):
        notes.append(
            f"{compared.sum()} of {len(compared)} differences lie within the combined standard "
            "errors (and the rounding of what is printed); of repetitions of the same at most two "
            "in three do"
        )
    if any(_verdict(cell) == NOTHING for cell in cells.to_dict("records")):
        notes.append(f"{NOTHING}: {source} prints no standard error, or an average has none")
    return notes
