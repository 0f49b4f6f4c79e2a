"""What a run's folder says of itself, and what no process does in it."""

import pytest

from domainbed.core.text_table import pipe_table, printable, text_table
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder, read_records
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, MISSING, PENDING, RUNNING, RunStatus


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


@pytest.mark.parametrize("name", ["out.txt", "results.jsonl", "err.txt"])
def test_a_link_in_a_run_is_never_written_through(folder, tmp_path, name):
    target = tmp_path / "precious.txt"
    target.write_text("mine\n")
    (folder.path / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link.*remove it"), folder.exclusive():
        pass
    assert target.read_text() == "mine\n"
    (folder.path / name).unlink()
    with folder.exclusive():  # the refusal has let go of it
        pass


def test_the_target_of_a_linked_err_is_not_shown(folder, tmp_path):
    (tmp_path / "secret").write_text("Traceback (most recent call last)\nsecret\n")
    folder.errors.symlink_to(tmp_path / "secret")
    assert folder.last_error() == f"{folder.errors} is a link: remove it"


def test_done_counts_only_with_whole_records(folder):
    folder.done.write_text("done")
    for content in (None, b"", b'{"step": 0}\n{"st'):
        if content is not None:
            folder.results.write_bytes(content)
        assert folder.state() == FAILED
        assert "records are not whole" in folder.last_error()
    for mark in ("done", None):
        folder.results.write_bytes(b'{"step": 0}\n')
        if mark is None:
            folder.mark_done('{"step": 0}\n')
        assert (folder.state(), folder.last_error()) == (DONE, "")
        folder.results.write_bytes(b'{"step": 0}')  # by an editor
        assert folder.state() == DONE
        assert read_records(folder.path) == (b'{"step": 0}\n', mark is None)
        folder.results.write_bytes(b'{"step": 0')
        assert folder.state() == FAILED


def test_an_empty_err_is_no_failure_and_any_word_of_this_program_is_one(folder):
    folder.errors.write_text(" \n")
    folder.spec.write_text("{}")
    assert folder.state() == INTERRUPTED
    folder.spec.unlink()
    folder.errors.write_text("the worker died with signal 9 (SIGKILL)\n")
    assert folder.state() == FAILED
    folder.out.write_text("")  # that of DomainBed, which keeps warnings in err.txt
    assert folder.last_error() == ""


def test_a_pending_run_names_its_job_until_it_is_taken_up(folder):
    folder.path.rmdir()
    folder.mark_pending("slurm", "17_3", {})
    assert folder.status() == RunStatus(PENDING, engine="slurm", job="17_3")
    folder.refuse_foreign()
    folder.errors.write_text("ImportError: no such plugin\n")
    assert folder.state() == FAILED
    folder.errors.unlink()
    with folder.exclusive():
        assert folder.state() == RUNNING
    assert folder.state() == MISSING
    folder.mark_pending("slurm", "18", {})
    folder.pending.write_text("{")
    assert folder.status() == RunStatus(PENDING)
    folder.pending.unlink()
    folder.spec.write_text("{}")
    assert folder.state() == INTERRUPTED


def test_the_log_of_its_job_is_found_from_a_run_also_where_the_sweep_was_moved(tmp_path):
    folder = RunFolder(tmp_path / "sweep" / "run")
    folder.path.mkdir(parents=True)
    for text in ("first", "second"):
        file = tmp_path / "sweep" / ".launcher" / f"{text}.out"
        folder.link_log(file)
        assert not folder.log.exists()  # the job has not begun
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    folder.refuse_foreign()
    moved = RunFolder((tmp_path / "sweep").rename(tmp_path / "moved") / "run")
    assert moved.log.read_text() == "second"


def test_control_characters_of_an_error_reach_nobody(folder):
    folder.spec.write_text("{}")
    folder.errors.write_text("\x1b]0;title\x07\x1b[31mred\x1b[0m \x9b2J\x08text\n")
    assert folder.last_error() == "red 2Jtext"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 数 text", "plain é 数 text"),
        ("two\nlines\tand\xa0more", "two lines and more"),
        ("\x1b[2J\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\x1bc\r", "link "),
        ("\u202egnp.exe\udcff\x00", "gnp.exe"),
        ("\x1b", ""),
    ],
)
def test_printable_text_is_one_line_that_no_terminal_acts_upon(text, shown):
    assert printable(text) == shown
    assert text_table([[text, 1]])[0].split("  ")[0].rstrip() == shown.rstrip()
    assert pipe_table([["head"], [text]])[-1] == f"| {shown} |"
