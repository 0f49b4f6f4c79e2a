"""The report: marks, published numbers, states, escaping, size; and the server of it."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from fake_sweep import DOMAINS, random_run, random_runs, write

from domainbed.cli import main
from domainbed.reporting import build_report, load_records
from domainbed.reporting.page import build_page, to_html
from domainbed.reporting.page.html import FOLDER
from domainbed.reporting.page.serve import is_local, make_server
from domainbed.reporting.page.tables import (
    MAX_ROWS,
    from_section,
    published_cells,
    result_tables,
    state_tables,
)
from domainbed.reporting.render import styled
from domainbed.reporting.section import Section
from domainbed.reporting.single_source import single_source_report
from domainbed.reporting.tables import AVERAGE, Style
from domainbed.runs.states import DONE, INTERRUPTED, PENDING, RUNNING, STATES

HOSTILE = "<script>alert('x')</script>"


def page_of(folder, **options):
    report = build_report(load_records(folder), ["training-domain", "oracle"], **options)
    return build_page(report, folder)


def part(page, name):
    return next(each for each in page.parts if each.name == name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep with a dataset and an algorithm of hostile names, a failed run and missing ones."""
    folder = tmp_path_factory.mktemp("sweep")
    DOMAINS[HOSTILE] = 3
    runs = random_runs(0, (HOSTILE, "ColoredMNIST"), ("ERM", "Fishr", "<i>&"), pairs=False,
                       n_hparams=2, p_missing=0.1)  # fmt: skip
    del DOMAINS[HOSTILE]
    first, second, *_ = write(folder, runs, done=True)
    (first / "done").unlink()
    (first / "err.txt").write_text("Traceback (most recent call last):\nValueError: <b>bad</b>\n")
    (second / "environment.json").write_text('{"torch": "<u>2", "seconds": 36}')
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return page_of(folder)


@pytest.fixture(scope="module")
def html(page):
    return to_html(page)


def test_names_are_escaped(html):
    assert html.count("<script>") == 1
    for raw in ("<script>alert", "<i>&", "<b>bad", "<u>2"):
        assert raw not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "ValueError: &lt;b&gt;bad&lt;/b&gt;" in html


def test_nothing_is_loaded_from_elsewhere(html):
    assert re.findall(r"""(?:src|href|action)=["'](?!#|data:)""", html) == []
    assert re.findall(r"@import|url\((?!#)", html) == []
    # Namespaces of SVG are names, and nothing that is asked for.
    assert set(re.findall(r"https?://[^\"'<\s]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_all_parts_are_there(page):
    assert [each.name for each in page.parts] == [
        *("differences", "results", "ranks", "hparams", "curves", "on-the-line"),
        *("runs", "choices", "environment", "commands", "wrong-images"),
    ]
    assert [each.name for each in page.parts if each.missing] == ["wrong-images"]


def test_first_it_answers_what_differs_from_the_baseline(tmp_path):
    """Of two trials, +10 and +10.2 on every test domain leave zero out; +20 and -10 do not."""
    gains = {"ERM": (0, 0), "IRM": (-0.2, 0.1), "Fish": (0.1, 0.102), "Fishr": (0.2, -0.1)}
    for seed, (name, of_trials) in enumerate(gains.items()):
        runs = random_runs(0, ["PACS"], algorithms=[name], pairs=False)
        for run in runs:
            accuracy = 0.5 + of_trials[run[0]["args"]["trial_seed"]]
            for record in run:
                record.update({f"env{i}_in_acc": accuracy for i in range(4)})
        write(tmp_path / name, runs, seed=seed)
    report = build_report(load_records([tmp_path / name for name in gains]), ["oracle"])
    first, oracle, how = build_page(report, [tmp_path / name for name in gains]).answer
    assert first.startswith("4 algorithms on PACS: 2 trials")
    assert oracle == (
        "By oracle, better than ERM: Fish (+10.1); "
        "not told apart from ERM: IRM (-5.0), Fishr (+5.0)."
    )
    assert "the 95 % interval over 2 trials" in how


def test_cells_are_those_of_the_tables(folder, page):
    report = build_report(load_records(folder), ["training-domain", "oracle"])
    averages, *datasets = part(page, "results").tables[:3]
    assert [table.title for table in datasets] == ["ColoredMNIST", HOSTILE]
    assert averages.title == "Averages"
    colored = datasets[0]
    assert colored.groups == [("", 1), ("training-domain validation set", 4),
                              ("test-domain validation set (oracle)", 4)]  # fmt: skip
    row = next(row for row in colored.rows if row.algorithm == "Fishr")
    cells = [cell for table in report.tables if table.dataset == "ColoredMNIST"
             for cell in table.rows["Fishr"]]  # fmt: skip
    expected = [f"{c.mean:.1f}" + (f" ± {c.std_err:.1f}" if c.std_err else "") for c in cells]
    assert [cell.text for cell in row.cells[1:]] == expected


def test_best_and_near(tmp_path):
    """The best is 60 ± 1.4: 59 is within, 58.5 is not."""
    accuracies = {"ERM": (0.58, 0.62), "IRM": (0.585, 0.585), "Fishr": (0.59, 0.59)}
    for name, of_trials in accuracies.items():
        runs = random_runs(0, algorithms=[name], pairs=False)
        for run in (run for run in runs if run[0]["args"]["test_envs"] == [0]):
            accuracy = of_trials[run[0]["args"]["trial_seed"]]
            write(tmp_path / name, [[{**record, "env0_in_acc": accuracy} for record in run]],
                  seed=int(1000 * accuracy) + run[0]["args"]["trial_seed"])  # fmt: skip
    report = build_report(load_records([tmp_path / name for name in accuracies]), ["oracle"])
    (table,) = result_tables(report, {})  # one dataset is its own average
    cells = {row.algorithm: row.cells[1] for row in table.rows}
    assert cells["ERM"].text == "60.0 ± 1.4"
    assert {name: cell.kind for name, cell in cells.items()} == {
        "ERM": "best weak", "IRM": "", "Fishr": "near weak",  # of two trials
    }  # fmt: skip


def results(page, dataset):
    table = next(each for each in part(page, "results").tables if each.title == dataset)
    return {row.algorithm: row.cells for row in table.rows}


def test_the_style_of_tables_is_that_of_the_report(folder):
    report = build_report(load_records(folder), ["oracle"])
    style = Style(decimals=2, spread="ci95", second=True, order="mean", domains=["-90%"])
    page = build_page(styled(report, style), folder)
    table = next(t for t in report.tables if t.dataset == "ColoredMNIST")
    by_mean = sorted(table.rows, key=lambda name: -table.rows[name][-1].mean)
    cells = results(page, "ColoredMNIST")
    assert list(cells) == by_mean
    second, of_last = by_mean[1], table.rows[by_mean[1]][2]
    assert cells[second][1].text == f"{of_last.mean:.2f} ± {style.spread_of(of_last):.2f}"
    assert [name for name in by_mean if "second" in cells[name][-1].kind] == [second]
    intro = part(page, "results").intro
    assert "held out, ± half of the 95 % interval over trials; X: no result." in intro
    assert "Underlined: the second best." in intro
    assert "second best</span>" in to_html(page)
    plain = result_tables(styled(report, Style(spread="none")))[1]
    assert {"±" in cell.text or "second" in cell.kind
            for row in plain.rows for cell in row.cells} == {False}  # fmt: skip


@pytest.mark.parametrize("usual", [True, False])
def test_runs_on_one_training_domain_have_tables_of_their_own(tmp_path, usual):
    rng = random.Random(0)
    runs = [random_run(rng, "PACS", name, [e for e in range(4) if e != source], 0, trial)
            for name in ("ERM", "Fishr") for source in range(4) for trial in range(2)]  # fmt: skip
    runs += random_runs(1, ["PACS", "ColoredMNIST"], ["ERM"], pairs=False) if usual else []
    write(tmp_path, runs)
    methods = ["training-domain", "leave-one-domain-out", "oracle"]
    report = build_report(load_records(tmp_path), methods)
    domains = ["S", "+80%"] if usual else ["S"]
    page = build_page(styled(report, Style(decimals=2, domains=domains)), tmp_path)
    (table,) = part(page, "single-source").tables
    assert [name for name, _ in table.groups][1:] == [report.methods[i].title for i in (0, 2)]
    assert table.header[1:6] == ["S", "A", "C", "P", "Avg"]
    expected = single_source_report(load_records(tmp_path), ["oracle"]).tables[0].rows["Fishr"][3]
    row = next(row for row in table.rows if row.algorithm == "Fishr")
    assert row.cells[6].text == f"{expected.mean:.2f} ± {expected.std_err:.2f}"
    assert "single-source" in to_html(page)


def test_what_papers_print_stands_below(folder):
    report = build_report(load_records(folder), ["oracle"], ["ColoredMNIST"])
    papers = published_cells(report)
    (table,) = result_tables(report, papers)
    row = next(row for row in table.rows if row.algorithm == "ERM")
    assert [[line.text for line in cell.lines] for cell in row.cells] == [
        [], ["[1] 71.8 ± 0.4"], ["[1] 72.9 ± 0.1"], ["[1] 28.7 ± 0.5"],
        ["[1] 57.8 ± 0.2", "[2] 57.8 ± 0.2"],
    ]  # fmt: skip
    assert table.notes[0].startswith("Printed by [1] domainbed-2020, [2] fishr-2022.")
    assert set(papers["fishr-2022"]["domain"]) == {AVERAGE}


def test_states_and_the_reason_of_every_gap(folder, page):
    runs = part(page, "runs")
    args = [json.loads(file.read_text().splitlines()[0])["args"]
            for file in folder.glob("*/results.jsonl")]  # fmt: skip
    told = " ".join(cell.text for table in runs.tables for row in table.rows for cell in row.cells)
    counts = {state: sum(map(int, re.findall(rf"(\d+) {state}", told)))
              for state in ("done", "failed", "missing")}  # fmt: skip
    assert counts == {"done": len(args) - 1, "failed": 1, "missing": 72 - len(args)}
    whys = [why for _, reasons in runs.reasons for why in reasons]
    assert any(why.startswith("failed: ") and "ValueError: <b>bad</b>" in why for why in whys)
    assert any(why.startswith("missing: ") for why in whys)


def test_many_gaps_are_closed(page):
    runs = part(page, "runs")
    for count, is_open in ((50, True), (51, False)):
        few = replace(runs, reasons=[(f"place {number}", ["why"]) for number in range(count)])
        html = to_html(replace(page, parts=[few]))
        head = f'Gaps, and the reason of each <span class="count">({count})</span>'
        assert (f"<details open><summary>{head}" in html) == is_open
        assert (f"<details><summary>{head}" in html) != is_open


@pytest.mark.parametrize("state", STATES)
def test_every_state_has_a_colour(state):
    style = (FOLDER / "style.css").read_text()
    assert f"td.{state} {{ background: var(--{state}); }}" in re.sub(
        r" font-weight: 600;", "", style
    )
    assert style.count(f" --{state}: #") == 2  # light and dark


def test_what_became_of_the_runs_of_a_cell():
    rows = [("ERM", DONE, 5), ("ERM", PENDING, 2), ("Fishr", INTERRUPTED, 1), ("Fishr", RUNNING, 1)]
    counts = pd.DataFrame(
        [("Birds", name, (0,), state, number) for name, state, number in rows],
        columns=["dataset", "algorithm", "test_envs", "state", "runs"],
    )
    (table,) = state_tables(counts, pd.DataFrame({"dataset": []}))
    cells = {row.algorithm: (row.cells[1].text, row.cells[1].kind) for row in table.rows}
    assert cells == {
        "ERM": ("5 done, 2 pending", "pending"),
        "Fishr": ("1 running, 1 interrupted", "interrupted"),
    }


def test_a_part_that_shows_nothing_says_why(tmp_path):
    write(tmp_path, random_runs(0, algorithms=["Fishr"], n_trials=1, pairs=False))
    page = page_of(tmp_path)
    assert "no records of algorithm 'ERM', the baseline" in part(page, "differences").missing
    assert "two algorithms" in part(page, "ranks").missing
    assert "do not record their environment" in part(page, "environment").missing
    assert "Not shown: " in to_html(page)


def test_long_tables_are_cut_and_say_so():
    rows = [[str(number)] for number in range(MAX_ROWS + 7)]
    table = from_section(Section("x", "x", ["n"], rows, [], None))
    assert len(table.rows) == MAX_ROWS
    assert table.notes == ["7 more rows are left out"]


def test_the_command_writes_and_tells_where(tmp_path, capsys):
    write(tmp_path, random_runs(0, pairs=False))
    (tmp_path / "sweep.yaml").write_text("datasets: [ColoredMNIST]\nselection: [oracle]\n")
    with pytest.raises(SystemExit) as exit:
        main(["report", str(tmp_path)])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\n"
    text = (tmp_path / "report.html").read_text()
    assert "test-domain validation set (oracle)" in text
    assert "training-domain validation set" not in text
    assert "datasets: [ColoredMNIST]\nselection: [oracle]" in text
    assert f"domainbed sweep launch {tmp_path}/sweep.yaml" in text
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--decimals", "3", "--spread", "none"])
    assert re.search(r"<span>\d\d\.\d{3}</span>", (tmp_path / "report.html").read_text())


class Served(NamedTuple):
    """A folder, a function that asks the server of its report, what was made, and where it is."""

    folder: Path
    ask: Callable[..., tuple[int, str]]
    made: list[int]
    address: tuple[str, int]


@pytest.fixture
def served(tmp_path):
    """A folder without a record, and a function that asks the server of its report."""
    made = []

    def render():
        report = build_report(load_records(tmp_path), ["oracle"])
        made.append(len(report.records))
        return f"a page of {len(report.records)} records"

    def ask(path="/", host=None):
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}")
        request.selector = path
        if host:
            request.add_unredirected_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with make_server(render, tmp_path, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Served(tmp_path, ask, made, ("127.0.0.1", server.server_port))
        server.shutdown()
        thread.join()


def test_a_running_sweep_is_served(served):
    folder, ask, made, _ = served
    status, text = ask()
    assert (status, made) == (200, [])
    assert "no records in" in text
    assert 'data-refresh="15"' in text
    first, second = random_runs(0, algorithms=["ERM"], pairs=False)[:2]
    write(folder, [first])
    assert ask() == ask() == (200, "a page of 3 records")
    write(folder, [second], seed=1)
    assert ask() == (200, "a page of 6 records")
    assert made == [3, 6]  # once for each state of the folder


@pytest.mark.parametrize(
    "path",
    ["/results.jsonl", "/../secret", "//etc/passwd", "/%2e%2e/secret", "/?x", "/report.html"],
)
def test_no_file_can_be_read(served, path):
    folder, ask, *_ = served
    (folder / "report.html").write_text("secret")
    (folder.parent / "secret").write_text("secret")
    assert ask(path) == (404, "there is one page, at /\n")


def test_a_connection_that_asks_nothing_keeps_nobody_waiting(served):
    ask = served.ask
    with socket.create_connection(served.address):
        assert ask()[0] == 200


def test_other_names_of_this_machine_are_refused(served):
    ask = served.ask
    assert ask(host="evil.example:80")[0] == 403
    assert ask(host="localhost")[0] == 200


def test_which_addresses_are_local():
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))
    assert not any(map(is_local, ("0.0.0.0", "10.0.0.1", "::", "example.org")))


def test_two_hundred_requests_at_once_are_all_answered(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with make_server(lambda: "page " * 20_000, tmp_path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request = b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
        clients = [socket.create_connection(server.server_address, 10) for _ in range(200)]
        for client in clients:  # all connected before the first of them asks
            client.sendall(request)
        for client in clients:
            with client, client.makefile("rb") as answer:
                assert len(answer.read()) > 100_000
        server.shutdown()
