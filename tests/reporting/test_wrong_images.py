"""Pictures of wrongly predicted images in the report, on predictions set by hand."""

from __future__ import annotations

import base64
import io
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from fake_sweep import random_run, write
from PIL import Image

from domainbed.reporting import build_report, load_records
from domainbed.reporting.misclassified import Misclassified
from domainbed.reporting.page import build_page, to_html
from domainbed.reporting.page.wrong_images import _galleries, files_below, wrong_images
from domainbed.runs.predictions import Predicted, write_predictions

CLASSES = ["cat", "<b>dog", "owl"]
NAMES = ["a.png", "b.png", "c.png", "d.png"]
LABELS = [0, 1, 2, 0]
SAID = {  # by algorithm and trial what is said of the four
    ("ERM", 0): [0, 0, 0, 1],
    ("Fishr", 0): [0, 0, 2, 2],
    ("ERM", 1): [0, 0, 2, 0],
    ("Fishr", 1): [1, 2, 2, 0],
}
COLORS = {"a.png": (250, 0, 0), "b.png": (0, 250, 0), "c.png": (0, 0, 250), "d.png": (9, 9, 9)}


def predict(folder, said, names=NAMES):
    logits = np.eye(3)[said]
    parts = [Predicted(1, "in", [f"PACS/{name}" for name in names], np.array(LABELS), logits)]
    write_predictions(folder / "predictions.parquet", {"step": 20, "classes": CLASSES}, parts)


@pytest.fixture
def sweep(tmp_path):
    """Runs of three algorithms, of which two keep what they predict of images below data/."""
    rng = random.Random(0)
    runs = [random_run(rng, "PACS", name, [1], 0, trial) for name, trial in SAID]
    folders = write(tmp_path / "sweep", runs, done=True)
    for said, folder in zip(SAID.values(), folders, strict=True):
        predict(folder, said)
    write(tmp_path / "sweep", [random_run(rng, "PACS", "CORAL", [1], 0, 0)], seed=1, done=True)
    (tmp_path / "data" / "PACS").mkdir(parents=True)
    for name, color in COLORS.items():
        Image.new("RGB", (640, 480), color).save(tmp_path / "data" / "PACS" / name)
    return tmp_path / "sweep"


def part_of(sweep, data="data", baseline="ERM"):
    report = build_report(load_records(sweep), ["oracle"])
    return wrong_images(report, baseline, partial(files_below, sweep.parent / data))


def picture(thumbnail):
    kind, _, content = thumbnail.source.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def is_of(thumbnail, color):
    seen = picture(thumbnail).getpixel((20, 20))
    return max(abs(a - b) for a, b in zip(seen, color, strict=True)) < 12


def test_who_is_wrong_on_which_images(sweep):
    part = part_of(sweep)
    assert {title: len(thumbnails) for title, thumbnails in part.galleries} == {
        "PACS, C: ERM and Fishr are wrong (2 images)": 2,
        "PACS, C: only ERM is wrong (1 image)": 1,
        "PACS, C: only Fishr is wrong (1 image)": 1,
    }
    both, only_erm, only_fishr = (thumbnails for _, thumbnails in part.galleries)
    assert [is_of(each, COLORS[n]) for each, n in zip(both, ("b.png", "d.png"))] == [True, True]
    assert is_of(only_erm[0], COLORS["c.png"])
    assert is_of(only_fishr[0], COLORS["a.png"])
    assert both[0].lines == ["is <b>dog", "ERM: cat", "Fishr: owl"]  # of the last trial
    assert both[0].alternative == (
        "PACS/b.png, of class <b>dog; ERM: cat, Fishr: owl; in 2 of 2 trials"
    )
    assert both[1].alternative.endswith("in 1 of 2 trials")  # so it comes second
    assert picture(both[0]).size == (96, 72)
    counts = [[cell.text for cell in row.cells] for row in part.tables[0].rows]
    assert counts == [
        ["PACS", "C", "0", "4", "1", "2", "1", "0"],
        ["PACS", "C", "1", "4", "2", "1", "0", "1"],
    ]


def test_the_other_algorithm_is_the_best_that_keeps_predictions(sweep):
    assert part_of(sweep).intro.startswith("What ERM and Fishr get wrong")
    assert part_of(sweep, baseline="Fishr").intro.startswith("What Fishr and ERM get wrong")
    assert part_of(sweep, baseline="CORAL").intro.startswith("What ")
    for file in sweep.glob("*/predictions.parquet"):
        file.unlink()
    assert "fewer than two algorithms keep" in part_of(sweep).missing


def test_a_domain_without_readable_images_says_so(sweep):
    part = part_of(sweep, data="elsewhere")
    assert part.galleries == []
    assert part.notes == ["PACS, C: no pictures, its images cannot be read"]
    assert len(part.tables) == 1


def test_what_cannot_be_compared_says_why(sweep):
    next(sweep.glob("*/predictions.parquet")).write_bytes(b"x")
    part = part_of(sweep)
    assert part.missing.startswith("PACS: ")
    assert "is damaged" in part.missing


def test_the_page_holds_them_and_nothing_more(sweep):
    report = build_report(load_records(sweep), ["oracle"])
    html = to_html(
        build_page(report, sweep, read_images=partial(files_below, sweep.parent / "data"))
    )
    assert html.count('<img src="data:image/jpeg;base64,') == 4
    assert 'alt="PACS/b.png, of class &lt;b&gt;dog;' in html
    assert "<b>dog" not in html


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "PACS/../../secret.png", "no"])
def test_no_file_outside_the_data_folder_is_read(tmp_path, name):
    (tmp_path / "data").mkdir()
    for place in (tmp_path, tmp_path / "data"):
        Image.new("RGB", (8, 8)).save(place / "secret.png")
    read = partial(files_below, tmp_path / "data")
    assert read("", 0, [name, str(tmp_path / "secret.png")]) == [None, None]
    assert read("", 0, ["secret.png"])[0].size == (8, 8)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_damaged_image_is_left_out(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    assert files_below(tmp_path, "", 0, ["x.png"]) == [None]


def found_of(images, ending=""):
    """Two algorithms of which the first is wrong on so many images of each class."""
    rows = [
        {"dataset": "PACS", "test_env": 1, "domain": "C", "trial_seed": 0,
         "image": f"{i:03}{ending}", "label": label,
         "predicted_A": "x", "predicted_B": label, "wrong": "A"}
        for label, count in images.items() for i in range(count)
    ]  # fmt: skip
    return Misclassified(["A", "B"], pd.DataFrame(rows), 0, 2, {("PACS", 1, 0): "folder"})


def images_like(image):
    """Reads this image, whatever is asked for."""
    return lambda folder, env, names: [image] * len(names)


def test_the_pictures_are_few_and_of_many_classes():
    found = found_of({"cat": 500, "dog": 500, "owl": 1}, ".png")
    ((domain, title, thumbnails),) = _galleries(found, images_like(Image.new("L", (9, 9))))
    assert (domain, title) == ("C", "only A is wrong (1,001 images)")
    labels = [each.lines[0] for each in thumbnails]
    assert labels == ["is cat", "is dog", "is owl", "is cat", "is dog", "is cat"]


def test_positions_are_of_one_trial():
    found = found_of({"7": 2})
    later = found.images.assign(trial_seed=1)
    both = replace(found, images=pd.concat([found.images, later], ignore_index=True))
    ((_, title, thumbnails),) = _galleries(both, images_like(Image.new("L", (28, 28), 255)))
    assert title == "only A is wrong (2 images of trial 0)"
    assert picture(thumbnails[0]).size == (84, 84)  # enlarged by a whole factor


def test_the_bytes_are_few():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    ((_, _, thumbnails),) = _galleries(found_of({"cat": 9}), images_like(noise))
    assert max(len(each.source) for each in thumbnails) < 20_000  # none is harder to compress
