"""A launcher such as a site would add: it queues nothing, and starts a process for each job.

Nobody waits for the processes: they go on when the launching one has ended.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import ClassVar

from domainbed.core.stopping import request_stop, stop_requested
from domainbed.launchers import Handle, JobReport, Launcher, perform
from domainbed.launchers.event_files import EventWriter
from domainbed.runs.states import RUNNING


class SiteLauncher(Launcher):
    """Detached processes of this machine, each of which does several tasks."""

    blocking: ClassVar[bool] = False
    resource_options: ClassVar[tuple[str, ...]] = ("cores",)
    tasks_per_job: int = 1

    def submit(self, job, tasks, resources, folder):
        folder.mkdir(parents=True, exist_ok=True)
        jobs, log = [], folder / "site.log"
        for first in range(0, len(tasks), self.tasks_per_job):
            some = dict(enumerate(tasks[first : first + self.tasks_per_job], first))
            file = folder / f"{uuid.uuid4().hex}.pkl"
            file.write_bytes(pickle.dumps((job, some)))
            path = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
            with log.open("a") as out:
                process = subprocess.Popen(
                    [sys.executable, __file__, str(file)],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                    **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out},
                    start_new_session=True,
                )
            jobs += [str(process.pid)] * len(some)
        return Handle(jobs, [log] * len(jobs))

    def parallelism(self, tasks, resources):
        return -(-tasks // self.tasks_per_job)

    def ask(self, jobs):
        return {job: JobReport(RUNNING) for job in jobs if is_alive(int(job))}

    def cancel(self, jobs):
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)


def is_alive(pid):
    """Whether there is such a process, other than as a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main(file):
    signal.signal(signal.SIGTERM, lambda number, frame: request_stop())
    os.environ |= {"DOMAINBED_ENGINE": "site", "DOMAINBED_JOB": str(os.getpid())}
    job, tasks = pickle.loads(Path(file).read_bytes())
    writer = EventWriter(Path(file).parent, str(os.getpid()))
    for index, task in tasks.items():
        if not stop_requested():
            perform(job, index, task, writer.send)


if __name__ == "__main__":
    main(sys.argv[1])
