"""The snippets of README.md and docs/ do what the pages say.

Sybil finds them: of the libraries that test Markdown (pytest-examples, mktestdocs,
pytest-markdown-docs) it alone has code blocks of any language, one namespace a page, invisible
blocks that prepare what a page takes for granted, and errors with the line of the page. Its parsers
are called from one test a page instead of its pytest plug-in: snippets build on those above them,
so that parallel workers must not share a page.

A comment before a block says what is special about it:

    <!-- file: my_method.py -->        the block is the content of a file that later blocks use
    <!-- shortened: --steps 2 -->      these flags are added to the block's commands that train
    <!-- not run: needs a network -->  only the flags of its commands are checked
    <!-- invisible-code-block: sh      prepares something, without being seen
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_files import REPOSITORY, run_shell
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from domainbed.sweeps.config import load_config

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")),
         *sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))]  # fmt: skip
MARKER = re.compile(r"<!-- (file|shortened|not run): (.+) -->\n+$")
# Languages that say nothing that could be run.
TEXT_ONLY = {"", "csv", "toml"}


SLOW = {
    *("add_a_dataset", "backbones", "clusters", "data_path", "diagnostics", "irm_colored_mnist"),
    *("bring_your_code", "metrics", "own_data", "sweeps", "tables_and_arrays"),
}
"""Pages whose commands take minutes in all."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else (), id=page.stem)
        for page in PAGES
    ],
)
def test_the_snippets_of_a_page_run(page, workspace, request):
    if re.search(r'data_dir data\b|\("data"\)', page.read_text()):
        request.getfixturevalue("data_dir")
    for example in parsed(page).examples():
        example.evaluate()


def test_no_snippet_escapes():
    """Every block has a language that is run here, or none."""
    fences = [fence for page in PAGES for fence in opening_fences(page.read_text())]
    assert len(fences) > 30
    assert set(fences) <= RUNNERS.keys() | TEXT_ONLY


def parsed(page: Path) -> Document:
    parsers = [CodeBlockParser(language, evaluate) for language in RUNNERS]
    return Document.parse(str(page), *parsers)


def opening_fences(text: str) -> Iterator[str]:
    """The languages of the blocks."""
    return (fence.group(1) for fence in re.finditer(r"^ *```(.*)\n[\s\S]*?^ *```$", text, re.M))


def evaluate(example: Example) -> None:
    kind, words = marker(example)
    if kind == "file":
        Path(words).write_text(local(example.parsed))
    elif kind == "not run":
        check_flags(example.parsed)
    else:
        RUNNERS[example.region.lexemes["arguments"]](example, words)


def marker(example: Example) -> tuple[str, str]:
    """What the comment before a block says: its kind and its words, both empty without one."""
    found = MARKER.search(example.document.text[: example.region.start])
    return (found.group(1), found.group(2)) if found else ("", "")


def local(text: str) -> str:
    """Pages name the reader's own folders as /path/to/…; here they lie in the working folder."""
    return text.replace("/path/to/", "")


def with_flags(flags: str) -> str:
    """A shell function that adds flags to the commands that train; the last of a flag counts."""
    added = f'train|irm-colored-mnist) command domainbed "$@" {flags};;'
    return f'domainbed() {{ case "$1" in {added} *) command domainbed "$@";; esac; }}'


def check_flags(source: str) -> None:
    """Every `--flag` of a command that is not run is one that its `--help` knows."""
    for line in source.replace("\\\n", " ").splitlines():
        command = re.match(r"\s*(domainbed|python \S+\.py)( [^-#|>$\s]\S*)*", line)
        if command is None:
            continue
        words = [word for word in shlex.split(line, comments=True) if re.match(r"--\w", word)]
        known = run_shell(f"{command.group()} --help", Path.cwd())
        unknown = [word for word in words if not re.search(rf"{word}\b", known)]
        assert not unknown, f"{command.group()} has no {unknown}"


def run_python(example: Example, _: str) -> None:
    PythonEvaluator()(example)


def run_commands(example: Example, flags: str) -> None:
    run_shell(local(example.parsed), Path.cwd(), with_flags(flags))


def check_sweep(example: Example, _: str) -> None:
    """YAML that is no file of its page is a sweep's configuration."""
    config = Path("sweep.yaml")
    config.write_text(local(example.parsed))
    load_config(config)


RUNNERS = {"python": run_python, "sh": run_commands, "yaml": check_sweep}
