"""A run on its machine's own disk: what it writes is copied to its folder at each record.

In that folder lies at any moment what a run leaves that is killed there: files are written aside
and moved into place, the mark of a finished run last, by the process that owns the folder.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from domainbed.core.files import check_guard, written_aside
from domainbed.runs.folder import RunFolder


@contextmanager
def on_scratch(
    folder: RunFolder, scratch: str | None, on_step: Callable[[int], None] | None
) -> Iterator[tuple[RunFolder, Callable[[int], None] | None]]:
    """The folder to train in, and what to call after each step.

    Args:
        folder: of the run; this process owns it.
        scratch: the folder for a copy of it, with variables such as $TMPDIR; None for no copy.
        on_step: what else to call after each step.

    Raises:
        OSError: nothing can be written below `scratch`.
        Lost: another process has taken over the run's folder.
    """
    if not scratch:
        yield folder, on_step
        return
    with TemporaryDirectory(prefix="domainbed-", dir=os.path.expandvars(scratch)) as name:
        copy = RunFolder(name)
        copy.home = folder.path
        shutil.copytree(
            folder.path,
            name,
            symlinks=True,
            ignore=shutil.ignore_patterns("owner.*.json", "*.tmp"),
            dirs_exist_ok=True,
        )
        seen = _seen(copy.path)

        def after_step(steps: int) -> None:
            if copy.results.stat().st_size != seen.get(Path(copy.results.name), (0,))[0]:
                _bring_home(copy, seen)
            if on_step:
                on_step(steps)

        try:
            yield copy, after_step
        finally:
            _bring_home(copy, seen)


def _seen(folder: Path) -> dict[Path, tuple[int, int]]:
    """The size and the time of each file."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return {f.relative_to(folder): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def _bring_home(copy: RunFolder, seen: dict[Path, tuple[int, int]]) -> None:
    """Copies what is not as it was `seen`, and removes what is gone."""
    there = _seen(copy.path)
    before = Path(copy.checkpoint_before.name)  # at home it is what was there
    changed = [name for name in there.keys() - {before} if there[name] != seen.get(name)]
    check_guard(copy.home)
    for name in sorted(changed, key=lambda name: name.name == copy.done.name):
        (copy.home / name).parent.mkdir(exist_ok=True, parents=True)
        with written_aside(copy.home / name) as aside:
            shutil.copyfile(copy.path / name, aside)
            if name.name == copy.checkpoint.name and (copy.home / name).exists():
                (copy.home / name).replace(copy.home / before)
    for name in seen.keys() - there.keys():
        (copy.home / name).unlink(missing_ok=True)
    seen.clear()
    seen.update(there)
