"""Getting and verifying datasets that are kept as published, and those without known numbers."""

from __future__ import annotations

import dataclasses
import errno
import json

import pytest
import small_copies
from small_copies import CAMELYON_IMAGES, COPIES, FMOW_IMAGES, write_copy
from source_files import (
    below,
    content_of,
    serving,
    tree_files,
    visible,
    write,
    write_tar,
    write_zip,
)

from domainbed.datasets import DATASETS
from domainbed.download import catalogue
from domainbed.download.catalogue import Archive, DataSource
from domainbed.download.verify import verify_dataset
from domainbed.errors import UserError

NAMES = ("WILDSCamelyon", "WILDSFMoW", "SpawriousO2O_easy", "Waterbirds", "MetaShift")
IMAGES = {"WILDSCamelyon": 35, "WILDSFMoW": 68, "SpawriousO2O_easy": 80}
IMAGES |= {"Waterbirds": 17, "MetaShift": 16}


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch):
    small_copies.shrink(monkeypatch)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Makes an archive with these files the only source of a dataset."""
    www = tmp_path / "www"
    www.mkdir()
    with serving(www) as server:

        def offer(name, files, writer=write_tar):
            known = catalogue.SOURCES[name]
            archive = known.sources[-1].archives[0]
            writer(www / archive.name, files)
            mine = Archive(f"{server.url}/{archive.name}", archive.name)
            source = DataSource("the source", 1000, (mine,))
            origin = dataclasses.replace(known, sources=(source,))
            monkeypatch.setitem(catalogue.SOURCES, name, origin)

        yield offer


def archived(name):
    """As the publisher packs it: some without a folder around it, others with one."""
    is_below = "Spawrious" in name or name in ("Waterbirds", "MetaShift")
    return below(DATASETS[name].info.folder if is_below else ".", COPIES[name]())


@pytest.mark.parametrize("name", NAMES)
class TestDownload:
    def test_from_its_source(self, name, serve, said, data):
        serve(name, archived(name))
        text = said(name)
        folder = DATASETS[name].info.folder
        assert visible(data) == [folder]
        assert content_of(data / folder) == COPIES[name]()
        domains = len(DATASETS[name].ENVIRONMENTS)
        assert f"{name}: {IMAGES[name]} images in {domains} domains are in" in text
        assert ("no numbers of images are published" in text) == (name == "WILDSFMoW")
        assert f"already: {IMAGES[name]} images; nothing to do" in said(name)
        assert len(DATASETS[name](str(data), [0], {})) == domains
        assert verify_dataset(name, data).ok

    @pytest.mark.parametrize("form", ["folder", "around it", "archive", "archive in a folder"])
    def test_from_a_copy(self, name, form, said, data, tmp_path):
        mine = tmp_path / "mine"
        if form.startswith("archive"):
            mine.mkdir()
            copy = write_zip(mine / "any.zip", archived(name))
            copy = copy if form == "archive" else mine
        else:
            write(below("deep/down" if form == "around it" else ".", COPIES[name]()), mine)
            copy = mine
        before = content_of(mine)
        assert f"{IMAGES[name]} images" in said(name, copy)
        assert content_of(data / DATASETS[name].info.folder) == COPIES[name]()
        assert content_of(mine) == before

    def test_a_part_is_refused(self, name, serve, said, data):
        files = archived(name)
        needed = "0/dirt/bulldog/bulldog_0.png" if name == "SpawriousO2O_easy" else (".png", ".jpg")
        del files[next(path for path in files if path.endswith(needed))]
        serve(name, files)
        with pytest.raises(
            UserError, match=f"not {name} as published .*(are not there|published [0-9]+)"
        ):
            said(name)
        assert visible(data) == []

    def test_what_is_not_the_dataset(self, name, said, tmp_path):
        write({"cats/a.png": b"x"}, tmp_path / "mine")
        with pytest.raises(UserError, match=f"no images of {name} in mine: expected .*folder"):
            said(name, tmp_path / "mine")

    def test_the_folder_holds_something_else(self, name, said, data):
        folder = DATASETS[name].info.folder
        write({"notes.txt": b"x"}, data / folder)
        with pytest.raises(UserError, match=f"exists and is not {name} as published"):
            said(name)
        assert content_of(data / folder) == {"notes.txt": b"x"}


def test_two_copies_at_one_depth(said, tmp_path):
    for place in "ab":
        write(COPIES["WILDSCamelyon"](), tmp_path / "mine" / place)
    with pytest.raises(UserError, match=r"is in '.*/mine/a' and in '.*/mine/b': name one"):
        said("WILDSCamelyon", tmp_path / "mine")


def test_the_sets_of_spawrious_share_one_folder(serve, said, data):
    serve("SpawriousO2O_easy", archived("SpawriousO2O_easy"))
    said("SpawriousO2O_easy")
    assert "already: 80 images; nothing to do" in said("SpawriousM2M_hard")


def test_a_full_disk_leaves_nothing_behind(serve, said, data, monkeypatch):
    serve("WILDSCamelyon", archived("WILDSCamelyon"))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("domainbed.download.download._Job._place", full)
    with pytest.raises(UserError, match="is full: make room"):
        said("WILDSCamelyon")
    assert visible(data) == []


def celeba_as_published():
    """Two lists, and the images packed."""
    lists = {name: text for name, text in COPIES["CelebA"]().items() if name.endswith("txt")}
    faces = {name: image for name, image in COPIES["CelebA"]().items() if name not in lists}
    return lists, faces


@pytest.mark.parametrize("packed", [True, False])
def test_a_copy_of_celeba(packed, said, data, tmp_path):
    lists, faces = celeba_as_published()
    mine = write(lists, tmp_path / "mine")
    if packed:
        write_zip(mine / "img_align_celeba.zip", faces)
    else:
        write(faces, mine / "deep")
    assert "CelebA: 17 images in 2 domains are in" in said("CelebA", mine)
    assert content_of(data / "celeba") == COPIES["CelebA"]()
    report = verify_dataset("CelebA", data)
    assert (report.ok, report.edition) == (True, "published")
    assert report.published == {"train": 9, "test": 8}


def test_celeba_from_its_three_files(said, data, tmp_path, monkeypatch):
    lists, faces = celeba_as_published()
    www = write(lists, tmp_path / "www")
    write_zip(www / "img_align_celeba.zip", faces)
    with serving(www) as server:
        archives = [Archive(f"{server.url}/{f.name}", f.name) for f in sorted(www.iterdir())]
        source = DataSource("the source", 1000, tuple(archives))
        origin = dataclasses.replace(catalogue.SOURCES["CelebA"], sources=(source,))
        monkeypatch.setitem(catalogue.SOURCES, "CelebA", origin)
        assert "17 images in 2 domains" in said("CelebA")
    assert content_of(data / "celeba") == COPIES["CelebA"]()


def test_nico_from_a_copy(said, data, tmp_path):
    info, contexts = DATASETS["NICOpp"].info, DATASETS["NICOpp"].ENVIRONMENTS
    info = dataclasses.replace(info, classes=tuple(f"class {k:02d}" for k in range(60)))
    files = tree_files(info, (60,) * 6)
    del files[next(name for name in files if name.startswith("dim/class 59"))]
    mine = write(below("track_1/public_dg_0416/train", files), tmp_path / "mine")
    assert "359 images in 6 domains" in said("NICOpp", mine)
    assert verify_dataset("NICOpp", data).ok
    dataset = DATASETS["NICOpp"](str(data), [0], {})
    assert dataset.attribute_names == list(contexts)
    assert [set(own) for own in dataset.attributes] == [{e} for e in range(6)]
    assert len(dataset.group_names) == 360


class TestSVIRO:
    @pytest.fixture
    def files(self):
        info = dataclasses.replace(
            DATASETS["SVIRO"].info, classes=tuple(str(label) for label in range(7))
        )
        return tree_files(info, (7, 8, 9, 7, 7, 7, 7, 7, 7, 10), extension="png")

    def test_download_load_and_verify(self, files, serve, said, data):
        serve("SVIRO", below("SVIRO_DOMAINBED", files), write_zip)
        text = said("SVIRO")
        assert content_of(data / "sviro") == files
        assert "76 images in 10 domains" in text
        assert "no numbers of images are published" in text
        dataset = DATASETS["SVIRO"](str(data), [0], {})
        assert dataset.domain_names == list(DATASETS["SVIRO"].ENVIRONMENTS)
        assert dataset.classes == list("0123456")
        assert [len(domain) for domain in dataset] == [7, 8, 9, 7, 7, 7, 7, 7, 7, 10]
        assert dataset.datasets[2].crop == "image"
        report = verify_dataset("SVIRO", data)
        assert (report.ok, report.edition, report.published) == (True, "", {})
        assert "no numbers of images are published" in report.notes[0]

    def test_a_car_is_missing(self, files, said, tmp_path):
        kept = {name: content for name, content in files.items() if not name.startswith("zoe")}
        with pytest.raises(UserError, match="domain 'zoe' is missing"):
            said("SVIRO", write(kept, tmp_path / "mine"))


class TestVerify:
    @pytest.mark.parametrize("name", NAMES)
    def test_complete(self, name, tmp_path):
        root = write_copy(name, tmp_path)
        report = verify_dataset(name, tmp_path)
        assert (report.ok, report.images, report.folder) == (True, IMAGES[name], str(root))
        assert report.edition == ("" if name == "WILDSFMoW" else "published")
        json.dumps(report.to_json())

    def test_counts(self, tmp_path):
        write_copy("WILDSCamelyon", tmp_path)
        counts = verify_dataset("WILDSCamelyon", tmp_path).counts
        assert [sum(own.values()) for own in counts.values()] == list(CAMELYON_IMAGES)
        write_copy("WILDSFMoW", tmp_path)
        counts = verify_dataset("WILDSFMoW", tmp_path).counts
        assert {name: sum(own.values()) for name, own in counts.items()} == FMOW_IMAGES
        assert "category_00" not in counts["Other"]  # which is no problem

    def test_missing_and_unreadable_images(self, tmp_path):
        root = write_copy("WILDSFMoW", tmp_path)
        (root / "images" / "rgb_img_5.png").unlink()
        (root / "images" / "rgb_img_6.png").write_bytes(b"no image")
        report = verify_dataset("WILDSFMoW", tmp_path)
        assert [(problem.kind, problem.where) for problem in report.problems] == [
            ("missing", ""),
            ("unreadable", "images/rgb_img_6.png"),
        ]
        assert "1 of 68 images that rgb_metadata.csv lists" in report.problems[0].message

    def test_numbers_that_are_not_the_published_ones(self, tmp_path):
        root = write_copy("SpawriousO2O_easy", tmp_path)
        (root / "1" / "dirt" / "bulldog" / "bulldog_3.png").unlink()  # only tested on
        (problem,) = verify_dataset("SpawriousO2O_easy", tmp_path).problems
        assert problem.message == "domain 'Test' has 39 images, published 40"
        assert verify_dataset("SpawriousM2M_easy", tmp_path).ok

    def test_the_same_image_in_two_domains(self, tmp_path):
        root = write_copy("SpawriousO2O_easy", tmp_path)
        tested = root / "0" / "dirt" / "bulldog" / "bulldog_0.png"
        tested.write_bytes((root / "0" / "desert" / "bulldog" / "bulldog_0.png").read_bytes())
        (problem,) = verify_dataset("SpawriousO2O_easy", tmp_path).problems
        assert problem.kind == "duplicate"

    def test_damaged_and_absent(self, tmp_path):
        root = write_copy("WILDSCamelyon", tmp_path)
        (root / "metadata.csv").write_bytes(b"")
        report = verify_dataset("WILDSCamelyon", tmp_path)
        assert "metadata.csv cannot be read as a table" in report.problems[0].message
        (problem,) = verify_dataset("WILDSFMoW", tmp_path).problems
        assert f"domainbed data download WILDSFMoW --data_dir {tmp_path}" in problem.message
