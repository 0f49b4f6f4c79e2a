"""Packs: what is stored, when it is made anew, and what goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zlib
from collections import namedtuple

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from image_files import write_folder
from PIL import Image

from domainbed.cli import main as command
from domainbed.datasets import get_dataset_class, load_dataset
from domainbed.datasets.image_domains import PackedDomain
from domainbed.datasets.images import packs as packing
from domainbed.datasets.images.dataset_files import in_order, read_image
from domainbed.datasets.images.packs import Pack
from domainbed.datasets.images.transforms import resize
from domainbed.errors import UserError

FAST = {"data_path": "fast"}


@pytest.fixture
def folder(tmp_path):
    """Three domains with eight images each, in two sizes, small and large."""
    return write_folder(tmp_path / "images", sizes=((40, 50), (400, 300)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path / "packs"))
    return tmp_path / "packs"


def packed(folder, **hparams):
    """Built anew, past the dataset that a process shares."""
    from domainbed.datasets import _shared

    _shared.clear()
    return load_dataset(f"folder:{folder}", "nowhere", [0], {**FAST, **hparams}, 0)


def plain(folder):
    return get_dataset_class(f"folder:{folder}")("", [0], {})


def packs(cache):
    return sorted(path.name for path in cache.glob("images-*") if path.is_dir())


def test_raw_images_are_the_squeezed_ones(folder, cache):
    dataset, files = packed(folder, packed_size=230), plain(folder)
    for domain, original in zip(dataset, files, strict=True):
        assert isinstance(domain, PackedDomain)
        assert domain.targets == original.targets
        for i, file in enumerate(original.files):
            assert torch.equal(domain.pixels(i), resize(read_image(file), 230, 230))
    assert dataset[1].pack.sizes[8:10].tolist() == [[40, 50], [400, 300]]


def test_images_of_one_size_are_kept_as_they_are(tmp_path, cache):
    dataset = packed(write_folder(tmp_path / "same", sizes=((40, 50),)))
    files = plain(tmp_path / "same")
    assert dataset[0].pack.shape == (40, 50)
    for domain, original in zip(dataset, files, strict=True):
        for i, file in enumerate(original.files):
            assert torch.equal(domain.pixels(i), read_image(file))
            assert torch.equal(domain[i][0], original[i][0])
            assert domain[i][1] == original[i][1]


def test_jpeg_is_close_and_keeps_files_that_fit(tmp_path, folder, cache):
    dataset, raw = packed(folder, packed_format="jpeg"), packed(folder)
    difference = [
        (a.float() - b.float()).abs().mean()
        for one, two in zip(dataset, raw, strict=True)
        for a, b in ((one.pixels(i), two.pixels(i)) for i in range(8))
    ]
    assert 0 < max(difference) < 2
    same = write_folder(tmp_path / "same", sizes=((64, 64),), suffix="jpg")
    dataset = packed(same, packed_format="jpeg")
    for i, file in enumerate(plain(same)[0].files):
        assert torch.equal(dataset[0].pixels(i), read_image(file))
    assert (
        sum(f.stat().st_size for f in same.rglob("*.jpg"))
        == (dataset[0].pack.folder / "images.bin").stat().st_size
    )


def test_evaluation_is_close_to_that_of_the_files(tmp_path, cache):
    """Squeezed to 256 and then to 224, against 224 at once: in units of the normalised image."""
    folder = write_folder(tmp_path / "large", sizes=((400, 300), (260, 500)), per_class=2)
    dataset, files = packed(folder), plain(folder)
    for one, two in zip(dataset, files, strict=True):
        for i in range(len(one)):
            assert (one[i][0] - two[i][0]).abs().mean() < 0.02


def test_index_and_table(folder, cache):
    pack = packed(folder)[0].pack
    index = json.loads((pack.folder / "index.json").read_text())
    assert (index["dataset"], index["format"], index["images"]) == ("images", "raw", 24)
    assert (index["height"], index["width"], index["version"]) == (256, 256, 1)
    lines = (pack.folder / "images.csv").read_text().splitlines()
    assert lines[0] == "file,label,height,width,bytes,crc32"
    assert lines[1] == f"a/cat/0.png,0,40,50,{256 * 256 * 3},{zlib.crc32(pack.image(0).numpy())}"
    assert len(lines) == 25


def test_made_once_and_anew_when_the_folder_changes(folder, cache, capsys):
    first = packed(folder)[0].pack.folder
    assert "Packing images, once for all runs: 24 images of 256 × 256 (raw), 0.00 GB" in (
        capsys.readouterr().err
    )
    assert packed(folder)[0].pack.folder == first
    assert "Packing" not in capsys.readouterr().err
    shutil.copy(folder / "a/cat/0.png", folder / "a/cat/9.png")
    second = packed(folder)
    assert second[0].pack.folder != first
    assert len(second[0]) == 9
    assert len(packs(cache)) == 2


def test_moved_images_need_no_new_pack(folder, cache):
    first = packed(folder)[0].pack.folder
    (folder.parent / "elsewhere").mkdir()
    moved = folder.rename(folder.parent / "elsewhere" / "images")
    assert packed(moved)[0].pack.folder == first


def test_interrupted_packing_leaves_nothing_that_looks_finished(folder, cache, monkeypatch):
    encoded, seen = packing._encoded, []

    def interrupted(file, **options):
        seen.append(file)
        if len(seen) == 10:
            raise KeyboardInterrupt
        return encoded(file, **options)

    monkeypatch.setattr(packing, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packed(folder)
    assert packs(cache) == []
    monkeypatch.undo()
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(cache))
    # A process that was killed cannot clean up.
    killed = cache / f"{packed(folder)[0].pack.folder.name}.part"
    shutil.rmtree(cache / killed.stem)
    killed.mkdir()
    (killed / "images.bin").write_bytes(b"half")
    assert len(packed(folder)[0].pack) == 24
    assert not killed.exists()


def test_one_process_packs_and_the_others_wait(folder, cache, capsys):
    finished = packed(folder)[0].pack.folder
    aside = finished.rename(cache / "finished-by-another")
    capsys.readouterr()

    class OtherProcess:
        """Has the lock until it is waited for, and finishes in between."""

        def __init__(self, path):
            self.lock = FileLock(path)

        def acquire(self, timeout=-1):
            if timeout == 0:
                raise Timeout("")
            aside.rename(finished)
            return self.lock.acquire()

        def release(self):
            self.lock.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("domainbed.core.files.FileLock", OtherProcess)
        assert packed(folder)[0].pack.folder == finished
    message = capsys.readouterr().err
    assert "waiting for it" in message
    assert "Packing" not in message


def test_a_full_disk_is_told_before_packing(folder, cache, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(UserError, match=r"needs 0\.00 GB in .* choose the format jpeg"):
        packed(folder)
    assert packs(cache) == []


def test_a_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="name another folder in the variable DOMAINBED_CACHE_DIR"):
        packed(folder)


def test_a_damaged_pack_is_named(folder, cache):
    place = packed(folder)[0].pack.folder
    for file in (place / name for name in ("images.bin", "images.csv", "index.json")):
        content = file.read_bytes()
        for damaged in (content + b"more\n", b"", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            with pytest.raises(UserError, match="is damaged, or of an earlier version: remove it"):
                Pack(place)
            file.write_bytes(content)


def test_any_damage_to_a_pack_is_noticed(folder, cache):
    """A bit of the index or the table when it is opened, of an image when that is first read."""
    first = packed(folder)[0].pack
    whole = [first.image(number).clone() for number in range(len(first))]
    rng = random.Random(0)
    for name in ("images.bin", "images.csv", "index.json"):
        file = first.folder / name
        content = file.read_bytes()
        for _ in range(10):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            noticed = 0
            try:
                pack = Pack(first.folder)
            except UserError:
                continue
            for number, expected in enumerate(whole):
                try:
                    assert torch.equal(pack.image(number), expected)
                except UserError as error:
                    assert f"image {number} of {first.folder} is damaged" in str(error)  # noqa: PT017
                    noticed += 1
            assert noticed == (name == "images.bin")
        file.write_bytes(content)


def test_packs_go_by_the_content_of_images_alone(folder, cache):
    first = packed(folder)[0].pack.folder
    image = next(folder.rglob("*.png"))
    os.utime(image, ns=(0, 0))  # as in a copy
    assert packed(folder)[0].pack.folder == first
    image.write_bytes(image.read_bytes()[:-1] + b"!")  # of the same size
    os.utime(image, ns=(0, 0))
    assert packed(folder)[0].pack.folder != first


def test_corrupt_images_are_an_error_or_skipped(folder, cache):
    bad = folder / "b" / "dog" / "1.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b/dog/1\.png cannot be read"):
        packed(folder)
    dataset = packed(folder, corrupt_images="skip")
    assert [domain.unreadable for domain in dataset] == [[], [5], []]
    assert torch.equal(dataset[1].pixels(6), packed_twin(folder, cache)[1].pixels(5))
    with pytest.raises(UserError, match=r"1\.png cannot be read \(one of 1\)"):
        packed(folder)


def packed_twin(folder, cache):
    """The same folder without the corrupt image."""
    twin = folder.parent / "twin" / "images"
    shutil.copytree(folder, twin)
    (twin / "b" / "dog" / "1.png").unlink()
    return packed(twin)


def test_it_travels_to_other_processes_without_its_images(folder, cache):
    domain = packed(folder)[0]
    image = domain.pixels(2)
    parcel = pickle.dumps(domain)
    assert len(parcel) < 20_000
    assert torch.equal(pickle.loads(parcel).pixels(2), image)


def test_runs_share_the_dataset_only_with_the_same_options(folder, cache):
    name = f"folder:{folder}"
    first = load_dataset(name, "", [0], FAST, 0)
    assert isinstance(first[0], PackedDomain)
    assert not isinstance(load_dataset(name, "", [0], {}, 0)[0], PackedDomain)
    assert load_dataset(name, "", [0], {**FAST, "packed_size": 300}, 0)[0].pack.shape == (300, 300)


@pytest.mark.parametrize(
    ("name", "hparams", "message"),
    [
        (
            "ColoredDigits",
            FAST,
            "ColoredDigits has no image files, but .* 'data_path' is 'fast': leave it out",
        ),
        ("ColoredDigits", {"corrupt_images": "skip"}, "'corrupt_images' is 'skip'"),
    ],
)
def test_datasets_without_files(name, hparams, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name, "", [0], hparams, 0)


def test_too_small(folder, cache):
    with pytest.raises(UserError, match="packed_size is 100: expected 224 or more"):
        packed(folder, packed_size=100)


def test_command(folder, cache, capsys):
    flags = ["data", "pack", f"folder:{folder}", "--size", "240", "--format", "jpeg"]
    with pytest.raises(SystemExit) as status:
        command(flags)
    assert status.value.code == 0
    assert f"24 images in {cache / packs(cache)[0]}" in capsys.readouterr().out
    assert packs(cache)[0].startswith("images-240-jpeg-")
    with pytest.raises(SystemExit) as status:
        command(["data", "pack", "ColoredDigits"])
    assert status.value.code == 2


@pytest.mark.parametrize("threads", [0, 3])
def test_in_order(threads):
    assert list(in_order(lambda n: n * n, range(20), threads)) == [n * n for n in range(20)]
    assert list(in_order(str, [], threads)) == []
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // n, [1, 0, 2], threads))


def test_in_order_runs_only_a_little_ahead():
    taken = []
    results = in_order(lambda n: n, (taken.append(n) or n for n in range(100)), 2)
    assert next(results) == 0
    assert len(taken) == 3
    results.close()


def test_pixels_of_pacs(pacs_dir, cache):
    dataset = load_dataset("PACS", str(pacs_dir), [0], FAST, 0)
    assert dataset[0].pack.shape == (227, 227)
    files = load_dataset("PACS", str(pacs_dir), [0], {}, 0)[2].files
    with Image.open(files[7]) as image:
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(dataset[2].pixels(7), expected)


def test_a_damaged_list_of_unreadable_images_is_made_again(folder, cache):
    corrupt = folder / "b" / "dog" / "1.png"
    corrupt.write_bytes(b"no image")
    skipping = {"data_path": "exact", "corrupt_images": "skip"}
    expected = [list(domain.unreadable) for domain in packed(folder, **skipping)]
    assert expected == [[], [5], []]
    (file,) = cache.glob("*-unreadable-*.json")
    file.write_text(file.read_text().replace("13", "12"))
    assert [list(domain.unreadable) for domain in packed(folder, **skipping)] == expected
    file.write_text("[12]\n")  # as an earlier version wrote it
    assert [list(domain.unreadable) for domain in packed(folder, **skipping)] == expected
