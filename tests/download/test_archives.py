"""Archives that are damaged, or that would write where they must not."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pytest
from source_files import below, content_of, visible, write, write_tar, write_zip

from domainbed.download import catalogue, download, fetch
from domainbed.download.catalogue import Archive, DataSource, Origin
from domainbed.errors import UserError

ESCAPES = ["../evil.jpg", "kfold/../../evil.jpg"]


class TestUnsafeArchives:
    def test_zip(self, tmp_path):
        """What leads out, or is a link, is a plain file inside."""
        for number, name in enumerate((*ESCAPES, "..\\evil.jpg", "link.jpg")):
            file, out = tmp_path / f"{number}.zip", tmp_path / f"out{number}" / "images"
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o120777 << 16) * (name == "link.jpg")
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(member, "/etc/passwd")
            fetch.extract(file, out, 10**6)
            (written,) = (path for path in out.parent.rglob("*") if not path.is_dir())
            assert written.is_relative_to(out)
            assert not written.is_symlink()

    @pytest.mark.parametrize("pack", [write_zip, write_tar])
    def test_an_absolute_path_counts_from_the_folder(self, pack, tmp_path):
        place, out = tmp_path / "elsewhere" / "evil.jpg", tmp_path / "out"
        suffix = {write_zip: "zip", write_tar: "tar.gz"}[pack]
        fetch.extract(pack(tmp_path / f"a.{suffix}", {str(place): b"evil"}), out, 10**6)
        assert content_of(out) == {str(place).lstrip("/"): b"evil"}
        assert not place.exists()

    @pytest.mark.parametrize("name", ESCAPES)
    def test_tar(self, name, pacs, said, data, tmp_path):
        file = write_tar(tmp_path / "PACS.tar.gz", {**below("kfold", pacs), name: b"evil"})
        with pytest.raises(UserError, match=r"PACS\.tar\.gz is refused: .*leads out"):
            said("PACS", file)
        assert visible(data) == []
        assert not list(tmp_path.rglob("*evil*"))

    def test_link_in_tar(self, pacs, said, data, tmp_path):
        file = tmp_path / "PACS.tar"
        with tarfile.open(file, "w") as archive:
            link = tarfile.TarInfo("kfold/photo")
            link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
            archive.addfile(link)
        with pytest.raises(UserError, match="refused: its member 'kfold/photo' is a link"):
            said("PACS", file)


def test_size_of_a_zip_is_what_it_unpacks_to(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100_000))
    assert file.stat().st_size < 1_000
    assert fetch.extract(file, tmp_path / "out", 10**6) == 100_000
    assert (tmp_path / "out" / "zeros").read_bytes() == bytes(100_000)
    with pytest.raises(fetch.BadArchive, match="is damaged"):
        fetch.extract(_truncated(tmp_path), tmp_path / "out", 10**6)


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_bombs(pack, pacs, said, data, tmp_path, monkeypatch):
    """What unpacks to far more than the dataset has is refused before it does, even in parts."""
    source = DataSource("here", 100_000, (Archive("", "PACS.zip"),))
    monkeypatch.setitem(catalogue.SOURCES, "PACS", Origin(sources=(source,)))
    monkeypatch.setattr(download, "_LEAST_REFUSED", 0)
    suffix = {write_zip: "zip", write_tar: "tar.gz"}[pack]
    size = {"photo/dog/a.jpg": bytes(150_000), "photo/dog/b.jpg": bytes(251_000)}
    bomb = pack(tmp_path / f"bomb.{suffix}", {**pacs, **size})
    with pytest.raises(UserError, match=r"bomb\..* is refused: it unpacks to more than 0 MB, far"):
        said("PACS", bomb, accept_incomplete=True)
    assert not list(data.rglob("b.jpg"))
    (tmp_path / "two").mkdir()
    for k, name in enumerate(size):
        pack(tmp_path / "two" / f"{k}.{suffix}", {name: bytes(250_000)})
    with pytest.raises(UserError, match=r"1\..* is refused: it unpacks to more than 0 MB, far"):
        said("PACS", tmp_path / "two", accept_incomplete=True)


def test_a_broken_archive_gives_one_reason(pacs, said, tmp_path):
    for name, reason in (("a.zip", "File is not a zip file"), ("a.tgz", "no zip or tar archive")):
        (tmp_path / name).write_bytes(b"PK and garbage")
        with pytest.raises(UserError, match=rf"{name}': {name} is damaged \({reason}\)$"):
            said("PACS", tmp_path / name)


def test_pipes_are_not_waited_for(pacs, said, tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"a\.zip is not a regular file"):
        said("PACS", tmp_path / "a.zip")
    mine = write(pacs, tmp_path / "mine")
    (mine / "photo" / "dog" / "pic_000.jpg").unlink()
    os.mkfifo(mine / "photo" / "dog" / "pic_000.jpg")
    with pytest.raises(UserError, match=r"pic_000\.jpg: it is no regular file"):
        said("PACS", mine)


def _truncated(folder):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("a/b.bin")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(os.urandom(100_000)))
    file = folder / "cut.tar.gz"
    file.write_bytes(stream.getvalue()[:50_000])
    return file
