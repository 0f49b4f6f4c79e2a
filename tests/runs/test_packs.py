"""Packed runs: read as folders are, whole at any moment, done once."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from fake_sweep import random_runs, write

from domainbed import cli
from domainbed.config.run_fields import RunOptions
from domainbed.core.files import sealed_json
from domainbed.errors import UserError
from domainbed.runs import ownership, packed, packing
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import load_records
from domainbed.runs.ownership import owning
from domainbed.runs.packed import is_packed, packed_now, packed_runs, packs_in, read_pack
from domainbed.runs.packing import pack, unpack
from domainbed.runs.states import DONE, MISSING
from domainbed.sweeps.launch import RunJob
from domainbed.sweeps.store import Store

if TYPE_CHECKING:
    from domainbed.spec import RunSpec


@pytest.fixture(autouse=True)
def no_lasting_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen a second ago is not remembered: these tests do much in a second."""
    monkeypatch.setattr(packed, "recently", lambda root, second: packed_runs(root))


def sweep(root: Path, **options: int) -> list[Path]:
    """Finished runs as they leave their folders, without weights."""
    folders = write(root, random_runs(0, algorithms=("ERM",), **options), done=True)
    for number, folder in enumerate(folders):
        args = json.loads(folder.joinpath("results.jsonl").read_text().splitlines()[0])["args"]
        (folder / "run.json").write_text(sealed_json(args))
        (folder / "environment.json").write_text(sealed_json({"seconds": number}))
        (folder / "out.txt").write_bytes(f"run {number} \u2026\n".encode() + b"\xff\r\n")
        with owning(folder):
            pass
    return folders


def content(root: Path, but: str = "owner") -> dict[str, bytes]:
    """Every file, by its path; owners' come and go."""
    files = [file for file in root.rglob("*") if file.is_file() and but not in file.name]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def read(root: Path) -> list[tuple[object, ...]]:
    records = load_records(root)
    runs = records.runs[["folder", "algorithm", "hparams_seed", "num_records", "has_digest"]]
    values = records.values[["run", "step", "domain", "value"]]
    return [*runs.itertuples(index=False, name=None), *values.itertuples(index=False, name=None)]


def states(root: Path, folders: list[Path]) -> set[str]:
    return set(Store(root).states(folder.name for folder in folders).values())


def test_packed_runs_are_read_as_their_folders_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST", 5)
    folders = sweep(tmp_path)
    (kept := folders[3] / "model.pkl").write_bytes(b"weights")
    before, lines = content(tmp_path), read(tmp_path)
    assert pack(tmp_path) == len(folders)
    assert [path.name for path in tmp_path.iterdir() if path.name != "packed"] == [folders[3].name]
    assert list(folders[3].iterdir()) == [kept]
    assert len(packs_in(tmp_path)) == -(-len(folders) // 5)
    assert read(tmp_path) == lines
    alone = read(folders[0])  # the folder of a single run, which is not there any more
    assert alone[0] in lines
    assert states(tmp_path, folders) == {DONE}
    folder = RunFolder(folders[1])
    assert folder.read_json(folder.environment) == {"seconds": 1}
    assert (folder.is_done(), folder.has_results(), folder.last_error()) == (True, True, "")
    assert pack(tmp_path) == 0

    together = {*read_pack(packed_runs(tmp_path)[folders[0].name])}
    assert unpack(tmp_path, [folders[0].name]) == len(together) <= 5
    assert content(folders[0]) == {
        name.partition("/")[2]: text
        for name, text in before.items()
        if name.startswith(folders[0].name)
    }
    assert packed_runs(tmp_path).keys() == {folder.name for folder in folders} - together
    busy = next(folder for folder in folders if folder.name not in together)
    with owning(busy), pytest.raises(UserError, match=r"another process is at work .* try again"):
        unpack(tmp_path)
    assert is_packed(busy)
    with pytest.raises(UserError, match=r"no packed run in .* is called 'nope'"):
        unpack(tmp_path, ["nope"])
    assert 0 < unpack(tmp_path) <= len(folders) - len(together)
    assert content(tmp_path) == before
    assert not is_packed(folders[0])
    assert folders[0].name not in packed_now(tmp_path)


def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every fifth change of the disk in turn, both ways; the next time finishes it."""
    names, left = ("unlink", "rmdir", "replace", "rename", "mkdir", "link"), [0]

    def killing(usual: Callable[..., object], *args: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return usual(*args, **options)

    for name in names:
        monkeypatch.setattr(os, name, partial(killing, getattr(os, name)))
    for work in (pack, unpack):
        for moment in range(1, 1000, 5):
            root = tmp_path / f"{work.__name__}{moment}"
            folders = sweep(root, n_trials=1, pairs=False)
            lines = read(root)
            if work is unpack:
                pack(root)
            left[0] = moment
            try:
                work(root)
            except KeyboardInterrupt:
                left[0] = 0
                ownership._held.clear()  # the process is gone
            else:
                break
            assert states(root, folders) == {DONE}, moment
            assert read(root) == lines, moment
            work(root)
            assert read(root) == lines, moment
            assert len(packed_runs(root)) == (len(folders) if work is pack else 0), moment
        assert moment > 5
        left[0] = 0


def test_several_processes_pack_each_run_once(tmp_path: Path) -> None:
    folders = sweep(tmp_path, n_hparams=3)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(pack(tmp_path))) for _ in range(3)]
    with owning(folders[0]):  # somebody is at work there
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = Counter(run for file in packs_in(tmp_path) for run in read_pack(file))
    assert found == Counter(folder.name for folder in folders[1:])
    assert sum(counts) == len(folders) - 1
    assert pack(tmp_path) == 1


def test_damage_to_a_pack_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = sweep(tmp_path)
    lines = read(tmp_path)
    folders[0].joinpath("results.jsonl").write_text(
        folders[0].joinpath("results.jsonl").read_text().replace("ERM", "IRM")
    )
    with caplog.at_level(logging.WARNING):
        assert pack(tmp_path) == len(folders) - 1  # one was damaged before
    assert "results.jsonl is damaged" in caplog.text
    [file] = packs_in(tmp_path)
    whole = file.read_bytes()
    title = whole.index(b"\n") + 1
    for place in [*range(0, title, 29), *range(title, len(whole), 257), len(whole) - 1]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for cached in (packed.title_of, packed.read_pack):
            cached.cache_clear()
        if place < title:  # which names its runs: others can still be read
            caplog.clear()
            assert states(tmp_path, folders) == {MISSING, DONE}
            assert caplog.text.count(f"{file} is damaged") == 1
            continue
        with pytest.raises(UserError, match=r"is damaged .* put a copy in its place, or remove it"):
            assert read(folders[1]) != lines
    file.write_bytes(whole[:-1])
    packed.read_pack.cache_clear()
    with pytest.raises(UserError, match="is damaged"):
        read(folders[1])
    file.unlink()
    assert states(tmp_path, folders[1:]) == {MISSING}


def test_a_late_error_leaves_no_folder_of_a_packed_run(tmp_path: Path) -> None:
    """As of a worker that died after its run was done, and packed by another process."""
    folder, *_ = sweep(tmp_path)
    assert pack(tmp_path) > 0
    spec = SimpleNamespace(run_id=folder.name)
    RunJob(str(tmp_path), RunOptions()).on_failure(cast("RunSpec", spec), "its worker died")
    assert not folder.exists()
    assert states(tmp_path, [folder]) == {DONE}


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = sweep(tmp_path)

    def command(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", *words])
        out, err = capsys.readouterr()
        return f"{ended.value.code} {out}{err}"

    assert "holds no plan.json" in command("pack", str(tmp_path))
    runs = {
        folder.name: {**json.loads((folder / "run.json").read_text()), "steps": 21}
        for folder in folders
    }
    (tmp_path / "plan.json").write_text(sealed_json({"version": 1, "runs": runs}))
    (export := tmp_path.parent / "before.parquet").unlink(missing_ok=True)
    command("export", str(tmp_path), str(export))
    expected = read(export)
    assert command("pack", str(tmp_path)) == f"0 packed {len(folders)} runs\n"
    total = json.loads(command("status", "--json", str(tmp_path))[2:])["total"]
    assert total[DONE] == len(folders)
    command("export", str(tmp_path), str(export))
    places = str.maketrans("", "", "0123456789abcdef")
    assert str(read(export)).translate(places) == str(expected).translate(places)
    assert command("delete-incomplete", str(tmp_path)) == "0 no incomplete runs\n"
    assert command("unpack", str(tmp_path), folders[0].name) == f"0 unpacked {len(folders)} runs\n"
    assert (folders[0] / "out.txt").exists()
