"""What users have already, in every layout that is going around."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random

import pytest
from digits_as_idx import checksums, write_idx_files
from PIL import Image
from source_files import (
    TERRA_IMAGES,
    below,
    content_of,
    image_bytes,
    terra_files,
    tree_files,
    write,
    write_tar,
    write_zip,
)

from domainbed.datasets import PACS
from domainbed.download import catalogue, layouts
from domainbed.download.verify import verify_dataset
from domainbed.errors import UserError

PREFIXES = ["PACS", "kfold", "pacs_data/pacs_data", "a/b/PACS/kfold"]


@pytest.mark.parametrize("pack", [write_zip, write_tar])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_archives(pack, prefix, pacs, said, data, tmp_path):
    names = list(pacs)
    random.Random(prefix).shuffle(names)
    suffix = {write_zip: "zip", write_tar: "tar.gz"}[pack]
    file = tmp_path / f"copy.{suffix}"
    pack(file, below(prefix, {name: pacs[name] for name in names}))
    said("PACS", file)
    assert content_of(data / "PACS") == pacs
    assert file.exists()


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_folders_are_copied(prefix, pacs, said, data, tmp_path):
    mine = write(pacs, tmp_path / "mine" / prefix)
    before = content_of(tmp_path / "mine")
    said("PACS", tmp_path / "mine")
    assert content_of(data / "PACS") == pacs
    placed = data / "PACS" / "photo" / "dog" / "pic_000.jpg"
    placed.write_bytes(b"edited")  # in place: no link leads back to the user's file
    assert content_of(tmp_path / "mine") == before
    assert not placed.samefile(mine / "photo" / "dog" / "pic_000.jpg")


def test_other_spellings(pacs, said, data, tmp_path):
    other = {"art_painting": "Art Painting", "cartoon": "CARTOON", "photo": "Photo"}
    split = [(name.split("/"), content) for name, content in pacs.items()]
    files = {f"{other.get(d, d)}/{c.title()}/{n}": v for (d, c, n), v in split}
    said("PACS", write(files, tmp_path / "mine"))
    assert content_of(data / "PACS") == pacs


def test_folder_with_the_archive_in_it(pacs, said, data, tmp_path):
    write_zip(write({"notes.txt": b""}, tmp_path / "mine") / "PACS.zip", below("kfold", pacs))
    (tmp_path / "mine" / "unrelated.zip").write_bytes(b"no archive")
    said("PACS", tmp_path / "mine")
    assert content_of(data / "PACS") == pacs


def test_what_is_wrong_is_named(pacs, said, data, tmp_path):
    mine = write(pacs, tmp_path / "mine")
    (mine / "photo" / "dog" / "pic_000.jpg").unlink()
    write({"photo/zebra/1.jpg": image_bytes(1), "video/dog/1.jpg": image_bytes(2)}, mine)
    (mine / "sketch" / "dog" / "pic_000.jpg").write_bytes(b"")
    with pytest.raises(UserError) as error:
        said("PACS", mine)
    assert str(error.value).endswith(
        "not PACS as published (domain 'video' was not published; domain 'photo' lacks class "
        "'dog'; class 'zebra' of 'photo' was not published; domain 'photo' has 6 images, published "
        "7; and 1 more); --accept_incomplete takes it as it is"
    )
    text = said("PACS", mine, accept_incomplete=True)
    assert "class 'zebra' of 'photo' was not published" in text
    assert "sketch/dog/pic_000.jpg has no bytes" in text
    assert content_of(data / "PACS") == content_of(mine)


def test_a_part_of_the_real_images(pacs_dir, said, data):
    """With the published numbers, which a part cannot have."""
    with pytest.raises(UserError, match="'photo' has 210 images, published 1,670"):
        said("PACS", pacs_dir / "PACS")
    text = said("PACS", pacs_dir, accept_incomplete=True)
    assert "840 images in 4 domains" in text
    assert content_of(data / "PACS") == content_of(pacs_dir / "PACS")


def test_nothing_and_too_much(pacs, said, tmp_path):
    with pytest.raises(UserError, match=r"--from '.*none' does not exist"):
        said("PACS", tmp_path / "none")
    empty = write({"a/b/c.jpg": image_bytes(0)}, tmp_path / "empty")
    with pytest.raises(UserError, match=r"no images of PACS in empty: expected .*'art_painting'"):
        said("PACS", empty)
    (tmp_path / "bad.zip").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.zip is damaged"):
        said("PACS", tmp_path / "bad.zip")
    write(pacs, tmp_path / "two" / "a")
    write(pacs, tmp_path / "two" / "b")
    with pytest.raises(UserError, match=r"the dataset is in .* and in .*: name one"):
        said("PACS", tmp_path / "two")


class TestVLCS:
    @pytest.mark.parametrize(
        "splits", [("full",), ("train", "test", "crossval"), ("train", "full")]
    )
    def test_split_folders(self, splits, shrink, said, data, tmp_path):
        info = shrink("VLCS", (5, 5, 6, 7))
        files = tree_files(info, info.images)
        names = {"Caltech101": "CALTECH", "LabelMe": "LABELME", "SUN09": "SUN"}
        names["VOC2007"] = "PASCAL"
        parts = [s for s in splits if s != "train"] if "full" in splits else splits
        mine = {}
        for k, (name, content) in enumerate(files.items()):
            domain, label, image = name.split("/")
            mine[f"{names[domain]}/{parts[k % len(parts)]}/{label}/{image}"] = content
            if "full" in splits and "train" in splits:
                mine[f"{names[domain]}/train/{label}/{image}"] = content
        said("VLCS", write(mine, tmp_path / "VLCS"))
        assert content_of(data / "VLCS") == files

    def test_same_name_in_two_splits(self, shrink, said, data, tmp_path):
        info = shrink("VLCS", (10, 10, 10, 10))
        first, second = tree_files(info, (5,) * 4), tree_files(info, (5,) * 4, start=100)
        for split, files in (("train", first), ("test", second)):
            for name, content in files.items():
                domain, label, image = name.split("/")
                write({f"{domain}/{split}/{label}/{image}": content}, tmp_path / "VLCS")
        said("VLCS", tmp_path / "VLCS")
        found = content_of(data / "VLCS")
        assert sorted(found.values()) == sorted([*first.values(), *second.values()])
        assert {"SUN09/bird/pic_000.jpg", "SUN09/bird/pic_000_2.jpg"} <= set(found)


class TestTerra:
    @pytest.fixture
    def terra(self, shrink):
        return shrink("TerraIncognita", TERRA_IMAGES, classes=("bird", "cat"), num_classes=2)

    def expected(self, images):
        image = {int(name.split("x")[1][:-4]): content for name, content in images.items()}
        places = {"38/bird": (1,), "38/cat": (1, 2), "43/bird": (3,), "46/cat": (4,)}
        places |= {"100/bird": (5,), "100/cat": (6,)}
        return {
            f"location_{place}/x{i}.jpg": image[i] for place, ids in places.items() for i in ids
        }

    @pytest.mark.parametrize("packed", [(), ("images",), ("notes", "images")])
    def test_subset(self, packed, terra, said, data, tmp_path):
        notes, images = terra_files()
        mine = tmp_path / "mine"
        mine.mkdir()
        for name, files in (("notes", notes), ("images", images)):
            if name in packed:
                write_tar(mine / f"{name}.tar.gz", files)
            else:
                write(files, mine)
        text = said("TerraIncognita", mine, accept_incomplete=True)
        assert content_of(data / "terra_incognita") == self.expected(images)
        assert "1 images have several of the categories" in text
        assert "1 annotated images have no file" in text
        assert "domain 'location_43' lacks class 'cat'" in text

    def test_order_of_annotations_is_irrelevant(self, terra, said, data, tmp_path):
        notes, images = terra_files()
        parts = list(notes)
        shifted = dict(zip(parts, [notes[p] for p in [*parts[1:], parts[0]]], strict=True))
        write({**shifted, **images}, tmp_path / "mine")
        said("TerraIncognita", tmp_path / "mine", accept_incomplete=True)
        assert content_of(data / "terra_incognita") == self.expected(images)

    def test_damaged_annotations(self, terra, said, tmp_path):
        notes, images = terra_files()
        mine = write({**notes, **images}, tmp_path / "mine")
        deep = b"[" * 100_000
        for damage in (b"{", b'{"images": []}', b"[1]", b'{"categories": 1}', deep, b"\xff"):
            write({"eccv_18_annotation_files/train_annotations.json": damage}, mine)
            with pytest.raises(
                UserError, match=r"train_annotations\.json is not an annotation file"
            ):
                said("TerraIncognita", mine)

    def test_the_other_edition(self, shrink, said, monkeypatch, tmp_path):
        info = shrink("TerraIncognita", (10, 10, 10, 10))
        known = catalogue.SOURCES["TerraIncognita"]
        other = dataclasses.replace(known, variants={"a later copy": (11, 10, 12, 10)})
        monkeypatch.setitem(catalogue.SOURCES, "TerraIncognita", other)
        mine = write(tree_files(info, (11, 10, 12, 10)), tmp_path / "terra")
        assert "43 images" in said("TerraIncognita", mine)


class TestDomainNet:
    @pytest.fixture
    def files(self, shrink):
        info = shrink("DomainNet", (2, 3, 2, 2, 3, 2), num_classes=2)
        return tree_files(info, info.images)

    def lists(self, files):
        lists = {}
        for name in files:
            domain = name.partition("/")[0]
            part = "train" if name.endswith("0.jpg") else "test"
            lists.setdefault(f"{domain}_{part}.txt", []).append(f"{name} 0\n")
        return {name: "".join(lines).encode() for name, lines in lists.items()}

    @pytest.mark.parametrize("packed", [True, False])
    def test_lists_decide(self, packed, files, said, data, tmp_path):
        extra = {"real/class_0/not_listed.jpg": image_bytes(500)}
        extra["sketch/class_1/not_listed.jpg"] = image_bytes(501)
        raw, mine = {**files, **extra}, write(self.lists(files), tmp_path / "mine")
        if packed:
            for domain in {name.partition("/")[0] for name in raw}:
                part = {n: c for n, c in raw.items() if n.startswith(domain)}
                write_zip(mine / f"{domain}.zip", part)
        else:
            write(raw, mine)
        text = said("DomainNet", mine)
        assert content_of(data / "domain_net") == files
        assert "2 images that the official lists do not name were left out" in text

    def test_list_that_is_no_text(self, files, said, tmp_path):
        mine = write({**files, **self.lists(files), "real_train.txt": b"\xff"}, tmp_path / "mine")
        with pytest.raises(UserError, match=r"real_train\.txt is not a list of images"):
            said("DomainNet", mine)
        (mine / "real_train.txt").unlink()
        os.mkfifo(mine / "real_train.txt")
        with pytest.raises(UserError, match=r"real_train\.txt: it is no regular file"):
            said("DomainNet", mine)

    def test_without_lists_the_counts_decide(self, files, said, data, tmp_path):
        mine = write(files, tmp_path / "mine")
        write({"real/class_0/not_listed.jpg": image_bytes(500)}, mine)
        with pytest.raises(UserError, match="'real' has 4 images, published 3"):
            said("DomainNet", mine)
        (mine / "real/class_0/not_listed.jpg").unlink()
        assert "14 images" in said("DomainNet", mine)


class TestMNIST:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch, tmp_path):
        write_idx_files(tmp_path / "published")
        monkeypatch.setattr(
            "domainbed.download.verify.MNIST_CHECKSUMS", checksums(tmp_path / "published")
        )

    @pytest.mark.parametrize("packed", [True, False])
    def test_copy(self, packed, said, data, tmp_path):
        mine = tmp_path / "mine"
        write_idx_files(mine / "raw")
        if packed:
            for file in list((mine / "raw").iterdir()):
                (mine / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
        assert "70,000 images in 3 domains are in" in said("ColoredMNIST", mine)
        assert "nothing to do" in said("RotatedMNIST")
        assert verify_dataset("ColoredMNIST", data).ok

    def test_incomplete(self, said, data, tmp_path):
        write_idx_files(tmp_path / "mine")
        (tmp_path / "mine" / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(UserError, match="there is no file t10k-labels-idx1-ubyte or"):
            said("ColoredMNIST", tmp_path / "mine")
        assert not (data / "MNIST").exists()

    def test_truncated(self, said, data, tmp_path):
        write_idx_files(tmp_path / "mine")
        file = tmp_path / "mine" / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(UserError, match="not ColoredMNIST as published"):
            said("ColoredMNIST", tmp_path / "mine")
        assert not (data / "MNIST").exists()

    def test_endless(self, said, data, tmp_path, monkeypatch):
        """What unpacks to more than MNIST has is not unpacked to its end."""
        monkeypatch.setattr(layouts, "_MNIST_MOST_BYTES", 40_000)
        write_idx_files(tmp_path / "mine")
        file = tmp_path / "mine" / "train-images-idx3-ubyte"
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(bytes(10**7)))
        file.unlink()
        with pytest.raises(UserError, match="train-images-idx3-ubyte is not there, or not the"):
            said("ColoredMNIST", tmp_path / "mine")
        os.remove(f"{file}.gz")
        os.mkfifo(file)
        with pytest.raises(UserError, match="train-images-idx3-ubyte: it is no regular file"):
            said("ColoredMNIST", tmp_path / "mine")

    def test_download_is_torchvisions(self, said, data, monkeypatch):
        from torchvision.datasets import MNIST

        monkeypatch.setattr(
            MNIST, "download", lambda self: write_idx_files(os.path.join(self.raw_folder))
        )
        assert "70,000 images in 3 domains are in" in said("ColoredMNIST")
        assert verify_dataset("ColoredMNIST", data).ok


def test_published_sizes_are_checked_in_full(said, data, tmp_path):
    """9,991 images, in an archive of another order, with the numbers of the paper."""
    files = {}
    content = image_bytes(0)
    for domain, number in zip(PACS.info.domains, PACS.info.images, strict=True):
        for k in range(number):
            files[f"{domain}/{PACS.info.classes[k % 7]}/pic_{k:04d}.jpg"] = content
    names = list(files)
    random.Random(0).shuffle(names)
    write_zip(tmp_path / "PACS.zip", {f"kfold/{name}": content for name in names})
    assert "9,991 images in 4 domains" in said("PACS", tmp_path / "PACS.zip")
    dataset = PACS(str(data), [0], {})
    assert [len(domain) for domain in dataset] == [2_048, 2_344, 1_670, 3_929]
    with Image.open(dataset[3].files[-1]) as image:
        assert image.size == (5, 6)
