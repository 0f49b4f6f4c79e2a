"""Tasks given to a launcher, and what is heard of them."""

import time

from jobs import WordJob

from domainbed.launchers import BlockingHandle, Event, Resources
from domainbed.launchers.event_files import EventReader
from domainbed.launchers.ray_tasks import TEAM
from domainbed.runs.states import ENDS, INTERRUPTED

CPU = Resources(device="cpu", cores=1)


def in_hand(launcher, jobs):
    """Those of an engine's jobs that it has queued or running."""
    return {job for job, report in launcher.ask(jobs).items() if report.in_hand}


def wait_for(handle, launcher, on_event):
    """To the end of all tasks; an engine writes their events into files."""
    if isinstance(handle, BlockingHandle):
        handle.wait(on_event)
        return
    reader = EventReader(handle.logs[0].parent, {*handle.jobs, TEAM}) if handle.jobs else None
    left, gone, asked = set(range(len(handle.jobs))), set(), time.monotonic()
    while left:
        events = reader.read()
        for event in events:
            if event.kind != INTERRUPTED:  # its job may be queued again
                left -= {event.index} if event.kind in ENDS else set()
                on_event(event)
        if not events and time.monotonic() > asked + 1:
            there = in_hand(launcher, handle.jobs)
            before, gone = gone, {index for index in left if handle.jobs[index] not in there}
            for index in before & gone:  # files may show up late
                left.remove(index)
                on_event(Event(INTERRUPTED, index))
            asked = time.monotonic()
        time.sleep(0.1)


class Submission:
    def __init__(self, folder, tasks, launcher, resources=CPU):
        self.launcher = launcher
        self.job = WordJob(str(folder / "log"))
        self.handle = launcher.submit(self.job, tasks, resources, folder / ".launcher")
        self.events = []

    def wait(self, at=None, do=None):
        """To the end of all; calls `do` at the first event of the kind `at`."""

        def on_event(event):
            self.events.append(event)
            if event.kind == at and [e.kind for e in self.events].count(at) == 1:
                do()

        wait_for(self.handle, self.launcher, on_event)
        return self

    def cancel(self):
        self.launcher.cancel(self.handle.jobs)

    def in_hand(self):
        return in_hand(self.launcher, self.handle.jobs)

    def ends(self):
        return {e.index: e.kind for e in self.events if e.kind in ENDS}
