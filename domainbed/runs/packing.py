"""Packing finished runs of a sweep, and taking them out of their packs again.

Whoever packs or unpacks a run owns its folder, and looks then which packs there are. A pack is in
place, and is read back, before folders are emptied; runs are in their folders before their pack is
removed. A process killed in between leaves both, which say the same, and the next packing empties
the folders. So any number of processes may pack and unpack.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from domainbed.core.files import check_guard, written_aside
from domainbed.core.text_table import printable
from domainbed.errors import UserError, log
from domainbed.runs.folder import RunFolder, is_done, read_records
from domainbed.runs.ownership import is_owners
from domainbed.runs.packed import (
    FOLDER,
    MOST,
    TEXTS,
    packed_now,
    packed_runs,
    read_pack,
    recently,
    text_of,
    write_pack,
)
from domainbed.runs.states import Busy


def pack(root: Path) -> int:
    """Packs the finished runs of a sweep that are not packed yet; returns how many.

    A run whose records are damaged stays as it is, with a warning.

    Raises:
        UserError: nothing can be written there, or a pack is damaged.
    """
    (root / FOLDER).mkdir(exist_ok=True)
    with os.scandir(root) as entries:
        folders = [each.path for each in entries if each.is_dir(follow_symlinks=False)]
    done = [Path(path) for path in folders if is_done(path) and os.path.exists(f"{path}/run.json")]
    return sum(_pack(root, done[first : first + MOST]) for first in range(0, len(done), MOST))


def _pack(root: Path, folders: Iterable[Path]) -> int:
    """Packs finished runs into one file."""
    with ExitStack() as stack:
        owned = []
        for run in map(RunFolder, folders):
            with suppress(Busy):
                stack.enter_context(run.exclusive())
                owned.append(run)
        packed = packed_now(root)
        new = {k: v for run in owned if run.path.name not in packed for k, v in _finished(run)}
        if new:
            write_pack(root, new)
            packed = packed_runs(root)
        for run in owned:
            if run.path.name in packed and read_pack(packed[run.path.name]):
                _empty(run)
    return len(new)


def _finished(run: RunFolder) -> list[tuple[str, dict[str, bytes]]]:
    """A run's name and its texts; nothing if it is not finished any more, or is damaged."""
    try:
        read_records(run.path)
        texts = {name: text for name in TEXTS if (text := text_of(run.path, name)) is not None}
    except (UserError, OSError) as error:
        log.warning("warning: %s; the run is not packed", printable(error))
        return []
    return [(run.path.name, texts)] if is_done(os.fspath(run.path)) else []


def _empty(run: RunFolder) -> None:
    """Removes what nobody reads any more, and the folder if nothing else, as weights, is in it."""
    check_guard(run.path)
    unread = {
        *TEXTS,
        *(f.name for f in (run.log, run.pending, run.errors)),
        *(f.name for f in (run.checkpoint, run.checkpoint_before)),
    }
    for name in sorted(os.listdir(run.path), key=lambda name: name == run.done.name):
        if name in unread or is_owners(name):
            (run.path / name).unlink(missing_ok=True)
    with suppress(OSError):
        run.path.rmdir()


def unpack(root: Path, names: Collection[str] = ()) -> int:
    """Takes runs out of their packs, into folders as they were, with the others of each pack.

    Args:
        root: of the sweep.
        names: of runs; all if none is named.

    Returns:
        how many runs are in folders now.

    Raises:
        UserError: one of them is not packed, nothing can be written there, a pack is damaged, or
            another process is at work on it.
    """
    packed, count = packed_runs(root), 0
    if unknown := [name for name in names if name not in packed]:
        raise UserError(f"no packed run in {str(root)!r} is called {unknown[0]!r}")
    for file in {packed[name] for name in names or packed}:
        with ExitStack() as stack:
            for name, texts in read_pack(file).items():
                run = RunFolder(root / os.path.basename(name))
                try:
                    stack.enter_context(run.exclusive())
                except Busy as error:
                    raise UserError(f"{error}: try again") from error
                for text, content in texts.items():
                    with written_aside(run.path / text) as aside:
                        aside.write_bytes(content)
                count += 1
            file.unlink()
    recently.cache_clear()  # what this process does next with these runs knows it
    return count
