"""The commands as functions, for programs and notebooks: `domainbed.train`, `domainbed.plot`, …"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from domainbed import reporting
from domainbed.cli.common import BASELINE
from domainbed.core.drawing import check_figure_file, save_figure
from domainbed.core.files import write_text
from domainbed.core.plugins import import_plugins
from domainbed.errors import UserError
from domainbed.reporting import Report
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import Folders, Progress, as_paths
from domainbed.selection.judging import judged_alike

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def train(
    dataset: str,
    algorithm: str,
    test_envs: Sequence[int],
    output_dir: Path | str,
    *,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Trains one run, or resumes it; a finished run is only read.

    Args:
        dataset: a name, or anything else that `domainbed train --dataset` takes.
        algorithm: a name.
        test_envs: the numbers of the held-out domains.
        output_dir: the run's own folder.
        progress: whether to show a bar, in a terminal or a notebook.
        settings: others that `domainbed train --help` lists, under the names of the flags, such as
            `steps=300`, `hparams={"lr": 1e-3}` or `data_dir="data"`.

    Returns:
        The run's records, one row each: `step`, accuracies such as `env0_in_acc`, losses, …

    Raises:
        UserError: a setting is wrong, or the folder holds another run.

    Examples:
        >>> domainbed.train("ColoredDigits", "Fishr", [2], "results/one")  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    from domainbed.cli.train import TrainSettings, spec_of
    from domainbed.core.settings import load
    from domainbed.training import run

    named = {"dataset": dataset, "algorithm": algorithm, "test_envs": list(test_envs)}
    given = load(TrainSettings, None, {**named, "output_dir": str(output_dir), **settings})
    import_plugins(given.plugins)
    spec, folder = spec_of(given), RunFolder(output_dir)
    name = f"{algorithm} on {dataset}"
    with tqdm(total=spec.steps, desc=name, disable=not progress) as bar:

        def on_step(done: int) -> None:
            bar.update(done - bar.n)

        run(spec, folder, given.run_options(), on_step=on_step)
        on_step(spec.steps)  # also of a run that was done before
    return pd.read_json(folder.results, lines=True)


def sweep(config: Path | str | None = None, **fields: Any) -> Path:
    """Launches a sweep, or resumes it, and waits until its runs are done.

    Args:
        config: a YAML file, or the name of one that comes with domainbed, such as "quickstart".
        fields: override those in the file, such as `algorithms=["ERM", "Fishr"]`.

    Returns:
        The sweep's folder, for `collect`, `compare`, `report` and `plot`.

    Raises:
        UserError: a field is wrong, or a run failed.

    Examples:
        >>> domainbed.collect(domainbed.sweep("quickstart"))  # doctest: +SKIP
    """
    from domainbed.cli.launching import launch_sweep
    from domainbed.sweeps.config import load_config, shipped_config

    if config is not None and not Path(config).exists():
        config = shipped_config(str(config))
    loaded = load_config(config, fields)
    import_plugins(loaded.plugins)
    if launch_sweep(loaded, wait=True, skip_confirmation=True):
        raise UserError(f"not all runs of {loaded.output_dir} are done: see above")
    return Path(loaded.output_dir)


def report(
    folders: Folders, output: Path | str | None = None, baseline: str | None = None, **which: Any
) -> Path:
    """Writes tables, comparisons and figures as one HTML file; returns its path.

    Args:
        folders: a sweep folder, a run folder, or a list of these.
        output: the file; None for report.html in the first folder.
        baseline: the algorithm that the others are compared with; None for ERM.
        which: `datasets`, `algorithms`, `selection`, `metric`, `selection_metric`, as in `collect`.
    """
    from domainbed.reporting.page import build_page, to_html

    file = Path(output or as_paths(folders)[0] / "report.html")
    found = read_report(folders, baseline=baseline, **which)
    write_text(file, to_html(build_page(found, folders, baseline or BASELINE)))
    return file


def plot(
    folders: Folders,
    kind: str,
    output: Path | str | None = None,
    *,
    width: str = "double",
    baseline: str | None = None,
    **which: Any,
) -> dict[str, Figure]:
    """Draws the figures of a kind, for a notebook or a paper.

    Args:
        folders: a sweep folder, a run folder, or a list of these.
        kind: differences, ranks, hparams, curves or on-the-line.
        output: the file to write, .pdf, .png or .svg; several figures get a file each, named after
            what they show.
        width: column, single, double or page, see `figures.WIDTHS`.
        baseline: the algorithm that the others are compared with; None for ERM.
        which: `datasets`, `algorithms`, `selection`, `metric`, `selection_metric`, as in `collect`.

    Returns:
        Matplotlib figures by dataset or algorithm, or by "" if there is only one.

    Raises:
        UserError: a name is unknown, there is nothing to draw, or the file cannot be written.
    """
    from domainbed.reporting.figures import FIGURES, WIDTHS, plain_style
    from domainbed.reporting.findings import Findings

    if output is not None:
        check_figure_file("--output", output)
    draw, found = FIGURES[kind], read_report(folders, baseline=baseline, **which)
    methods = [method.name for method in found.methods]
    with plain_style(WIDTHS[width]):
        figures = draw(Findings(found.records, methods, baseline or BASELINE))
        if not figures:
            raise UserError(f"{kind}: these runs have nothing to draw, see `domainbed report`")
        for name, file in figure_files(output, figures).items():
            save_figure(figures[name], "--output", file, dpi=300)
    return figures


def figure_files(output: Path | str | None, names: Collection[str]) -> dict[str, Path]:
    """The file of each figure: `output`, or of several one that is named after each."""
    if output is None:
        return {}
    file = Path(output)
    if len(names) == 1:
        return dict.fromkeys(names, file)
    plain = {name: re.sub(r"[^\w.+-]+", "_", name) for name in names}
    return {name: file.with_stem(f"{file.stem}-{plain[name]}") for name in names}


def read_report(
    folders: Folders,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    selection: Sequence[str] | None = None,
    metric: str | None = None,
    selection_metric: str | None = None,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """The tables of the runs that are asked for, which one metric judges.

    Raises:
        UserError: a folder, a record or a name is wrong, or the datasets have different metrics.
    """
    records = reporting.load_records(folders, progress=progress)
    asked = datasets, algorithms
    records = judged_alike(reporting.only(records, *asked), metric, selection_metric)
    selection = selection or reporting.planned_selection(folders)
    reporting.only(records, None, [baseline] if baseline else None, ", the baseline")
    gaps, judges = reporting.planned_gaps(folders), (records.metric, records.selection_metric)
    return reporting.build_report(records, selection, *asked, gaps, *judges)
