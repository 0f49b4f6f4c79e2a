"""Packing finished runs of a sweep, and taking them out of their packs again.

Whoever packs a run owns its folder. A pack is in place before the folders are emptied, and runs are
in folders before their pack is removed: where a process is killed in between both are there and say
the same, and the next packing removes what is left. So any number of processes may pack.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from domainbed.core.files import check_guard, written_aside
from domainbed.core.text_table import printable
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder, is_done, read_records
from domainbed.runs.ownership import is_owners, owning
from domainbed.runs.packed import (
    FOLDER,
    MOST,
    TEXTS,
    packed_runs,
    packs_in,
    read_pack,
    recently,
    text_of,
    write_pack,
)
from domainbed.runs.states import Busy

log = logging.getLogger(__name__)


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
    packed = packed_runs(root)
    new: dict[str, dict[str, bytes]] = {}
    with ExitStack() as stack:
        owned = []
        for run in map(RunFolder, folders):
            with suppress(Busy):
                stack.enter_context(run.exclusive())
                # Else its folder was left by a process that was killed.
                if run.path.name not in packed:
                    new |= _finished(run)
                owned.append(run)
        if new:
            write_pack(root, new)
        for run in owned:
            if run.path.name in {**packed, **new}:
                _empty(run)
    return len(new)


def _finished(run: RunFolder) -> dict[str, dict[str, bytes]]:
    """The texts of a run by its name; nothing if it is not finished any more, or damaged."""
    try:
        read_records(run.path)
        if not is_done(os.fspath(run.path)):
            return {}
        texts = {name: text_of(run.path, name) for name in TEXTS}
        return {run.path.name: {name: text for name, text in texts.items() if text is not None}}
    except (UserError, OSError) as error:
        log.warning("warning: %s; the run is not packed", printable(error))
        return {}


def _empty(run: RunFolder) -> None:
    """Removes what nobody reads any more, and the folder if nothing else, as weights, is in it."""
    check_guard(run.path)
    others = (run.log, run.pending, run.errors, run.checkpoint, run.checkpoint_before)
    unread = {*TEXTS, *(file.name for file in others)}
    for name in sorted(os.listdir(run.path), key=lambda name: name == run.done.name):
        if name in unread or is_owners(name):
            (run.path / name).unlink(missing_ok=True)
    with suppress(OSError):
        run.path.rmdir()


def unpack(root: Path, names: Collection[str] = ()) -> int:
    """Takes runs out of their packs, into folders as they were; all of them if none is named.

    Returns:
        how many.

    Raises:
        UserError: one of them is not packed, nothing can be written there, or a pack is damaged.
    """
    packed = packed_runs(root)
    if unknown := [name for name in names if name not in packed]:
        raise UserError(f"no packed run in {str(root)!r} is called {unknown[0]!r}")
    wanted = set(names or packed)
    with owning(root / FOLDER, in_turn=True):
        for file in packs_in(root):
            runs = dict(read_pack(file))
            for name in wanted & runs.keys():
                folder = root / os.path.basename(name)
                folder.mkdir(exist_ok=True)
                for text, content in runs.pop(name).items():
                    with written_aside(folder / text) as aside:
                        aside.write_bytes(content)
            if wanted & read_pack(file).keys():
                if runs:
                    write_pack(root, runs)
                file.unlink()
    recently.cache_clear()  # what this process does next with these runs knows it
    return len(wanted)
