"""A job for tests of launchers. It trains nothing; workers on this and other machines import it."""

import atexit
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from domainbed.core.stopping import Interrupted, stop_requested
from domainbed.launchers import Job
from domainbed.runs.states import Busy

OPEN = []
NOTED = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DOMAINBED_ENGINE", "DOMAINBED_JOB")


@dataclass(frozen=True)
class WordJob(Job):
    """Does what the task's word says, and notes where it was done.

    Attributes:
        log: a line for each time that a task is begun: the word, the process, `NOTED`.
            Beside it, `failures` are those that others told of.
    """

    log: str

    def __call__(self, task, on_step):
        with open(self.log, "a") as log:
            print(
                task, os.getpid(), *(os.environ.get(name, "") for name in NOTED), sep="|", file=log
            )
        on_step(1)
        if task == "fail":
            raise ValueError("no good")
        if task == "exit":
            raise SystemExit(3)
        if task == "busy":
            raise Busy
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "die once" and self.begun().count(task) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "term once" and self.begun().count(task) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            until_asked_to_stop()
        if task == "wait" or (task == "wait once" and self.begun().count(task) == 1):
            until_asked_to_stop()
        if task == "slow":
            time.sleep(2)
        if task == "print":
            print("from Python", flush=True)
            os.write(1, b"from below\n")
        if task == "leave open":
            atexit.register(Path(f"{self.log}.handled").write_text, "by a handler")
            OPEN.append(open(f"{self.log}.open", "w"))  # noqa: SIM115  # nobody closes it
            OPEN[0].write("left open")
        if task == "sleep":
            time.sleep(60)

    def on_failure(self, task, error):
        with open(f"{self.log}.failures", "a") as log:
            log.write(f"{task}: {error}")

    def failures(self):
        """What was told of tasks that could not tell it themselves, in lines."""
        file = Path(f"{self.log}.failures")
        return file.read_text().splitlines() if file.exists() else []

    def lines(self):
        """What was noted: lists of words."""
        file = Path(self.log)
        return [line.split("|") for line in file.read_text().splitlines()] if file.exists() else []

    def begun(self):
        """The words of the tasks that were begun, in that order."""
        return [line[0] for line in self.lines()]

    def pids(self):
        return {int(line[1]) for line in self.lines()}


def until_asked_to_stop():
    """What a long run does that looks after each step whether it should stop."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if stop_requested():
            raise Interrupted
        time.sleep(0.02)
