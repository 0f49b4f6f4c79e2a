"""Packed runs: the texts of up to `MOST` finished runs in one file, and how they are read.

A sweep's packs lie in its folder `packed`. The first line of a pack is a sealed JSON object with
the names of its runs and the digest of the rest, which is compressed JSON: by run and name, the
files `TEXTS`. A pack never changes.

A packed run is done, and its texts are those of the pack, whatever else lies in its folder: so
nothing depends on when that is emptied. What is no text, such as weights, stays there.
"""

import os
import time
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from domainbed.core.files import (
    CHANGED,
    aside_of,
    digest_of,
    parse_sealed_json,
    sealed_json,
    written_aside,
)
from domainbed.errors import UserError, log

FOLDER, SUFFIX, MOST = "packed", ".pack", 100
# The files of a run that are packed; `done` last, as it is written.
TEXTS = ("results.jsonl", "run.json", "environment.json", "out.txt", "done")


def text_of(folder: Path, name: str) -> bytes | None:
    """The content of a run's file, from its pack or its folder; None where there is none.

    Raises:
        UserError: the pack is damaged.
        OSError: the file cannot be read.
    """
    try:
        if name in TEXTS and (pack := pack_of(folder)):
            return read_pack(pack)[folder.name].get(name)
        return (folder / name).read_bytes()
    except FileNotFoundError:  # or it was moved a moment ago: into a pack, or into its folder
        pack = packed_runs(folder.parent).get(folder.name)
        return read_pack(pack)[folder.name].get(name) if pack else None


def pack_of(folder: Path) -> Path | None:
    """The pack of a run a second ago; None if it was not packed."""
    return recently(folder.parent, int(time.monotonic())).get(folder.name)


def is_packed(folder: Path) -> bool:
    """Whether the run of that folder, which need not exist any more, is in a pack."""
    return bool(pack_of(folder)) or folder.name in packed_runs(folder.parent)


def packed_now(root: Path) -> dict[str, Path]:
    """As `packed_runs`, also where a network file system shows how a folder was a while ago.

    To create a file in the folder is what makes it look again.
    """
    if (root / FOLDER).is_dir():
        probe = aside_of(root / FOLDER / "look")
        probe.touch()
        probe.unlink(missing_ok=True)
    return packed_runs(root)


def packed_runs(root: Path) -> dict[str, Path]:
    """The packed runs of a sweep, by the name of their folder, and the pack of each."""
    while True:
        try:
            return {run: pack for pack in packs_in(root) for run in title_of(pack)["runs"]}
        except FileNotFoundError:  # its runs were taken out since it was listed
            continue


@lru_cache(maxsize=16)
def recently(root: Path, second: int) -> dict[str, Path]:
    """As `packed_runs` was in that second: a look at 100,000 runs lists the packs a few times."""
    return packed_runs(root)


def packs_in(root: Path) -> list[Path]:
    """The packs of a sweep; none if their folder is a link."""
    folder = root / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(SUFFIX)]


@lru_cache(maxsize=4096)
def title_of(pack: Path) -> Mapping[str, Any]:
    """The first line of a pack: the names of its `runs`, the digest and the size of their `texts`.

    Of a line that is damaged, which a warning says, there are no runs; others can be read.

    Raises:
        FileNotFoundError: there is no such pack.
    """
    try:
        with pack.open("rb") as stream:
            return parse_sealed_json(stream.readline())
    except (ValueError, RecursionError) as error:
        log.warning("warning: %s", _damaged(pack, error))
        return {"runs": ()}


def _damaged(pack: Path, error: object) -> UserError:
    return UserError(
        f"{pack} is damaged ({error}): put a copy in its place, or remove it, and its runs are "
        "done again"
    )


@lru_cache(maxsize=4)
def read_pack(pack: Path) -> dict[str, dict[str, bytes]]:
    """All texts of a pack, by run and name of the file.

    Raises:
        FileNotFoundError: there is no such pack.
        UserError: it is damaged.
    """
    import pyarrow as pa  # not at the top: the states of runs are read without

    title, (_, _, content) = title_of(pack), pack.read_bytes().partition(b"\n")
    if digest_of(content) != title["texts"]:
        raise _damaged(pack, CHANGED)
    runs = orjson.loads(pa.decompress(content, title["size"], "zstd", asbytes=True))
    return {
        run: {name: text.encode("latin-1") for name, text in texts.items()}
        for run, texts in runs.items()
    }


def write_pack(root: Path, runs: Mapping[str, Mapping[str, bytes]]) -> None:
    """Writes a pack of a sweep; by run and name of the file, their texts."""
    import pyarrow as pa

    content = orjson.dumps(
        {
            run: {name: text.decode("latin-1") for name, text in texts.items()}
            for run, texts in runs.items()
        }
    )
    packed = pa.compress(content, codec="zstd", asbytes=True)
    title = sealed_json({"runs": list(runs), "texts": digest_of(packed), "size": len(content)})
    with written_aside(root / FOLDER / f"{uuid.uuid4().hex[:12]}{SUFFIX}") as aside:
        aside.write_bytes(title.encode() + packed)
