"""Getting datasets from a server on this machine, with everything that goes wrong on the way."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import sys
import threading
import time
import zipfile

import pytest
from filelock import FileLock
from source_files import (
    below,
    content_of,
    image_bytes,
    serving,
    tree_files,
    visible,
    write,
    write_tar,
    write_zip,
)

from domainbed.datasets import DATASETS, PACS
from domainbed.download import catalogue, fetch
from domainbed.download.catalogue import Archive, DataSource, Origin
from domainbed.errors import UserError

MNIST = ("ColoredMNIST", "RotatedMNIST")
CHUNK = 2**19  # bytes that gdown writes at once: what it keeps is a multiple


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as running:
        running.folder = tmp_path / "www"
        yield running


@pytest.fixture
def offer(server, monkeypatch):
    """Makes files of the server the sources of a dataset: one source per file."""

    def sources(name, *files, md5=""):
        made = [
            DataSource(f"source {k}", 1000, (Archive(f"{server.url}/{k}/{file}", file, md5),))
            for k, file in enumerate(files)
        ]
        known = catalogue.SOURCES[name]
        monkeypatch.setitem(catalogue.SOURCES, name, dataclasses.replace(known, sources=made))
        for k in range(len(files)):
            (server.folder / str(k)).mkdir(exist_ok=True)
        return [server.folder / str(k) / file for k, file in enumerate(files)]

    return sources


@pytest.fixture
def large(pacs, offer, server):
    """The archive of PACS on the server, of more than ten blocks; its files lie beside it."""
    pacs["photo/dog/pic_000.jpg"] += os.urandom(11 * CHUNK)
    (file,) = offer("PACS", "PACS.zip")
    write(below("kfold", pacs), file.parent)
    return write_zip(file, below("kfold", pacs))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fetch, "_RETRIES", 0)


JUNK = {
    "__MACOSX/kfold/photo/dog/._pic_000.jpg": b"resource fork",
    "kfold/.DS_Store": b"\0",
    "kfold/photo/dog/Thumbs.db": b"\0",
    "kfold/photo/dog/._pic_000.jpg": b"resource fork",
    "splits/photo_train.txt": b"photo/dog/pic_000.jpg 1",
}


def hidden_files(folder):
    """What is left in the hidden folders, but for the mark of who made them."""
    files = [path.name for path in folder.glob(".*.partial/**/*") if path.is_file()]
    return [name for name in files if name != "made-by-domainbed.txt"]


class TestFromServer:
    @pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
    def test_archive(self, order, pacs, offer, said, data):
        packed = {**below("kfold", pacs), **JUNK}
        (file,) = offer("PACS", "PACS.zip")
        write_zip(file, {name: packed[name] for name in order(packed)})
        text = said("PACS")
        assert content_of(data / "PACS") == pacs
        assert "34 images in 4 domains" in text
        assert hidden_files(data) == []
        assert len(PACS(str(data), [0], {})[3]) == 10

    def test_second_call_does_nothing(self, pacs, offer, said, server):
        (file,) = offer("PACS", "PACS.zip")
        write_zip(file, below("kfold", pacs))
        said("PACS")
        asked = len(server.requests)
        started = time.perf_counter()
        assert "already: 34 images; nothing to do" in said("PACS")
        assert time.perf_counter() - started < 1
        assert len(server.requests) == asked == 1

    def test_broken_download_goes_on(self, large, said, server, data):
        size, server.cut = large.stat().st_size, 7 * CHUNK + 5
        with pytest.raises(UserError, match=rf"received {7 * CHUNK} bytes but .* {size} bytes\)"):
            said("PACS")
        assert visible(data) == []
        server.cut, server.sent = None, []
        said("PACS")
        assert content_of(data / "PACS").keys() == content_of(large.parent / "kfold").keys()
        assert [wanted for _, wanted in server.requests] == [None, None, f"bytes={7 * CHUNK}-"]
        assert server.sent[-1] == ("PACS.zip", 7 * CHUNK, size - 7 * CHUNK)

    def test_connection_that_breaks_in_one_call(self, large, said, server, monkeypatch):
        monkeypatch.setattr(fetch, "_RETRIES", 20)
        monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # seconds to wait
        server.cut = 3 * CHUNK
        assert "34 images" in said("PACS")
        starts = range(3 * CHUNK, large.stat().st_size, 3 * CHUNK)
        assert [wanted for _, wanted in server.requests] == [None, *(f"bytes={n}-" for n in starts)]

    def test_server_without_ranges_begins_anew(self, large, said, server, data):
        server.cut, server.ranges = 3 * CHUNK, False
        for _ in range(3):
            with pytest.raises(UserError, match=f"received {3 * CHUNK} bytes"):
                said("PACS")
        server.cut = None
        assert "34 images" in said("PACS")
        assert hidden_files(data) == []

    def test_page_in_place_of_the_file(self, pacs, offer, said, data):
        page, mirror = offer("PACS", "PACS.zip", "mirror.zip")
        page.write_text("\n <!DOCTYPE html><html>Quota exceeded</html>")
        write_zip(mirror, below("PACS", pacs))
        text = said("PACS")
        assert "source 0 failed: the server sent a page in place of PACS.zip" in text
        assert content_of(data / "PACS") == pacs

    def test_dead_link_and_dead_server(self, pacs, offer, said, server, monkeypatch):
        offer("PACS", "none.zip", "neither.zip")
        with pytest.raises(UserError, match=r"404 .*source 1: 404 .*--from PATH") as error:
            said("PACS")
        assert "\n" not in str(error.value)
        dead = Archive("http://127.0.0.1:9/PACS.zip", "PACS.zip")
        origin = Origin(sources=(DataSource("dead", 1, (dead,)),))
        monkeypatch.setitem(catalogue.SOURCES, "PACS", origin)
        with pytest.raises(UserError, match=r"\(dead: Connection refused\)"):
            said("PACS")

    def test_quota_of_drive(self, pacs, said, monkeypatch):
        import gdown

        def refuse(*args, **options):
            raise gdown.exceptions.FileURLRetrievalError("Failed\n\n\tmany lines")

        monkeypatch.setattr(gdown, "download", refuse)
        one = catalogue.SOURCES["PACS"].sources[:1]
        monkeypatch.setitem(catalogue.SOURCES, "PACS", Origin(sources=one))
        with pytest.raises(UserError, match="Google Drive: Failed many lines"):
            said("PACS")

    def test_wrong_checksum_stops(self, pacs, offer, said, server, data):
        file, mirror = offer("PACS", "PACS.zip", "mirror.zip", md5="0" * 32)
        write_zip(file, below("kfold", pacs))
        write_zip(mirror, below("kfold", pacs))
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        with pytest.raises(UserError, match=rf"{digest}, expected 0{{32}}: .*--accept_checksum"):
            said("PACS")
        assert visible(data) == []
        assert [name for name, _ in server.requests] == ["PACS.zip"]
        said("PACS", accept_checksum=True)
        assert content_of(data / "PACS") == pacs
        assert len(server.requests) == 1

    def test_right_checksum(self, pacs, offer, said, server):
        file = write_zip(server.folder / "PACS.zip", below("kfold", pacs))
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        (place,) = offer("PACS", "PACS.zip", md5=digest)
        file.replace(place)
        assert "34 images" in said("PACS")

    @pytest.mark.parametrize("lost", ["sketch/person", "sketch", "photo/dog/pic_000.jpg"])
    def test_incomplete_source(self, lost, pacs, offer, said, data, server):
        kept = {name: content for name, content in pacs.items() if not name.startswith(lost)}
        (file,) = offer("PACS", "PACS.zip")
        write_zip(file, below("kfold", kept))
        domain = lost.partition("/")[0]
        with pytest.raises(UserError, match=f"not PACS as published .*{domain}"):
            said("PACS")
        assert visible(data) == []
        said("PACS", accept_incomplete=True)
        assert content_of(data / "PACS") == kept
        assert len(server.requests) == 1

    def test_damaged_archive_is_fetched_again(self, pacs, offer, said, server, data):
        (file,) = offer("PACS", "PACS.zip")
        write_zip(file, below("kfold", pacs))
        good = file.read_bytes()
        file.write_bytes(good[:700] + bytes(50) + good[750:])
        with pytest.raises(UserError, match=r"PACS\.zip is damaged"):
            said("PACS")
        assert hidden_files(data) == []
        file.write_bytes(good)
        said("PACS")
        assert content_of(data / "PACS") == pacs

    def test_vlcs_and_office_home(self, shrink, offer, said, data):
        info = shrink("VLCS", (5, 5, 6, 7))
        files = tree_files(info, info.images)
        (file,) = offer("VLCS", "VLCS.tar.gz")
        write_tar(file, below("VLCS", files))
        said("VLCS")
        assert content_of(data / "VLCS") == files
        info = shrink("OfficeHome", (4, 3, 3, 5), num_classes=3)
        files = tree_files(info, info.images)
        (file,) = offer("OfficeHome", "home.zip")
        write_zip(file, below("OfficeHomeDataset_10072016", {**files, "ImageInfo.csv": b"x"}))
        said("OfficeHome")
        assert content_of(data / "office_home") == files


class TestInterrupted:
    def test_disk_is_too_small(self, pacs, offer, said, server, data, monkeypatch):
        offer("PACS", "PACS.zip")
        usage = shutil.disk_usage(".")._replace(free=10)
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"PACS from source 0 needs about 2\.10kB.*10\.0B free"):
            said("PACS")
        assert server.requests == []

    def test_too_small_for_a_copy(self, pacs, said, tmp_path, monkeypatch):
        usage = shutil.disk_usage(".")._replace(free=10)
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
        for copy in (
            write(pacs, tmp_path / "mine"),
            write_zip(tmp_path / "PACS.zip", pacs),
        ):
            with pytest.raises(UserError, match="needs about"):
                said("PACS", copy)

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
    def test_while_unpacking(self, error, pacs, offer, said, data, server, monkeypatch):
        (file,) = offer("PACS", "PACS.zip")
        write_zip(file, below("kfold", pacs))
        extract, calls = zipfile.ZipFile.extract, []

        def fail_later(self, *args):
            calls.append(args)
            if len(calls) > 20:
                raise error
            return extract(self, *args)

        monkeypatch.setattr(zipfile.ZipFile, "extract", fail_later)
        with pytest.raises((UserError, KeyboardInterrupt), match=r"the disk of .* is full|^$"):
            said("PACS")
        assert visible(data) == []
        assert hidden_files(data) == ["PACS.zip"]
        monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
        said("PACS")
        assert content_of(data / "PACS") == pacs
        assert len(server.requests) == 1
        assert hidden_files(data) == []

    def test_left_over_of_a_killed_process(self, pacs, said, data, tmp_path):
        write({"photo/dog/half.jpg": b"half"}, data / ".PACS.partial" / "ready")
        write({"kfold/photo/dog/half.jpg": b"half"}, data / ".PACS.partial" / "extracted")
        said("PACS", write_zip(tmp_path / "PACS.zip", below("kfold", pacs)))
        assert content_of(data / "PACS") == pacs
        assert not (data / ".PACS.partial").exists()

    def test_two_processes(self, pacs, said, data, tmp_path):
        """The second one waits, and then finds that there is nothing to do."""
        file = write_zip(tmp_path / "PACS.zip", below("kfold", pacs))
        data.mkdir()
        held = threading.Event()

        def other():
            with FileLock(data / ".PACS.lock"):
                held.set()
                time.sleep(0.3)
                write(pacs, data / "PACS")

        thread = threading.Thread(target=other)
        thread.start()
        held.wait()
        text = said("PACS", file)
        thread.join()
        assert "another process is downloading" in text
        assert "nothing to do" in text

    def test_data_dir_that_is_a_file(self, pacs, said, data, tmp_path):
        data.write_text("")
        with pytest.raises(UserError, match="data: File exists"):
            said("PACS", write(pacs, tmp_path / "mine"))


class TestPresent:
    def test_another_dataset_in_its_place(self, pacs, said, data):
        write({"photo/dog/a.jpg": image_bytes(1)}, data / "PACS")
        with pytest.raises(UserError, match="exists and is not PACS as published"):
            said("PACS")
        assert "nothing to do" in said("PACS", accept_incomplete=True)
        assert list(content_of(data / "PACS")) == ["photo/dog/a.jpg"]

    def test_foreign_folder_in_its_place(self, pacs, said, data, monkeypatch):
        """Without any image of the dataset there is nothing to keep."""
        write({"notes.txt": b"", "thesis/chapter/1.tex": b""}, data / "PACS")
        write({"notes.txt": b""}, data / "MNIST")
        for name in ("PACS", "ColoredMNIST"):
            with pytest.raises(
                UserError, match=r"exists and is not .*: move it away to download it again$"
            ):
                said(name, accept_incomplete=True)

    def test_data_dir_to_read_only(self, pacs, said, data, monkeypatch):
        write(pacs, data / "PACS")
        monkeypatch.setattr(FileLock, "acquire", lambda *args, **options: pytest.fail("locked"))
        assert "nothing to do" in said("PACS")
        assert [path.name for path in data.iterdir()] == ["PACS"]

    def test_empty_folder_in_its_place(self, pacs, said, data, tmp_path):
        (data / "PACS").mkdir(parents=True)
        said("PACS", write(pacs, tmp_path / "mine"))
        assert content_of(data / "PACS") == pacs

    def test_embedded_and_unknown(self, said):
        assert "needs no files" in said("RotatedDigits")
        with pytest.raises(UserError, match="unknown dataset 'PACKS'"):
            said("PACKS")


def test_every_published_dataset_has_sources():
    needed = {n for n in DATASETS if DATASETS[n].info.folder}
    assert set(catalogue.SOURCES) == needed
    for name, origin in catalogue.SOURCES.items():
        single = "Spawrious" in name or name in ("SVIRO", "ColoredMNIST", "RotatedMNIST")
        single |= name in ("CelebA", "MetaShift", "NICOpp")
        expected = 1 if single else 3 if name == "WILDSCamelyon" else 2
        assert len({source.title for source in origin.sources}) == expected
        domains = DATASETS[name].info.domains
        assert set(origin.aliases.values()) <= set(domains)
        assert all(len(numbers) == len(domains) for numbers in origin.variants.values())


def test_missing_library(pacs, offer, said, monkeypatch):
    offer("PACS", "PACS.zip")
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"needs gdown, .*pip install gdown"):
        said("PACS")
