"""Columns, encodings, patterns and names of classes as people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainbed.config.run_fields import DataFields
from domainbed.datasets import get_dataset_class
from domainbed.datasets.rows import read_rows
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import build

COLUMNS = {"path": "Bild", "label": "Diagnose", "domain": "Klinik"}


def images(root: Path, *names: str) -> None:
    """Small random images, none like another."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)


def spec_of(dataset: Path | str, **fields: Any) -> RunSpec:
    hparams = {"resnet18": True, "weights": "none", "batch_size": 2}
    return RunSpec.create(str(dataset), "ERM", [0], steps=1, hparams=hparams, **fields)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets_are_read_as_they_were_saved(
    encoding: str, separator: str, tmp_path: Path
) -> None:
    rows = [["Bild", "Klinik", "Diagnose", "Notiz"], ["ä.png", "Köln", "gut", "x"]]
    rows += [["b.png", "Bonn", "gut", f'"a{separator}b"'], ["", "", "", ""]]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    if encoding == "cp1252":
        with pytest.warns(UserWarning, match=r"m.csv is not UTF-8: it is read as cp1252"):
            read = read_rows(tmp_path / "m.csv")
    else:
        read = read_rows(tmp_path / "m.csv")
    assert [line for line, _ in read.rows] == [2, 3]
    assert read.rows[1][1]["Notiz"] == f"a{separator}b"
    cls = get_dataset_class(str(tmp_path / "m.csv"), DataFields(columns=COLUMNS))
    assert cls.ENVIRONMENTS == ("Bonn", "Köln")
    assert [file.name for file in cls.lines] == ["ä.png", "b.png"]


def test_columns_decide_what_is_read_and_who_a_run_is(tmp_path: Path) -> None:
    images(tmp_path, *(f"{domain}{n}.png" for domain in "ab" for n in range(6)))
    labels = ["good", "bad"] * 3
    rows = [
        {"image": f"{domain}{n}.png", "diagnosis": labels[n], "domain": domain}
        | {"patient_id": f"p{n // 3}", "scanner": n % 3}
        for domain in "ab"
        for n in range(6)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"path": "image", "label": "diagnosis"}
    with pytest.warns(UserWarning, match=r"column 'patient_id' is no group: .*\{group: patie"):
        plain = spec_of(tmp_path / "m.jsonl", columns=columns)
    more = {"group": "patient_id", "attribute": "scanner"}
    grouped = spec_of(tmp_path / "m.jsonl", columns={**columns, **more})
    assert plain.identity()["columns"] == columns
    assert plain.run_id != grouped.run_id
    experiment = build(grouped)
    assert experiment.facts.attribute_names == ("0", "1", "2")
    assert experiment.domains[0].groups == ["p0", "p1", "p1", "p0", "p0", "p1"]
    assert experiment.domains[0].noted["attribute"].tolist() == [1, 0, 2, 0, 2, 1]


def test_columns_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image,label,domain\nx.png,a,b\n")
    for columns, message in (
        ({"path": "bild"}, "line 1: 0 columns 'bild' in 'image, label, domain'"),
        ({"pfad": "image"}, "columns names the role 'pfad'"),
        ({"pfad": "image"}, "Known: path, label, domain, split, group, attribute"),
        ({"path": "image", "group": "patient"}, "line 1: 0 columns 'patient'"),
    ):
        with pytest.raises(UserError) as caught:
            spec_of(tmp_path / "m.csv", columns=columns)
        assert message in str(caught.value)
        assert caught.value.where[0] == "columns"
    with pytest.raises(UserError, match="columns is for data of your own, not for Debug28"):
        spec_of("Debug28", columns={"path": "x"})
    with pytest.raises(UserError, match=r"is a folder, which has no columns"):
        spec_of(f"folder:{tmp_path}", columns={"path": "x"})
    with pytest.raises(UserError, match=r"'b' means 2 classes: name it once"):
        spec_of(tmp_path / "m.csv", columns={"path": "image"}, classes={"a": ["b"], "c": ["b"]})


def test_a_path_may_be_a_pattern(tmp_path: Path) -> None:
    images(tmp_path, *(f"{domain}/{n}.png" for domain in "ab" for n in (10, 2)), "a/[1].png")
    (tmp_path / "a" / "notes.txt").write_text("no image")

    def written(*lines: str) -> str:
        (tmp_path / "m.csv").write_text("\n".join(["path,label,domain", *lines]))
        return str(tmp_path / "m.csv")

    cls = get_dataset_class(written("a/*0.png,cat,a", "a/[1].png,cat,a", "b/*,cat,b"))
    found = [[file.name for file, _ in own] for own in cls.listed.images]
    assert found == [["10.png", "[1].png"], ["10.png", "2.png"]]
    with pytest.raises(UserError, match=r"line 4: 'a/\[1\].png' is already listed in line 2"):
        get_dataset_class(written("a/*,cat,a", "b/*,cat,b", "a/[1].png,dog,b"))
    with pytest.raises(UserError, match=r"line 2: no image matches 'a/\*.gif'"):
        get_dataset_class(written("a/*.gif,cat,a", "b/*,cat,b"))


def test_names_of_classes_that_differ_by_domain(tmp_path: Path) -> None:
    """As a folder and as a manifest: the same images under the same labels."""
    names = [*("a/vogel/1.png", "a/flying/1.png", "a/hund/1.png", "a/hund/2.png")]
    names += [*("b/bird/1.png", "b/bird/2.png", "b/dog/1.png", "b/dog/2.png", "b/cat/1.png")]
    images(tmp_path / "pets", *names)
    lines = [f"pets/{name},{name.split('/')[1]},{name[0]}" for name in names]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,domain", *lines]))
    classes = {"bird": ("vogel", "flying"), "dog": ("hund",)}
    for name in (f"folder:{tmp_path}/pets", str(tmp_path / "m.csv")):
        with pytest.raises(UserError, match=r"lacks cat.*set missing_classes to allow"):
            get_dataset_class(name, DataFields(classes=classes))("", [0], {})
        options = DataFields(classes=classes, missing_classes="allow")
        dataset = get_dataset_class(name, options)("", [0], {})
        assert dataset.classes == ["bird", "cat", "dog"]
        assert [domain.targets for domain in dataset] == [[0, 0, 2, 2], [0, 0, 1, 2, 2]]
        assert dataset[0].files[0].parent.name == "flying"
