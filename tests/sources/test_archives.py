"""Archives that are damaged, or that would write where they must not."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pytest
from source_files import below, visible, write_tar, write_zip

from domainbed.errors import UserError
from domainbed.sources import archives

ESCAPES = ["../evil.jpg", "kfold/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]


class TestUnsafeArchives:
    @pytest.mark.parametrize("name", ESCAPES)
    def test_zip(self, name, pacs, said, data, tmp_path):
        file = write_zip(tmp_path / "PACS.zip", {**below("kfold", pacs), name: b"evil"})
        with pytest.raises(UserError, match=r"PACS\.zip is refused: .*leads out of the folder"):
            said("PACS", file)
        assert visible(data) == []
        assert not list(tmp_path.rglob("*evil*"))

    def test_link_in_zip(self, pacs, said, tmp_path):
        file = write_zip(tmp_path / "PACS.zip", below("kfold", pacs))
        link = zipfile.ZipInfo("kfold/photo/dog/link.jpg")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(link, "/etc/passwd")
        with pytest.raises(UserError, match=r"refused: its member 'kfold/photo/dog/link\.jpg'"):
            said("PACS", file)

    @pytest.mark.parametrize("name", ESCAPES[:2])
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
    assert archives.unpacked_size(file) == 100_000
    with pytest.raises(archives.BadArchive, match="is damaged"):
        archives.extract(_truncated(tmp_path), tmp_path / "out")


def _truncated(folder):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("a/b.bin")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(os.urandom(100_000)))
    file = folder / "cut.tar.gz"
    file.write_bytes(stream.getvalue()[:50_000])
    return file
