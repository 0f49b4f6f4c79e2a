"""What `verify` finds in datasets whose faults are known."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import time

import pytest
from digits_as_idx import checksums, write_idx_files
from PIL import Image
from source_files import PACS_IMAGES, image_bytes, tree_files, write

from domainbed.download import catalogue, verify
from domainbed.download.verify import verify_dataset
from domainbed.errors import UserError


@pytest.fixture
def root(pacs, data):
    return write(pacs, data / "PACS")


@pytest.fixture
def problems(data):
    """The kinds and places of all problems of PACS."""

    def found(name="PACS"):
        return [(p.kind, p.where) for p in verify_dataset(name, data).problems]

    return found


def test_intact(root, data):
    report = verify_dataset("PACS", data)
    assert (report.ok, report.edition, report.images) == (True, "published", 34)
    assert report.counts["art_painting"]["dog"] == 2
    assert list(report.published.values()) == list(PACS_IMAGES)
    assert report.notes == []


def test_missing_image(root, problems):
    (root / "photo" / "dog" / "pic_000.jpg").unlink()
    assert problems() == [("classes", "photo/dog"), ("count", "photo")]


def test_missing_and_extra_class(root, problems):
    shutil.rmtree(root / "sketch" / "person")
    assert problems() == [("classes", "sketch"), ("count", "sketch")]
    write({"sketch/zebra/1.jpg": image_bytes(900)}, root)
    other = ("classes", "sketch/zebra")  # which does not make up for the missing image
    assert problems() == [("classes", "sketch"), other, ("count", "sketch")]


def test_missing_and_extra_domain(root, problems):
    (root / "photo").rename(root / "photos")
    assert problems() == [("domains", "photo"), ("domains", "photos")]


def test_files_that_are_no_images_harm_nothing(root, problems):
    write({"Thumbs.db": b"", "photo/.DS_Store": b"", "photo/dog/._pic_000.jpg": b"x"}, root)
    write({"photo/dog/Thumbs.db": b"x", ".cache/dog/a.jpg": b"x"}, root)
    assert problems() == []


def damaged(kind, content):
    half = len(content) // 2
    return {
        "cut": content[:half],
        "empty": b"",
        "zeros": bytes(len(content)),
        "text": b"<html>not found</html>",
        "header": b"\0\0\0\0" + content[4:],
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "empty", "zeros", "text", "header"])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_unreadable_images_are_named(kind, extension, root, problems, data):
    place = root / "cartoon" / "horse" / f"pic_004.{extension}"
    (root / "cartoon" / "horse" / "pic_004.jpg").unlink()
    place.write_bytes(damaged(kind, image_bytes(77, extension)))
    assert problems() == [("unreadable", f"cartoon/horse/pic_004.{extension}")]
    (problem,) = verify_dataset("PACS", data).problems
    assert "\n" not in problem.message
    assert " 0x" not in problem.message


def test_one_flipped_byte_in_a_png(root, problems):
    content = bytearray(image_bytes(77, "png"))
    content[content.index(b"IDAT") + 20] ^= 1
    place = root / "cartoon" / "horse" / "pic_004.jpg"  # by its content, not by its name
    place.write_bytes(bytes(content))
    assert problems() == [("unreadable", "cartoon/horse/pic_004.jpg")]


def test_modes(root, data):
    for mode, name in (("CMYK", "cartoon/dog"), ("L", "photo/dog")):
        (root / name / "pic_000.jpg").write_bytes(image_bytes(1, "jpg", mode))
    for mode in ("RGBA", "P", "LA"):
        (root / "sketch" / "dog" / "pic_000.jpg").write_bytes(image_bytes(1, "png", mode))
        report = verify_dataset("PACS", data)
        assert report.ok
        assert report.notes == [
            f"mode {name}, converted to RGB when read: {place}/pic_000.jpg"
            for name, place in sorted([("CMYK", "cartoon/dog"), (mode, "sketch/dog")])
        ]


def test_wide_images(root, data):
    """16 bits are noted; 32, which training refuses, and a pipe are problems."""
    for folder, mode in (("photo", "I;16"), ("sketch", "F")):
        Image.new(mode, (4, 4)).save(root / folder / "dog" / "pic_000.tif")
        (root / folder / "dog" / "pic_000.jpg").unlink()
    (root / "cartoon" / "dog" / "pic_000.jpg").unlink()
    os.mkfifo(root / "cartoon" / "dog" / "pic_000.jpg")
    report = verify_dataset("PACS", data)
    assert report.notes == ["mode I;16, converted to RGB when read: photo/dog/pic_000.tif"]
    pipe, wide = (problem.message for problem in report.problems)
    assert pipe == "cartoon/dog/pic_000.jpg cannot be read: it is no regular file"
    assert wide.startswith("sketch/dog/pic_000.tif cannot be read: its values have 32 bits (mode F")


def test_duplicates_across_domains(root, data, problems):
    content = (root / "photo" / "dog" / "pic_000.jpg").read_bytes()
    (root / "sketch" / "house" / "pic_005.jpg").write_bytes(content)
    (root / "photo" / "horse" / "pic_004.jpg").write_bytes(content)  # in one domain it may be
    (problem,) = verify_dataset("PACS", data).problems
    assert problem.kind == "duplicate"
    assert problem.message == (
        "the same image is in several domains: photo/dog/pic_000.jpg, photo/horse/pic_004.jpg, "
        "sketch/house/pic_005.jpg"
    )
    (root / "sketch" / "house" / "pic_005.jpg").write_bytes(image_bytes(901))
    assert problems() == []
    assert verify_dataset("PACS", data).notes == [
        "1 images are there twice in a domain, and may be in different splits, such as "
        "photo/dog/pic_000.jpg, photo/horse/pic_004.jpg"
    ]


def test_an_image_that_trains_and_validates(tmp_path):
    lines = ["path,label,domain,split"]
    for number, (label, domain, split) in enumerate(
        itertools.product(("cat", "dog"), ("a", "b"), ("in", "out"))
    ):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number))
        lines.append(f"{number}.jpg,{label},{domain},{split}")
    (tmp_path / "7.jpg").write_bytes((tmp_path / "2.jpg").read_bytes())  # both of b
    (tmp_path / "m.csv").write_text("\n".join(lines))
    (problem,) = verify_dataset(str(tmp_path / "m.csv"), tmp_path).problems
    assert problem.message == "the same image trains and validates: 2.jpg, 7.jpg"


def test_same_size_is_no_duplicate(root, problems):
    content = image_bytes(910)
    changed = content[:-2] + b"\xff\xd9" if content[-2:] != b"\xff\xd9" else content + b"\0"
    (root / "photo" / "dog" / "pic_000.jpg").write_bytes(content + b"\1")
    (root / "sketch" / "dog" / "pic_000.jpg").write_bytes(changed)
    assert len(changed) == len(content) + 1
    assert problems() == []


def test_editions(shrink, data, monkeypatch):
    info = shrink("TerraIncognita", (10, 10, 10, 10))
    known = catalogue.SOURCES["TerraIncognita"]
    other = dataclasses.replace(known, variants={"a later copy": (11, 10, 12, 10)})
    monkeypatch.setitem(catalogue.SOURCES, "TerraIncognita", other)
    write(tree_files(info, (11, 10, 12, 10)), data / "terra_incognita")
    report = verify_dataset("TerraIncognita", data)
    assert (report.ok, report.edition) == (True, "a later copy")
    assert report.notes == ["this is a later copy: 43 images"]
    assert list(report.published.values()) == [11, 10, 12, 10]


def test_known_edition_of_terra():
    (numbers,) = catalogue.SOURCES["TerraIncognita"].variants.values()
    assert sum(numbers) == 24_330


def test_office_home_has_classes_without_names(shrink, data):
    info = shrink("OfficeHome", (4, 4, 4, 4), num_classes=2)
    write(tree_files(info, (4, 4, 4, 4)), data / "office_home")
    assert verify_dataset("OfficeHome", data).ok
    (data / "office_home" / "Art" / "class_1").rename(data / "office_home" / "Art" / "class_2")
    found = {(p.kind, p.where) for p in verify_dataset("OfficeHome", data).problems}
    assert ("classes", "") in found
    assert ("classes", "Art") in found


def test_own_images(pacs, tmp_path):
    root = write(pacs, tmp_path / "mine")
    report = verify_dataset(f"folder:{root}", "ignored")
    assert (report.ok, report.published, report.images) == (True, {}, 34)
    shutil.rmtree(root / "photo" / "dog")
    (root / "sketch" / "dog" / "pic_000.jpg").write_bytes(b"")
    found = [(p.kind, p.where) for p in verify_dataset(f"folder:{root}", "").problems]
    assert found == [("classes", "photo"), ("unreadable", "sketch/dog/pic_000.jpg")]


def test_manifest(pacs, tmp_path):
    write(pacs, tmp_path / "images")
    rows = [f"images/{name},{name.split('/')[0]},{name.split('/')[1]}" for name in pacs]
    (tmp_path / "mine.csv").write_text("\n".join(["path,domain,label", *rows]))
    report = verify_dataset(str(tmp_path / "mine.csv"), "ignored")
    assert (report.ok, report.images, report.counts["photo"]["dog"]) == (True, 34, 1)
    (tmp_path / "images" / "photo" / "dog" / "pic_000.jpg").unlink()
    (problem,) = verify_dataset(str(tmp_path / "mine.csv"), "ignored").problems
    assert problem.message == (
        "images/photo/dog/pic_000.jpg cannot be read: No such file or directory"
    )


def test_not_there_and_embedded(data):
    (problem,) = verify_dataset("DomainNet", data).problems
    assert problem.kind == "missing"
    assert f"`domainbed data download DomainNet --data_dir {data}`" in problem.message
    assert verify_dataset("ColoredDigits", data).ok
    with pytest.raises(UserError, match="unknown dataset"):
        verify_dataset("PACKS", data)


def test_mnist(data, monkeypatch):
    assert not verify_dataset("ColoredMNIST", data).ok
    raw = data / "MNIST" / "raw"
    write_idx_files(raw)
    (problem,) = verify_dataset("ColoredMNIST", data).problems
    assert "train-images-idx3-ubyte is not there, or not the published file" in problem.message
    assert "with the MD5 checksum 6bbc9ace898e44ae57da46a324031adb" in problem.message
    monkeypatch.setattr("domainbed.download.verify.MNIST_CHECKSUMS", checksums(raw))
    assert verify_dataset("RotatedMNIST", data).ok
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    (problem,) = verify_dataset("RotatedMNIST", data).problems
    assert "train-labels-idx1-ubyte is not there, or not the published file" in problem.message
    write_idx_files(raw)
    (data / "MNIST" / "processed").mkdir()
    (problem,) = verify_dataset("RotatedMNIST", data).problems
    assert "processed would be read in place of the published files" in problem.message


def test_real_mnist(mnist_dir):
    assert verify_dataset("ColoredMNIST", mnist_dir).ok


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ((), ["domains", "classes"]),
        (("photo/cat/1.png", "photo/dog/1.png"), ["domains"]),
        (("photo/cat/1.png", "sketch/cat/1.png"), ["classes"]),
        (("photo/1.png", "sketch/1.png"), ["classes"]),
    ],
)
def test_what_training_refuses(files, kinds, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    write({file: image_bytes(k, "png") for k, file in enumerate(files)}, root)
    found = verify_dataset(f"folder:{root}", "").problems
    assert [problem.kind for problem in found] == kinds
    assert all("training needs two or more" in problem.message for problem in found)


def test_real_images(pacs_dir):
    started = time.perf_counter()
    report = verify_dataset("PACS", pacs_dir)
    assert time.perf_counter() - started < 20
    assert [p.kind for p in report.problems] == ["count"] * 4
    assert set().union(*(c.values() for c in report.counts.values())) == {30}


def test_file_that_may_not_be_read(tmp_path):
    assert verify.look_at(tmp_path / "none.jpg") == (os.strerror(2), "", "")
