"""Text of a stranger's records in every output format of the tables."""

import csv
import io
import json
import re

import pandas as pd
from fake_sweep import random_runs, write

from domainbed.core.text_table import csv_text, in_csv, in_latex, json_text
from domainbed.reporting import RENDERERS, build_report, load_records
from domainbed.reporting.section import SECTION_RENDERERS, Section

FORMATS = ("text", "markdown", "latex", "csv", "json")
EVIL = [
    '=cmd|" /C calc"!A0', "@SUM(1)", "+1+cmd|x", "-2+3", "\t=1", "a\n\\input{/etc/passwd}",
    "\\write18{rm}", "%\n\\end{document}", "\x1b]0;title\x07\x1b[31mred", "\x9b31m", "\u202eevil",
    "<script>alert(1)</script>", "<img src=x onerror=y>", "a | b\r\n# heading", "$x_1^2$ & y",
]  # fmt: skip


def test_no_cell_is_run_by_a_spreadsheet():
    cells = next(csv.reader(io.StringIO(csv_text(pd.DataFrame(columns=EVIL)))))
    assert len(cells) == len(EVIL)
    for cell in cells:
        assert cell.isprintable()
        assert cell[0] not in "=+-@"
    assert [
        in_csv(name) for name in ("-90%", "+80%", "63.1 +/- 0.4", "ERM + SWAD", "-2e-05", -1.5)
    ] == [
        *("-90%", "+80%", "63.1 +/- 0.4", "ERM + SWAD", "-2e-05"),
        -1.5,
    ]


def test_latex_has_no_command_of_the_text():
    known = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|[&%$#_{}])"
    for text in EVIL:
        found = in_latex(text)
        assert "\n" not in found
        assert "\\" not in re.sub(known, "", found)


def test_json_is_the_same_value_and_harmless_on_a_terminal():
    found = json_text({"names": EVIL})
    assert json.loads(found) == {"names": EVIL}
    assert all(char.isprintable() or char == "\n" for char in found)


def test_every_format_of_results_is_safe(tmp_path):
    runs = random_runs(0, ["Birds"], EVIL, pairs=False, n_trials=1, protocol="x\n\\input{a}<b>")
    write(tmp_path, runs)
    report = build_report(load_records(tmp_path), ["oracle"])
    for name in FORMATS:
        _check(name, RENDERERS[name](report))


def test_every_format_of_sections_is_safe():
    rows = [[text, "1.0"] for text in EVIL]
    frame = pd.DataFrame({"algorithm": EVIL})
    sections = [Section(text, text, [text, "b"], rows, [text], frame) for text in EVIL]
    for name in FORMATS:
        _check(name, SECTION_RENDERERS[name](sections))


def _check(name: str, found: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in found), name
    if name == "latex":
        assert not re.search(r"^[^%\n]*\\(input|write18)", found, re.MULTILINE)
        assert not re.search(r"^[^%\n]*\\end\{document", found, re.MULTILINE)
    if name == "markdown":
        assert not re.search(r"(?<!\\)<(?!u>|/u>)", found)
    if name == "csv":
        for row in csv.reader(io.StringIO(found)):
            assert not any(cell[:1] in ("=", "@", "+") for cell in row)
