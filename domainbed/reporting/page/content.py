"""The parts of the report, one function each, from numbers to texts and figures."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate

import pandas as pd

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.core.text_table import count
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError
from domainbed.reporting import comparison
from domainbed.reporting import comparison_sections as compared
from domainbed.reporting.explain import EVERYTHING, count_states, lacking, survey
from domainbed.reporting.figures import FIGURES, plain_style
from domainbed.reporting.findings import RANKED, Findings, ranges
from domainbed.reporting.mixtures import mixtures, within_means
from domainbed.reporting.page.html import Drawing, Page, Part, inline_svg
from domainbed.reporting.page.tables import (
    FEW,
    MAX_ROWS,
    from_section,
    published_cells,
    result_tables,
    state_tables,
)
from domainbed.reporting.page.wrong_images import ReadImages, files_below, wrong_images
from domainbed.reporting.published.agreement import agreement_sections
from domainbed.reporting.render import head, styled
from domainbed.reporting.section import Section
from domainbed.reporting.single_source import count_single_source, single_source_report
from domainbed.reporting.tables import AVERAGE, SPREADS, Report, domain_names
from domainbed.reporting.units import PERCENT
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import Folders, as_paths


def build_page(
    report: Report,
    folders: Folders,
    baseline: str = "ERM",
    read_images: ReadImages | None = None,
) -> Page:
    """All that the report shows.

    Args:
        report: made by `build_report`.
        folders: where its records were read.
        baseline: what algorithms are compared with.
        read_images: gives the images that predictions name; None for files below data/.

    Raises:
        UserError: a file of a sweep is damaged.
    """
    runs = report.records.runs
    findings = Findings(report.records, [method.name for method in report.methods], baseline)
    with plain_style():
        parts = [
            _differences(findings),
            _results(report, findings),
            *_single_source(report, findings),
            *(part(findings) for part in (_ranks, _tuning, _curves, _on_the_line)),
        ]
    parts += [
        wrong_images(report, baseline, read_images or partial(files_below, "data")),
        *(_runs(report, folders), _choices(findings)),
        *(_environment(runs["folder"]), _commands(folders)),
    ]
    names = ", ".join(root.name or str(root) for root in as_paths(folders))
    facts = [f"{len(runs):,} runs", *head(report)]
    algorithms = order_algorithms(runs["algorithm"])
    parts.sort(key=lambda part: bool(part.missing))  # those that show nothing come last
    warnings = [*mixtures(runs), *within_means(runs)]
    return Page(f"Report of {names}", facts, warnings, algorithms, parts, answer(findings))


def answer(findings: Findings) -> list[str]:
    """What was compared on what, and for each selection method what differs from the baseline."""
    runs, baseline = findings.records.runs, findings.baseline
    trials = len(set(runs["trial_seed"]))
    lines = [
        f"{count(runs['algorithm'].nunique(), 'algorithm')} on "
        f"{', '.join(order_datasets(runs['dataset']))}: {count(trials, 'trial')}, "
        f"{count(runs['hparams_seed'].nunique(), 'draw')} of the hyper-parameters."
    ]
    with suppress(UserError):  # there is nothing to compare
        overall = findings.differences[findings.differences["dataset"] == AVERAGE]
        for method, rows in overall.groupby("selection", sort=False):
            unsure = "not told apart from"
            found: dict[str, list[str]] = {"better than": [], "worse than": [], unsure: []}
            for row in rows.to_dict("records"):
                said = f"{row['algorithm']} ({findings.unit.text(row['difference'], signed=True)})"
                told = findings.unit.verdict(row["trials_low"], row["trials_high"])
                found[f"{told} than" if told else unsure].append(said)
            parts = [f"{where} {baseline}: {', '.join(of)}" for where, of in found.items() if of]
            lines.append(f"By {method}, {'; '.join(parts)}.")
        lines.append(
            f"Told apart: the 95 % interval over {count(trials, 'trial')} leaves out zero. "
            "It is not corrected for comparing several."
        )
    return lines


def _begun(words: str) -> str:
    """Words as a sentence begins."""
    return words[0].upper() + words[1:]


def _results(report: Report, findings: Findings) -> Part:
    papers = published_cells(report)
    sections = [s for source, cells in papers.items() for s in agreement_sections(cells, source)]
    frames = (
        (compared.worst_section, comparison.worst_domains(report)),
        (compared.gap_section, comparison.selection_gap(report.records)),
    )
    sections += [make(frame, findings.unit) for make, frame in frames if len(frame)]
    intro = (
        f"{_begun(findings.unit.of_values)} on each domain when it is held out{_legend(report)}"
        f"{' Below a number: the published ones.' if papers else ''}"
    )
    tables = [*result_tables(report, papers), *map(from_section, sections)]
    return Part("results", "Results", intro, tables=tables)


def _legend(report: Report) -> str:
    """The meaning of ± and of the marks in a table of results."""
    name = SPREADS[report.style.spread]
    spread = f", ± {name} over trials" if name else ""
    second = " Underlined: the second best." if report.style.second else ""
    near = "Dotted: not worse than the best by more than the standard error of the difference."
    weak = f" Coloured: over {FEW} trials or more."
    return f"{spread}; X: no result. Bold: the best in a column. {near}{second}{weak}"


def _single_source(report: Report, findings: Findings) -> list[Part]:
    """The tables of runs that train on one domain, where a sweep has any."""
    records = report.records
    if not count_single_source(records):
        return []
    names = [method.name for method in report.methods if not method.needs_pairs]
    judges = {"metric": records.metric, "selection_metric": records.selection_metric}
    found = single_source_report(records, names or None, **judges)
    labels = {column.label for table in found.tables for column in table.columns}
    own = [name for name in report.style.domains if name in labels]
    found = styled(found, replace(report.style, domains=own))
    return [
        Part(
            "single-source",
            "Trained on one domain",
            f"{_begun(findings.unit.of_values)}, the mean over all other domains, of runs that "
            f"train on the one domain of a column{_legend(report)}",
            tables=result_tables(found),
        )
    ]


def _differences(findings: Findings) -> Part:
    title = f"Differences to {findings.baseline}"
    part = Part(
        "differences",
        title,
        f"{_begun(findings.unit.of_differences)}, paired by dataset, test domain and trial. "
        "Dot: the mean; thick bar: 95 % interval over trials (Student's t); thin bar: with "
        "datasets resampled. Hollow and grey: the interval includes zero, so the two are "
        "not told apart.",
    )
    try:
        sections = compared.difference_sections(findings.differences, "trial", None, findings.unit)
    except UserError as error:
        return replace(part, missing=str(error))
    return _with_notes_above(
        replace(part, figures=_drawn(findings, "differences", title)), sections
    )


def _with_notes_above(part: Part, sections: Sequence[Section]) -> Part:
    """The part with tables; notes that several share are shown once, above all tables."""
    notes = [note for section in sections for note in section.notes]
    tables = [from_section(section._replace(notes=[])) for section in sections]
    return replace(part, notes=list(dict.fromkeys(notes)), tables=tables)


def _ranks(findings: Findings) -> Part:
    part = Part(
        "ranks",
        "Mean ranks and critical difference",
        "1 is best. Mean ranks that are further apart than the critical difference differ "
        "(Nemenyi, 95 %); a bar joins algorithms that are not told apart, where Friedman's test "
        "finds a difference at all.",
    )
    figures = _drawn(findings, "ranks", "Mean ranks")
    if not figures:
        return replace(part, missing="ranks need two algorithms with results on the same domains")
    sections = [
        section._replace(notes=[f"{method}: {section.notes[0]}", *section.notes[1:]])
        for method, section in zip(
            findings.ranks, compared.rank_sections(findings.ranks, RANKED), strict=True
        )
    ]
    return _with_notes_above(replace(part, figures=figures), sections)


def _tuning(findings: Findings) -> Part:
    unit = findings.unit
    points = " in points" * (unit.factor == PERCENT)
    part = Part(
        "hparams",
        f"{_begun(unit.metric)} by hyper-parameter",
        f"One dot per run or group of runs: test {unit.name} at the last record,{points} above "
        "the mean of all runs on the same dataset and test domain. Diamonds: chosen by "
        f"{findings.selection[0]}. If they crowd at an end, the range may be too narrow.",
    )
    if findings.tuning.empty:
        return replace(part, missing="one draw of the hyper-parameters: nothing was tuned")
    frame = ranges(findings.tuning)
    texts = frame.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
    sections = [
        Section(
            "ranges",
            "Is a range too narrow?",
            ["Algorithm", "Hyper-parameter", "lowest", "highest", "choices", "in the lowest tenth",
             "in the highest tenth"],
            texts.to_numpy().tolist(),
            ["tenths of the logarithm if a range spans a factor of ten; with even draws, each "
             "would hold a tenth of the choices by chance"],
            frame,
        )
    ]  # fmt: skip
    frames = (
        (compared.tuning_section, comparison.tuning_gain(findings.records, findings.selection)),
        (compared.expected_section, comparison.expected_best(findings.records, findings.selection)),
    )
    sections += [make(frame, unit) for make, frame in frames if len(frame)]
    tables = list(map(from_section, sections))
    return replace(part, figures=_drawn(findings, "hparams", part.title), tables=tables)


def _curves(findings: Findings) -> Part:
    """Learning curves, and a table of what stopping at another step would have changed."""
    first, unit = findings.selection[0], findings.unit
    frame = findings.curves[findings.curves["selection"] == first]
    part = Part(
        "curves",
        "Learning curves",
        f"The runs that {first} chose, mean over trials: test {unit.name}, and validation "
        f"{unit.metric} on the out-splits of the training domains. Marks: the chosen steps.",
    )
    if frame.empty:
        return replace(part, missing="no run was chosen")
    rows = []
    for (dataset, algorithm, env), course in frame.groupby(
        ["dataset", "algorithm", "test_env"], sort=False
    ):
        steps = course.loc[course["chosen"] > 0, "step"]
        measured = course.dropna(subset=["test"])
        if measured.empty:
            continue
        domain = domain_names(findings.records.runs, dataset)[env]
        last, top = measured.iloc[-1], measured.loc[(unit.sign * measured["test"]).idxmax()]
        rows.append(
            [dataset, algorithm, domain, ", ".join(map(str, steps)),
             unit.text(last["test"]), unit.text(top["test"]), f"{top['step']:.0f}"]
        )  # fmt: skip
    highest, high = ("highest", "high") if unit.sign > 0 else ("lowest", "low")
    notes = [f"the {highest} of several noisy means is on average too {high}"]
    if frame["test"].isna().any():
        several = "accuracies are" if unit.metric == "accuracy" else f"{unit.metric} is"
        notes.append(f"test {several} of the steps at which all trials measured them")
    section = Section(
        "curves",
        "Where runs were stopped",
        ["Dataset", "Algorithm", "domain", "chosen steps", "test at the end", f"{highest} test",
         "at step"],
        rows,
        notes,
        frame,
    )  # fmt: skip
    drawn = _drawn(findings, "curves", part.title)
    return replace(part, figures=drawn, tables=[from_section(section)])


def _on_the_line(findings: Findings) -> Part:
    part = Part(
        "on-the-line",
        f"In-domain against out-of-domain {findings.unit.metric}",
        "All runs at their last record, by test domain, with the line that is fitted to "
        f"{'the probits' if findings.unit.factor == PERCENT else 'them'}. With many runs, dots "
        "stand for groups: the larger, the more runs.",
    )
    figures = _drawn(findings, "on-the-line", part.title)
    if not figures:
        return replace(part, missing="no run has a single test domain and validates on others")
    return _with_notes_above(
        replace(part, figures=figures), [compared.line_section(findings.lines, findings.unit)]
    )


def _runs(report: Report, folders: Folders) -> Part:
    found = survey(report.records.runs, folders)
    lacks = lacking(report, found)
    lines = accumulate(1 + len(reasons) for _, reasons in lacks)
    shown = [lack for lack, line in zip(lacks, lines) if line <= MAX_ROWS]
    if left_out := len(lacks) - len(shown):
        shown.append((f"{left_out:,} more: `domainbed collect --explain` prints all", []))
    return Part(
        "runs",
        "Runs",
        "How many runs were planned, by test domains, and their states."
        + ("" if lacks else f" Nothing is missing: {EVERYTHING}."),
        tables=list(state_tables(count_states(report, found), report.records.runs)),
        reasons=shown,
    )


def _choices(findings: Findings) -> Part:
    unit = findings.unit
    names = {
        dataset: domain_names(findings.records.runs, dataset)
        for dataset in set(findings.choices["dataset"])
    }
    rows = [
        [row["selection"], row["dataset"], row["algorithm"], names[row["dataset"]][row["test_env"]],
         str(row["trial_seed"]), str(row["hparams_seed"]), str(row["step"]),
         unit.text(row[unit.metric]), row["hparams"]]
        for row in findings.choices.iloc[: MAX_ROWS + 1].to_dict("records")
    ]  # fmt: skip
    section = Section(
        "choices",
        "Chosen",
        ["Selection", "Dataset", "Algorithm", "domain", "trial", "hparams seed", "step",
         unit.metric, "hyper-parameters"],
        rows,
        ["`domainbed top-hparams` lists all draws of a cell, from best to worst"],
        findings.choices,
    )  # fmt: skip
    return Part(
        "choices",
        "Chosen hyper-parameters",
        "What each method chose, with the hyper-parameters that differ between draws.",
        tables=[from_section(section)],
    )


def _environment(folders: Iterable[str]) -> Part:
    """The machines and versions of the runs in these folders, and the time that they took."""
    part = Part("environment", "Environment", "What the runs were made with.")
    read = []
    for folder in map(RunFolder, dict.fromkeys(folders)):
        with suppress(UserError):  # a report is not the place to fail about it
            read.append(folder.read_json(folder.environment) or {})
    seconds = [each["seconds"] for each in read if isinstance(each.get("seconds"), (int, float))]
    found = pd.DataFrame(read).drop(
        columns=["seconds", "resumed", "data", "encoding"], errors="ignore"
    )
    rows = [
        [str(name), value, str(n)]
        for name, values in found.items()
        for value, n in values.dropna().map(str).value_counts().items()
    ]
    if not rows:
        return replace(part, missing="the runs do not record their environment")
    took = f"{sum(seconds) / 3600:.2f} hours in all, of {count(len(seconds), 'run')}"
    notes = [took] if seconds else []
    section = Section("environment", part.title, ["What", "value", "runs"], rows, notes, found)
    return replace(part, tables=[from_section(section, is_open=True)])


def _commands(folders: Folders) -> Part:
    """What makes the sweeps, their tables and the report again.

    Raises:
        UserError: the config of a sweep is damaged.
    """
    roots, listings, lines = as_paths(folders), [], []
    for root in roots:
        config = root / "sweep.yaml"
        if config.is_file():
            read_yaml(config)
            listings.append((f"sweep.yaml of {root.name}", config.read_text(encoding="utf-8")))
            lines.append(f"domainbed sweep launch {shlex.quote(str(config))}")
        else:
            listings.append((str(root), "# no sweep.yaml: made by other commands than a sweep\n"))
    named = shlex.join(map(str, roots))
    lines += [f"domainbed {command} {named}" for command in ("collect", "compare", "report")]
    listings.append(("Commands", "\n".join(lines) + "\n"))
    return Part(
        "commands",
        "Commands",
        "The plan of each sweep, and the commands that reproduce it and its tables.",
        listings=listings,
    )


def _drawn(findings: Findings, kind: str, title: str) -> list[Drawing]:
    """The figures of a kind as elements of the page."""
    drawings = []
    for number, (name, figure) in enumerate(FIGURES[kind](findings).items()):
        place = "over all datasets" if name == AVERAGE else name
        caption = f"{title}: {place}" if name else title
        told = f"{caption}. The tables of this part hold the numbers."
        svg = inline_svg(figure, f"{kind}-{number}", caption, told)
        drawings.append(Drawing(svg, caption, name if kind == "hparams" else ""))
    return drawings
