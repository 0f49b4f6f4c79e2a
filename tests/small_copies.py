"""Small copies of the datasets that are kept as published: paths below their folder, to bytes."""

from __future__ import annotations

import dataclasses
import io
import itertools
from functools import cache

import numpy as np
from PIL import Image

from domainbed.datasets import DATASETS, published_trees

BREEDS = ("bulldog", "dachshund", "labrador", "corgi")
LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")

SPAWRIOUS_SETS = {
    "O2O_easy": ("desert jungle dirt snow", "beach", "dirt snow desert jungle"),
    "O2O_medium": ("mountain beach dirt jungle", "desert", "jungle dirt beach snow"),
    "O2O_hard": ("jungle mountain snow desert", "beach", "mountain snow desert jungle"),
    "M2M_easy": ("desert mountain dirt jungle", None, "dirt jungle mountain desert"),
    "M2M_medium": ("beach snow mountain desert", None, "desert mountain beach snow"),
    "M2M_hard": ("dirt jungle snow beach", None, "snow beach dirt jungle"),
}
"""The published table: training locations, the common one, test locations, in BREEDS' order."""

CAMELYON_IMAGES = (6, 5, 7, 8, 9)
FMOW_IMAGES = {"Asia": 12, "Europe": 30, "Africa": 8, "Americas": 7, "Oceania": 6, "Other": 5}
SPAWRIOUS_IN_FOLDER, SPAWRIOUS_CORRELATED = 5, (4, 3)


def picture(number, height=6, width=5):
    """A small image that no other number has."""
    pixels = np.random.RandomState(number).randint(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def csv(header, rows):
    return "\n".join(",".join(map(str, row)) for row in [header.split(), *rows]).encode() + b"\n"


@cache
def camelyon():
    """Rows of all hospitals in turn; the first patient's number has leading zeros."""
    files, rows = {"RELEASE_v1.0.txt": b"1.0\n"}, []
    left = [list(range(n)) for n in CAMELYON_IMAGES]
    while any(left):
        for center, numbers in enumerate(left):
            if numbers:
                row, k = len(rows), numbers.pop(0)
                patient, x, y = f"{20 * center + 4:03d}", 3328 + k, 21792 - 32 * row
                rows.append([row, patient, k % 2, x, y, (row // 5) % 2, center, center, k % 3])
                scan = f"patient_{patient}_node_{k % 2}"
                files[f"patches/{scan}/patch_{scan}_x_{x}_y_{y}.png"] = picture(row, 9, 9)
    header = "index patient node x_coord y_coord tumor slide center split"
    text = csv(header, rows).replace(b"index,", b",", 1)
    return {"metadata.csv": text, **files}


def fmow_rows():
    """(split, category, country code, region); the first of Asia is sequestered."""
    codes = {"Asia": "JPN", "Europe": "FRA", "Africa": "NAM", "Americas": "USA", "Oceania": "AUS"}
    regions = ["Europe"] * FMOW_IMAGES["Europe"]
    regions += [region for region, n in FMOW_IMAGES.items() if region != "Europe" for _ in range(n)]
    rows = [("seq", "zoo", "JPN", "Asia"), ("seq", "airport", "FRA", "Europe")]
    for k, region in enumerate(regions):
        code = codes.get(region, ("XKX", "ATA")[k % 2])  # unknown, and without a region
        split = ("train", "val", "test")[k % 3]
        rows.append((split, f"category_{(7 * k) % 62:02d}", code, region))
    rows.insert(20, ("seq", "category_00", "USA", "Americas"))
    return [
        (split, {"zoo": "category_61", "airport": "category_00"}.get(category, category), *rest)
        for split, category, *rest in rows
    ]


@cache
def fmow():
    rows = fmow_rows()
    table = [(split, f"f{k}", category, code) for k, (split, category, code, _) in enumerate(rows)]
    countries = [
        ("Japan", "JPN", "Asia"),
        ("France", "FRA", "Europe"),
        ("Namibia", "NAM", "Africa"),
    ]
    countries += [("USA", "USA", "Americas"), ("Australia", "AUS", "Oceania")]
    countries += [("Antarctica", "ATA", "")]
    files = {
        "rgb_metadata.csv": csv("split img_filename category country_code", table),
        "country_code_mapping.csv": csv("name alpha-3 region", countries),
        "RELEASE_v1.1.txt": b"1.1\n",
    }
    for k, (split, *_) in enumerate(rows):
        if split != "seq":
            files[f"images/rgb_img_{k}.png"] = picture(1000 + k)
    return files


@cache
def spawrious_tree():
    places = itertools.product((0, 1), LOCATIONS, BREEDS, range(SPAWRIOUS_IN_FOLDER))
    return {
        f"{folder}/{location}/{breed}/{breed}_{k}.png": picture(2000 + number)
        for number, (folder, location, breed, k) in enumerate(places)
    }


SUBPOPULATION_IMAGES = {"Waterbirds": (9, 8), "CelebA": (9, 8), "MetaShift": (12, 4)}
"""Of the domains train and test."""


def subpopulation_rows():
    """(label, attribute, split) of each image, of which two validate."""
    splits = [0] * 7 + [1] * 2 + [2] * 8
    return [(k % 2, (k // 2) % 2, splits[(5 * k) % 17]) for k in range(17)]


@cache
def waterbirds():
    species = ("001.Albatross", "002.Warbler")
    rows = [
        (k, f"{species[y]}/{k}.jpg", y, split, place, f"/p/{k}.jpg")
        for k, (y, place, split) in enumerate(subpopulation_rows())
    ]
    header = "img_id img_filename y split place place_filename"
    files = {row[1]: picture(3000 + row[0]) for row in rows}
    return {"metadata.csv": csv(header, rows), **files}


@cache
def celeba():
    rows = list(enumerate(subpopulation_rows(), start=1))
    signs = ("-1", "1")
    lines = [f"{k:06d}.jpg -1 {signs[y]}  {signs[a]}" for k, (y, a, _) in rows]
    attributes = "\n".join([str(len(rows)), "5_o_Clock_Shadow Blond_Hair Male ", *lines])
    return {
        "list_attr_celeba.txt": attributes.encode(),
        "list_eval_partition.txt": "".join(f"{k:06d}.jpg {s}\n" for k, (_, _, s) in rows).encode(),
        **{f"img_align_celeba/{k:06d}.jpg": picture(3100 + k) for k, _ in rows},
    }


@cache
def metashift():
    places = ("train/cat/cat(indoor)", "train/dog/dog(outdoor)")
    places += ("test/cat/cat(outdoor)", "test/dog/dog(indoor)")
    return {f"{place}/{k}.jpg": picture(3200 + 4 * i + k) for i, place in enumerate(places)
            for k in range(4)}  # fmt: skip


def shrink(monkeypatch):
    """Makes the published numbers those of the copies."""
    n, own = SPAWRIOUS_IN_FOLDER, SPAWRIOUS_CORRELATED
    monkeypatch.setattr(published_trees, "IN_FOLDER", n)
    monkeypatch.setattr(published_trees._Spawrious, "correlated", own)
    replaced = {"WILDSCamelyon": CAMELYON_IMAGES}
    replaced |= {f"Spawrious{name}": (8 * n, 4 * n, 4 * n) for name in SPAWRIOUS_SETS}
    for name, images in {**replaced, **SUBPOPULATION_IMAGES}.items():
        info = dataclasses.replace(DATASETS[name].info, images=images)
        monkeypatch.setattr(DATASETS[name], "info", info)


COPIES = {
    "WILDSCamelyon": camelyon,
    "WILDSFMoW": fmow,
    **{f"Spawrious{name}": spawrious_tree for name in SPAWRIOUS_SETS},
    **{"Waterbirds": waterbirds, "CelebA": celeba, "MetaShift": metashift},
}


def write_copy(name, data_dir):
    """A small copy of dataset `name` in the data folder; returns its own folder."""
    root = data_dir / DATASETS[name].info.folder
    for path, content in COPIES[name]().items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root
