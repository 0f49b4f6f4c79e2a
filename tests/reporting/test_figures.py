"""Figures: what is drawn, as files and as elements of a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from fake_sweep import random_runs, write
from matplotlib.figure import Figure

from domainbed.cli import main
from domainbed.reporting import figures, load_records
from domainbed.reporting.figures import ACROSS, ALL_POINTS, DOWN, FIGURES, plain_style
from domainbed.reporting.findings import Findings
from domainbed.reporting.page.html import inline_svg

NAMES = ("ERM", "Fishr", "$x_<b>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    runs = random_runs(0, ("PACS", "ColoredMNIST"), NAMES, n_hparams=2, n_trials=2, pairs=False)
    write(folder, runs, done=True)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    """Every figure as an element, by kind and name."""
    findings = Findings(load_records(folder), ["training-domain", "oracle"])
    with plain_style():
        return {
            (kind, name): inline_svg(figure, f"{kind}-{number}", "A <title>", "told")
            for kind in FIGURES
            for number, (name, figure) in enumerate(FIGURES[kind](findings).items())
        }


def texts(svg):
    return [each.text for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("}text")]


def test_there_is_one_figure_of_each(drawn):
    assert list(drawn) == [
        *(("differences", name) for name in ("Avg", "ColoredMNIST", "PACS")),
        ("ranks", ""),
        *(("curves", name) for name in ("ColoredMNIST", "PACS")),
        ("on-the-line", ""),
        *(("hparams", name) for name in NAMES),
    ]


def test_names_are_text_and_no_formulas(drawn):
    assert "$x_<b>" in texts(drawn["curves", "PACS"])
    assert "$x_<b>" in texts(drawn["differences", "Avg"])
    assert any(text.startswith("$x_<b>") or text.endswith("$x_<b>")
               for text in texts(drawn["ranks", ""]))  # fmt: skip


def test_a_page_colours_the_figures(drawn):
    for svg in drawn.values():
        assert re.findall(r"#[0-9a-f]{6}", svg) == []
        assert "var(--ink)" in svg


def test_ids_are_unique_on_a_page_and_every_link_leads_somewhere(drawn):
    ids = [name for svg in drawn.values() for name in re.findall(r'\bid="([^"]+)"', svg)]
    links = {
        name for svg in drawn.values() for name in re.findall(r'(?:href="|url\()#([^")]+)', svg)
    }
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert len(links) > 20


def test_a_figure_is_named_and_told(drawn):
    root = ElementTree.fromstring(drawn["ranks", ""])
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"
    assert [root[0].text, root[1].text] == ["A <title>", "told"]
    assert "<style" not in drawn["ranks", ""]


def test_many_points_are_gathered():
    rng = np.random.default_rng(0)
    x, y = pd.Series(rng.normal(size=20_000)), pd.Series(rng.normal(size=20_000))
    with plain_style():
        axes = Figure().subplots()
        figures._scatter(axes, x, y, "red", "o")
        few = Figure().subplots()
        figures._scatter(few, x[:ALL_POINTS], y[:ALL_POINTS], "red", "o")
    gathered = [len(line.get_xdata()) for line in axes.lines]
    assert 100 < sum(gathered) <= ACROSS * DOWN
    assert len([count for count in gathered if count]) == 3  # sizes
    assert sum(len(line.get_xdata()) for line in few.lines) == ALL_POINTS


def test_differences_are_drawn_where_they_are(folder):
    findings = Findings(load_records(folder), ["oracle"])
    with plain_style():
        axes = FIGURES["differences"](findings)["PACS"].axes[0]
    rows = findings.differences
    row = rows[(rows["dataset"] == "PACS") & (rows["algorithm"] == "Fishr")].iloc[0]
    shown = [x for line in axes.lines for x in line.get_xdata()]
    assert pytest.approx(row["difference"]) in shown
    _, trials = axes.collections
    ends = [list(segment[:, 0]) for segment in trials.get_segments()]
    assert pytest.approx([row["trials_low"], row["trials_high"]]) in ends


def printed(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        main([*map(str, words)])
    out, err = capsys.readouterr()
    assert exit.value.code == 0, err
    return out


@pytest.mark.parametrize(
    ("suffix", "begins"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")]
)
def test_a_figure_as_a_file(folder, tmp_path, capsys, suffix, begins):
    file = tmp_path / f"ranks.{suffix}"
    said = printed(capsys, "plot", folder, "ranks", "-o", file, "--selection", "oracle")
    assert said == f"Figure: {file}\n"
    assert file.read_bytes().startswith(begins)


def test_several_figures_are_several_files(folder, tmp_path, capsys):
    said = printed(
        capsys, "plot", folder, "hparams", "-o", tmp_path / "h.svg", "--datasets", "PACS"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "h-ERM.svg",
        "h-Fishr.svg",
        "h-_x__b_.svg",
    ]
    assert said.count("Figure: ") == 3
