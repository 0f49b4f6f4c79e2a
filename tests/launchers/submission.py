"""Tasks given to a launcher, and what is heard of them."""

from jobs import WordJob

from domainbed.launchers import Resources
from domainbed.runs.states import ENDS

CPU = Resources(device="cpu", cores=1)


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

        self.handle.wait(on_event)
        return self

    def ends(self):
        return {e.index: e.kind for e in self.events if e.kind in ENDS}
