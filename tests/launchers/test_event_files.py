"""Events on a shared file system."""

import os

from domainbed.launchers.base import Event
from domainbed.launchers.event_files import EventReader, EventWriter
from domainbed.runs.states import DONE, FAILED, PROGRESS, STARTED


def test_events_come_out_once_and_in_order(tmp_path):
    reader = EventReader(tmp_path / "shared", ["7_1"])
    assert reader.read() == []  # there is no folder yet
    writer = EventWriter(tmp_path / "shared", "7_1")
    sent = [Event(STARTED, 3), Event(PROGRESS, 3, steps=5), Event(FAILED, 3, error="a\n“b”\n")]
    for event in sent[:2]:
        writer.send(event)
    assert reader.read() == sent[:2]
    writer.send(sent[2])
    assert reader.read() == sent[2:]
    assert reader.read() == []
    assert EventReader(tmp_path / "shared", ["7_1"]).read() == sent


def test_each_process_has_a_file_of_its_own_and_the_first_comes_first(tmp_path):
    writers = [EventWriter(tmp_path, "7_1") for _ in range(11)]
    for number, writer in reversed(list(enumerate(writers))):
        writer.send(Event(STARTED, number))
    EventWriter(tmp_path, "7_10").send(Event(DONE, 99))  # another job
    assert [event.index for event in EventReader(tmp_path, ["7_1"]).read()] == list(range(11))


def test_a_torn_line_is_awaited_and_spoils_no_other(tmp_path):
    writer, reader = EventWriter(tmp_path, "a.b"), EventReader(tmp_path, ["a.b"])
    (file,) = tmp_path.iterdir()
    writer.send(Event(STARTED, 0))
    with file.open("a") as stream:
        stream.write('\n{"kind": "do')
    assert reader.read() == [Event(STARTED, 0)]
    with file.open("a") as stream:
        stream.write('ne", "index": 0}\n{"kind": "prog')
    assert reader.read() == [Event(DONE, 0)]
    writer.send(Event(DONE, 1))
    assert reader.read() == [Event(DONE, 1)]


def test_progress_of_a_task_is_told_now_and_then(tmp_path):
    writer, reader = EventWriter(tmp_path, "a"), EventReader(tmp_path, ["a"])
    for steps in range(100):
        writer.send(Event(PROGRESS, 0, steps))
        writer.send(Event(PROGRESS, 1, steps))
    assert reader.read() == [Event(PROGRESS, 0, 0), Event(PROGRESS, 1, 0)]
    writer._next_report.clear()
    writer.send(Event(PROGRESS, 0, 100))
    assert reader.read() == [Event(PROGRESS, 0, 100)]


def test_a_full_disk_fails_no_task(tmp_path):
    writer = EventWriter(tmp_path, "a")
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._stream)
    writer.send(Event(STARTED, 0))
