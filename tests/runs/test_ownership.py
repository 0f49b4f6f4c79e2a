"""Who owns a folder: one process at a time, whatever file systems, clocks and processes do."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domainbed.core.files import append_text, remove_asides, write_text
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.errors import UserError
from domainbed.runs import ownership
from domainbed.runs.folder import RunFolder
from domainbed.runs.ownership import (
    Found,
    Owner,
    Process,
    newest,
    owning,
    process_stat,
    seems_at_work,
    silent_for,
)
from domainbed.runs.states import INTERRUPTED, RUNNING, Busy, Lost

HEARTBEAT, SILENCE = 0.05, 0.4
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINBED_HEARTBEAT_SECONDS", str(HEARTBEAT))
    monkeypatch.setenv("DOMAINBED_SILENCE_SECONDS", str(SILENCE))
    monkeypatch.setattr(ownership, "_seen", {})


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners are taken for those of another machine, of whose processes nothing is known."""
    monkeypatch.setattr(Process, "is_near", lambda self: False)
    monkeypatch.setattr(Owner, "has_left", lambda self: self.released)


def numbers(folder: Path) -> list[int]:
    return sorted(int(f.name.split(".")[1]) for f in folder.glob("owner.*.json"))


def found_in(folder: Path) -> tuple[Found, Owner]:
    found = newest(folder)
    assert found is not None
    assert found.owner is not None
    return found, found.owner


def write_owner(folder: Path, number: int = 1, **changes: Any) -> Owner:
    """One that this process did not make."""
    owner = replace(Owner.here(), **changes)
    (folder / f"owner.{number}.json").write_text(owner.text())
    return owner


def strange(**changes: Any) -> Process:
    return replace(Process.here(), **changes)


@contextmanager
def beating(folder: Path, number: int = 1) -> Iterator[None]:
    """An owner that writes its file as another machine does."""
    owner, ended = Owner.here(), threading.Event()

    def beat() -> None:
        for count in range(10**6):
            write_text(folder / f"owner.{number}.json", replace(owner, beat=count).text())
            if ended.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        while not (folder / f"owner.{number}.json").exists():
            time.sleep(0.001)
        yield
    finally:
        ended.set()
        thread.join()


def test_one_at_a_time_and_then_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINBED_ENGINE", "slurm")
    monkeypatch.setenv("DOMAINBED_JOB", "17_3")
    for number in (1, 2):
        with owning(tmp_path):
            with pytest.raises(Busy, match=f"at work in .* \\(process {os.getpid()} of "):
                owning(tmp_path).__enter__()
            found, owner = found_in(tmp_path)
            assert (found.number, owner.engine, owner.job) == (number, "slurm", "17_3")
            assert seems_at_work(tmp_path, found)
        found, owner = found_in(tmp_path)
        assert owner.released
        assert not seems_at_work(tmp_path, found)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["owner.1.json", "owner.2.json"]


def test_the_status_names_who_is_at_work(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.exclusive():
        status = folder.status()
        assert (status.state, status.pid) == (RUNNING, os.getpid())
        assert status.host == Process.here().host
        assert status.silent_for < 5
    folder.spec.write_text("{}")
    assert (folder.status().state, folder.status().pid) == (INTERRUPTED, os.getpid())


def test_the_heart_beats(tmp_path: Path) -> None:
    def beat() -> float:
        return float(json.loads((tmp_path / "owner.1.json").read_text())["beat"])

    with owning(tmp_path):
        for _ in range(3):
            before, deadline = beat(), time.monotonic() + 20
            while beat() == before:
                assert time.monotonic() < deadline, "it stands still"
                time.sleep(HEARTBEAT)
            assert beat() > before


def no_links(*of_files: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("links", [True, False])
def test_of_racing_threads_one_wins(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    threads, rounds, won = 8, 20, []
    together = threading.Barrier(threads, timeout=60)

    def race() -> None:
        for number in range(rounds):
            with ExitStack() as stack:
                together.wait()
                try:
                    stack.enter_context(owning(tmp_path))
                    won.append(number)
                except Busy:
                    pass
                together.wait()

    racers = [threading.Thread(target=race) for _ in range(threads)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert won == list(range(rounds))
    assert numbers(tmp_path) == list(range(1, rounds + 1))


@pytest.mark.parametrize("when", ["before the link", "after it"])
def test_what_lies_aside_is_removed_by_another_owner(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by one that was faster, or that slept between its claim and its sweep."""
    link, others = os.link, []

    def swept(aside: Path, file: Path) -> None:
        if others:
            return link(aside, file)
        others.append(Owner(replace(Process.here(), pid=os.getppid()), "", "", "other"))
        if when == "after it":
            file.write_text(others[0].text())
        remove_asides(tmp_path)
        link(aside, file)

    monkeypatch.setattr(os, "link", swept)
    if when == "after it":
        monkeypatch.setattr(Owner, "has_left", lambda self: self.released)
        with pytest.raises(Busy), owning(tmp_path):
            pass
    else:
        with owning(tmp_path):
            assert numbers(tmp_path) == [1]
    assert len(others) == 1


def race_of_processes(folder: Path, together: Any, rounds: int) -> None:
    for number in range(rounds):
        with ExitStack() as stack:
            together.wait()
            try:
                stack.enter_context(owning(folder))
                (folder / f"won.{number}.{os.getpid()}").touch()
            except Busy:
                pass
            together.wait()


def test_of_racing_processes_one_wins(tmp_path: Path) -> None:
    processes, rounds = 4, 20
    together = FORK.Barrier(processes)
    racers = [
        FORK.Process(target=race_of_processes, args=(tmp_path, together, rounds))
        for _ in range(processes)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    won = [int(file.name.split(".")[1]) for file in tmp_path.glob("won.*")]
    assert sorted(won) == list(range(rounds))


def test_the_dead_are_succeeded_by_one_of_those_who_race(tmp_path: Path) -> None:
    """All wait for the same silence, and all find the folder free at about the same time."""
    write_owner(tmp_path, process=strange(host="elsewhere"))
    outcomes: list[str] = []
    together = threading.Barrier(6)

    def race() -> None:
        together.wait()
        try:
            with owning(tmp_path):
                outcomes.append("won")
                together.wait()
        except Busy:
            outcomes.append("busy")
            together.wait()

    racers = [threading.Thread(target=race) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == ["busy"] * 5 + ["won"]


def test_no_lock_of_the_system_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*of_lock: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(f"fcntl.{name}", refused)
    with owning(tmp_path), pytest.raises(Busy):
        owning(tmp_path).__enter__()


def test_a_link_whose_answer_was_lost_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request, and the repetition finds what the first one made."""
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    with owning(tmp_path):
        assert numbers(tmp_path) == [1]
        with pytest.raises(Busy):
            owning(tmp_path).__enter__()


def hide(monkeypatch: pytest.MonkeyPatch, hidden: Any) -> None:
    """What `hidden` says of a name is not to be seen, as through an old cache; it can be tried."""
    listdir, lexists, read_bytes = os.listdir, os.path.lexists, Path.read_bytes

    def read(file: Path) -> bytes:
        if hidden(file.name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        return read_bytes(file)

    monkeypatch.setattr(os, "listdir", lambda f: [n for n in listdir(f) if not hidden(n)])
    monkeypatch.setattr(os.path, "lexists", lambda f: lexists(f) and not hidden(Path(f).name))
    monkeypatch.setattr(Path, "read_bytes", read)


def test_an_owner_that_is_seen_late_is_not_overrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    """Its file and those before it show themselves only after another has begun to look."""
    write_owner(tmp_path, 1, released=True)
    write_owner(tmp_path, 2, released=True)
    visible_from = time.monotonic() + SILENCE / 2
    with beating(tmp_path, 3), monkeypatch.context() as patch:
        hide(patch, lambda n: n.startswith("owner") and time.monotonic() < visible_from)
        with pytest.raises(Busy):
            owning(tmp_path).__enter__()
    assert numbers(tmp_path) == [1, 2, 3]


def test_an_owner_that_does_not_see_its_successor_is_told_in_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setattr(ownership.Ownership, "_tell", lambda *_: None)  # its thread stands still
        first = ownership._claimed(tmp_path)
        first.check()
        stack.enter_context(owning(tmp_path))
        assert numbers(tmp_path) == [1, 2]
        hide(patch, lambda name: name == "owner.2.json")
        with pytest.raises(Lost, match="has taken over"):
            first.check()


@pytest.mark.parametrize("years", [-10, 10])
def test_wrong_clocks_neither_kill_nor_keep(
    years: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    """The times of files jump, and nobody asks what time it is."""

    def asked() -> float:
        raise AssertionError("a clock that may jump was asked")

    stat = Path.stat

    class Jumped:
        def __init__(self, facts: os.stat_result) -> None:
            self.facts, self.st_mtime = facts, facts.st_mtime + years * 365 * 86400

        def __getattr__(self, name: str) -> Any:
            return getattr(self.facts, name)

    monkeypatch.setattr(Path, "stat", lambda file, **_: Jumped(stat(file)))
    monkeypatch.setattr(time, "time", asked)
    with beating(tmp_path), pytest.raises(Busy):
        owning(tmp_path).__enter__()
    with owning(tmp_path):
        assert numbers(tmp_path) == [1, 2]


def test_a_look_tells_silence_from_two_times_of_the_file_server(
    tmp_path: Path, elsewhere: None
) -> None:
    write_owner(tmp_path)
    file, folder = tmp_path / "owner.1.json", RunFolder(tmp_path)
    folder.spec.write_text("{}")
    now = file.stat().st_mtime
    os.utime(file, (now - 100, now - 100))
    assert folder.status().state == INTERRUPTED
    assert 100 <= folder.status().silent_for < 110
    write_owner(tmp_path)  # a sign of life
    assert folder.status().state == RUNNING
    os.utime(file, (now + 1000, now + 1000))
    assert folder.status().state == RUNNING
    time.sleep(1.2 * SILENCE)  # it is this process's own clock that counts from there
    assert folder.status().state == INTERRUPTED
    assert sorted(os.listdir(tmp_path)) == ["owner.1.json", "run.json"]


def test_who_stood_still_itself_takes_nobody_for_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    """A machine that slept, or waited for its file server, has watched nobody meanwhile."""
    write_owner(tmp_path)
    now, looks = 0.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now, looks
        now, looks = now + 1000, looks + 1
        if looks == 5:
            write_owner(tmp_path, beat=1)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(Busy):
        owning(tmp_path).__enter__()
    assert looks == 5


def test_waiting_for_silence_ends_where_a_stop_is_requested(
    tmp_path: Path, elsewhere: None
) -> None:
    write_owner(tmp_path)
    with stopping_on([]):
        request_stop()
        with pytest.raises(Interrupted):
            owning(tmp_path).__enter__()
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize("content", [b"", b'{"process": {"ho', b"[]", b'{"process": 1}', b"\xff"])
def test_a_damaged_owner_is_waited_for(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "owner.1.json").write_bytes(content)
    began = time.monotonic()
    with owning(tmp_path):
        assert time.monotonic() - began >= SILENCE
        assert numbers(tmp_path) == [1, 2]


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    assert not Process.here().is_gone()
    assert strange(started="1").is_gone()
    assert not strange(started="1", host="elsewhere").is_gone()
    assert not strange(started="1", boot="").is_gone()
    assert not strange(started="1", namespace="pid:[1]").is_gone()
    write_owner(tmp_path, process=strange(started="1"))
    began = time.monotonic()
    with owning(tmp_path):
        assert time.monotonic() - began < SILENCE
    assert not strange(pid=0).is_gone()  # which would be all processes of the group


def test_a_zombie_is_gone() -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process_stat(child)[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.005)
    process = strange(pid=child, started=process_stat(child)[1])
    assert process.is_gone()
    os.waitpid(child, 0)
    assert process.is_gone()


@contextmanager
def another_process(folder: Path) -> Iterator[tuple[Any, Any]]:
    """One that is at work in a folder, and the pipe that it tells of its end in."""
    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=own_and_write, args=(folder, theirs))
    child.start()
    try:
        assert ours.recv() == "at work"
        yield child, ours
    finally:
        child.kill()
        child.join()


def own_and_write(folder: Path, pipe: Any) -> None:
    """Owns a folder and writes in all ways that a run does, until it must not."""
    run, turn = RunFolder(folder), 0
    try:
        with run.exclusive():
            while True:
                turn += 1
                append_text(run.results, f'{{"of": "first", "turn": {turn}}}\n')
                write_text(run.checkpoint, f"first {turn}")
                append_text(run.out, f"first {turn}\n")
                if turn == 5:
                    pipe.send("at work")
    except Lost as error:
        pipe.send(str(error))


def test_an_owner_that_wakes_after_a_takeover_writes_nothing(tmp_path: Path) -> None:
    """Stopped at whatever it was at, many times."""
    for attempt in range(5):
        run = RunFolder(tmp_path / str(attempt))
        with another_process(run.path) as (child, pipe):
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(1.5 * SILENCE)
            stack = ExitStack()
            stack.enter_context(run.exclusive())
            write_text(run.results, "")  # as the one who goes on does, from its checkpoint
            before = run.checkpoint.read_text()
            os.kill(child.pid, signal.SIGCONT)
            assert pipe.poll(10)
            assert "has taken over" in pipe.recv()
            child.join()
        with stack:
            append_text(run.results, "second\n")
            assert run.results.read_text() == "second\n"
            assert run.checkpoint.read_text() == before
            assert sorted(os.listdir(run.path)) == [
                *("checkpoint.pt", "out.txt", "owner.1.json", "owner.2.json", "results.jsonl"),
            ]


def test_a_killed_owner_is_gone_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with another_process(tmp_path) as (child, _):
        assert folder.status().state == RUNNING
        assert folder.status().pid == child.pid
    began = time.monotonic()
    assert folder.status().state == INTERRUPTED
    with folder.exclusive():
        assert time.monotonic() - began < SILENCE


def test_a_full_disk_ends_no_heart_and_holds_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(file: Path, *content: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    def beat() -> int:
        return int(json.loads((tmp_path / "owner.1.json").read_text())["beat"])

    with owning(tmp_path):
        monkeypatch.setattr(Path, "write_text", full)
        time.sleep(2 * HEARTBEAT)
        stopped_at = beat()
        time.sleep(2 * HEARTBEAT)
        assert beat() == stopped_at
        monkeypatch.setattr(Path, "write_text", write)
        time.sleep(3 * HEARTBEAT)
        assert beat() > stopped_at
        monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "write_text", write)
    assert not found_in(tmp_path)[1].released  # that could not be written
    began = time.monotonic()
    with owning(tmp_path):
        assert time.monotonic() - began < SILENCE


def test_a_folder_that_is_removed_is_told_of(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "sweep" / "run")

    def work() -> None:
        with folder.exclusive():
            for file in folder.path.iterdir():
                file.unlink()
            folder.path.rmdir()
            append_text(folder.results, "{}\n")

    with pytest.raises(UserError, match="was removed while its run was under way"):
        work()
    assert not folder.path.exists()


def test_who_removes_the_owners_file_takes_the_folder_away(tmp_path: Path) -> None:
    with owning(tmp_path):
        (tmp_path / "owner.1.json").unlink()
        with pytest.raises(Lost):
            write_text(tmp_path / "done", "done")
    assert not (tmp_path / "done").exists()


def test_silence_is_told_of_what_cannot_be_written_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    """In somebody else's folder, which may only be read."""
    write_owner(tmp_path)

    def refused(*of_file: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    found, _ = found_in(tmp_path)
    monkeypatch.setattr(Path, "open", refused)
    assert silent_for(tmp_path, found) < SILENCE
    time.sleep(1.2 * SILENCE)
    assert silent_for(tmp_path, found) > SILENCE


@pytest.mark.parametrize("text", ["soon", "-1", "nan", ""])
def test_no_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINBED_SILENCE_SECONDS", text)
    with pytest.raises(UserError, match=f"DOMAINBED_SILENCE_SECONDS is '{text}': give a number"):
        ownership.silence_seconds()
