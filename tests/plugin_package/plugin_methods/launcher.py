"""A launcher from outside: the last task first."""

from domainbed.launchers import DebugLauncher, Handle


class BackwardsLauncher(DebugLauncher):
    """As the launcher debug, in the opposite order."""

    skipped: int = 0

    def submit(self, job, tasks, resources, folder) -> Handle:
        return super().submit(job, [*reversed(tasks[self.skipped :])], resources, folder)
