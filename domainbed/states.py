"""What a run can be found to be, and what a launcher tells of a task: each word once."""

DONE, RUNNING, FAILED, UNFINISHED, MISSING = "done", "running", "failed", "unfinished", "missing"
STATES = (DONE, RUNNING, FAILED, UNFINISHED, MISSING)
"""Of a run's folder."""

STARTED, PROGRESS, BUSY = "started", "progress", "busy"
"""Of a task that a launcher was given; at its end it is DONE, FAILED or BUSY."""

PENDING, INTERRUPTED = "pending", "interrupted"
"""Of a task, too: not begun yet; asked to stop, and able to go on."""
