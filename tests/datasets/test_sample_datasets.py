"""Tables and arrays: what is learned from the samples that train, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from domainbed.config.run_fields import DataFields
from domainbed.datasets import DATASETS, get_dataset_class
from domainbed.datasets.samples import encoded, learned
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training.experiment import build

COLUMNS = DataFields(columns={"label": "sick", "domain": "site"})
USUAL = DataFields()


def write_table(folder, rows, name="t.csv"):
    file = folder / name
    file.write_text("\n".join(["age,blood,sick,site", *rows]) + "\n")
    return f"table:{file}"


def arrays(folder, n=30, **content):
    usual = {"x": np.zeros((n, 4)), "y": np.arange(n) % 2, "domain": np.arange(n) // (n // 3)}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "a.npz", **{**usual, **content})
    return f"arrays:{folder / 'a.npz'}"


def of(name, fields=COLUMNS, labels=""):
    return get_dataset_class(name, fields)("", [0], {}, labels=labels)


def test_numbers_and_categories_are_learned_from_the_training_in_splits_alone(tmp_path):
    random = np.random.RandomState(0)
    rows = [
        f"{random.normal(50 + 30 * site, 9):.2f},{'abc'[i % (2 + (site == 2))]},{i % 2},{site}"
        for site in range(3)
        for i in range(40)
    ]
    fields = {"columns": COLUMNS.columns, "steps": 2}
    built = build(RunSpec.create(write_table(tmp_path, rows), "ERM", [2], **fields))
    numbers = np.array([float(row.split(",")[0]) for row in rows]).reshape(3, 40)
    trained = np.concatenate([numbers[e][built.splits[e].inside] for e in (0, 1)])
    assert len(trained) == 64
    encoding = built.dataset.encoding
    assert encoding["mean"] == [pytest.approx(trained.mean(), abs=1e-12)]
    assert encoding["scale"] == [pytest.approx(1 / trained.std(), abs=1e-12)]
    assert abs(encoding["mean"][0] - numbers[:2].mean()) > 0.05  # with the out-splits
    assert abs(encoding["mean"][0] - numbers.mean()) > 5  # with the test domain
    assert encoding["categories"] == {"blood": ["a", "b"]}
    x = built.domains[2].x
    assert x.shape == (40, 3)
    expected = (numbers[2] - trained.mean()) / trained.std()
    np.testing.assert_allclose(x[:, 0], expected, rtol=1e-6)
    assert x[2].tolist()[1:] == [0, 0]  # c, which no sample that trains has
    inside = torch.cat([built.domains[e].x[built.splits[e].inside, 0] for e in (0, 1)])
    assert inside.mean().item() == pytest.approx(0, abs=1e-6)
    assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    # Whatever the test domain holds changes nothing.
    changed = [row if row[-1] != "2" else f"-1e6,z,{row[-3:]}" for row in rows]
    other = build(RunSpec.create(write_table(tmp_path, changed), "ERM", [2], **fields))
    assert other.dataset.encoding == encoding
    assert other.domains[2].x[:, 0].max() < -1e4


def test_what_is_missing(tmp_path):
    rows = ["1,a,0,x", ",a,1,x", "3,,0,y", "5,b,NA,y", "3,b,1,y", "NaN,?,1,x", "9,b,0,x", "2,a,0,y"]
    dataset = of(write_table(tmp_path, rows))
    assert dataset.notes == [
        "t.csv: 7 of 8 rows have a label and a domain; missing values: age (2), blood (2) (a "
        "number counts as the mean of those that train, and one more input says so; a category is "
        "one of its own)"
    ]
    dataset.encode([[0, 1, 2], []])  # ages 1, missing, missing; blood a, a, missing
    assert dataset.encoding == {
        "mean": [1.0],
        "scale": [0.0],
        "numbers": ["age"],
        "missing": [True],
        "categories": {"blood": ["", "a"]},
    }
    dataset.encode([[0, 1, 3], [0]])  # 1, missing, 9, 3; a, a, b, missing
    mean, deviation = 13 / 3, math.sqrt(np.var([1, 9, 3]))
    expected = [
        [(1 - mean) / deviation, 0, 0, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 0, 0],
        [(9 - mean) / deviation, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(dataset.datasets[0].x, expected, rtol=1e-6)
    kept = json.loads(json.dumps(dataset.encoding))
    # No input for what was never missing in training: its weights would not be trained.
    dataset.encode([[0, 3], []])
    assert dataset.datasets[0].x.tolist()[1] == [0, 1, 0]
    dataset.encode([[0, 3], []], kept)  # as an earlier session of the run had it
    np.testing.assert_allclose(dataset.datasets[0].x, expected, rtol=1e-6)


def test_equal_numbers_have_no_deviation_whatever_their_mean_is_rounded_to():
    encoding = learned(pd.DataFrame({"rate": np.full(50, 0.1)}))
    assert encoding["scale"] == [0.0]
    assert encoded(pd.DataFrame({"rate": [0.2]}), encoding).tolist() == [[0]]


def test_categories_alone_and_of_any_type():
    encoding = learned(pd.DataFrame({"smokes": ["True", "False"]}))
    for column in ([True, False, True], pd.Categorical(["True", "False", "True"])):
        rows = pd.DataFrame({"smokes": column})
        assert encoded(rows, encoding).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert encoded(pd.DataFrame({"smokes": pd.Categorical([None])}), encoding).tolist() == [[0, 0]]


def test_a_row_without_a_group_is_not_counted(tmp_path):
    rows = ["1,a,0,x", "2,,1,x", "3,a,1,x", "3,b,0,y", "5,b,1,y"]
    fields = DataFields(columns={**COLUMNS.columns, "group": "blood"})
    dataset = of(write_table(tmp_path, rows), fields)
    assert dataset.notes == [
        "t.csv: 4 of 5 rows have a label and a domain and a value of 'group'; missing values: none"
    ]


def test_arrays_are_standardised_by_channel_and_tokens_numbered(tmp_path):
    random = np.random.RandomState(0)
    rows = [list(range(10)), [3, 4, 5], []]
    for shape, channel in (((4,), 1), ((7, 3), 2), ((2, 8, 8), 1)):
        x = random.normal(5, 3, (30, *shape)).astype(np.float32)
        dataset = of(arrays(tmp_path, x=x), USUAL)
        dataset.encode(rows)
        trained = np.moveaxis(x[[*range(10), 13, 14, 15]], channel, -1)
        trained = trained.reshape(-1, x.shape[channel]).astype(float)
        np.testing.assert_allclose(dataset.encoding["mean"], trained.mean(0), rtol=1e-12)
        assert dataset.input_shape == shape
        z = np.moveaxis(dataset.datasets[2].x.numpy(), channel, -1)
        expected = (np.moveaxis(x[20:], channel, -1) - trained.mean(0)) / trained.std(0)
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-6)
    x = np.zeros((30, 4), np.uint8)
    x[:, :2], x[29, 2] = [7, 200], 8
    dataset = of(arrays(tmp_path, x=x), USUAL)
    dataset.encode(rows)
    assert dataset.encoding == {"tokens": [7, 200]}
    assert dataset.input_shape == {"vocabulary": 3, "length": 4}
    assert dataset.datasets[2].x[-1].tolist() == [1, 2, 0, 0]  # 8 is in no sample that trains


def test_labels_of_each_type(tmp_path):
    y = np.arange(30) % 3
    cases = [
        ({"y": np.array(["b", "a", "c"])[y]}, "classes", ["a", "b", "c"], [1, 0, 2]),
        ({"y": y + 4}, "classes", ["4", "5", "6"], [0, 1, 2]),
        ({"y": y + 0.5}, "regression", ["0"], [0.5, 1.5, 2.5]),
        ({"y": np.c_[y > 0, y > 1]}, "multilabel", ["0", "1"], [[0, 0], [1, 0], [1, 1]]),
        ({"y": np.c_[y, y + 1]}, "regression", ["0", "1"], [[0, 1], [1, 2], [2, 3]]),
    ]
    for content, kind, names, first in cases:
        dataset = of(arrays(tmp_path, **content), USUAL)
        assert (dataset.labels, dataset.class_names, dataset.y[:3].tolist()) == (kind, names, first)
    dataset = of(arrays(tmp_path, y=y), USUAL, "regression")  # a run's field decides
    assert dataset.y.dtype == torch.float32
    table = write_table(tmp_path, ["1,a,0,x", "2,a,1,y", "3,b,1,x", "4,b,1,y"])
    roles = {"label": ["age", "sick"], "domain": "site", "features": ["blood"]}
    dataset = of(table, DataFields(columns=roles))
    assert (dataset.labels, dataset.class_names) == ("regression", ["age", "sick"])
    assert dataset.y.tolist() == [[1, 0], [2, 1], [3, 1], [4, 1]]


def test_what_no_algorithm_of_images_can_do_is_refused_before_anything_runs(tmp_path):
    tokens = arrays(tmp_path, x=np.ones((30, 6), dtype=int))
    of_images = arrays(tmp_path / "i", x=np.zeros((30, 1, 16, 16)))
    for name in ("ARM", "MIRO", "MixStyle", "SAM+DSU+CORAL"):
        table = write_table(tmp_path, ["1,a,0,x", "2,b,1,y", "3,a,1,x"]), COLUMNS.columns
        for dataset, columns in (("Penguins", {}), table):
            with pytest.raises(UserError, match=r"needs images, and the inputs of .* are none"):
                RunSpec.create(dataset, name, [0], columns=columns)
        with pytest.raises(UserError, match=r"those of .* have no one shape"):
            RunSpec.create(tokens, name, [0])
        assert RunSpec.create(of_images, name, [0]).algorithm == name
    with pytest.raises(UserError, match=r"those of .* have no one shape"):
        RunSpec.create(tokens, "LISA", [0])
    assert RunSpec.create("Penguins", "LISA", [0]).algorithm == "LISA"


def test_roles_of_columns(tmp_path):
    rows = ["1;vogel;s;p;in;d", "2;cat;s;p;in;l", "3;bird;s;q;out;l"]
    rows += ["1;cat;t;r;val;d", "1;cat;t;r;train;d", "2;bird;t;u;in;l"]
    (tmp_path / "b.csv").write_text("\n".join(["x;y;place;who;set;skin", *rows]))
    roles = {"domain": "place", "group": "who", "split": "set", "label": "y"}
    fields = DataFields(columns=roles, classes={"bird": ["vogel"]})
    dataset = of(f"table:{tmp_path / 'b.csv'}", fields)
    assert dataset.class_names == ["bird", "cat"]
    assert dataset.out_splits == [[2], [0]]
    assert dataset.groups == [["p", "p", "q"], ["r", "r", "u"]]
    assert list(dataset.samples.x) == ["x", "skin"]


def test_what_cannot_be_read(tmp_path):
    good = ["1,a,0,x", "2,a,1,x", "3,b,0,y", "4,b,1,y"]
    for message, lines in {
        "'age' has numbers and also texts, such as '2,5'": [*good, '"2,5",a,1,x'],
        "domain 'y' lacks some of the classes 0, 1, 2: set missing_classes": ["1,a,2,x", *good],
        "expected samples of two domains or more": good[:2],
    }.items():
        with pytest.raises(UserError, match=message):
            of(write_table(tmp_path, lines))
    table = write_table(tmp_path, good)
    for columns, message in (
        ({"domain": "site"}, "0 columns 'label'"),
        ({**COLUMNS.columns, "features": ["hight"]}, "0 columns 'hight'"),
        ({**COLUMNS.columns, "split": "blood"}, "expected samples of two domains or more, and"),
    ):
        with pytest.raises(UserError, match=message):
            of(table, DataFields(columns=columns))
    leaking = {**COLUMNS.columns, "features": ["sick", "age", "site"]}
    assert list(of(table, DataFields(columns=leaking)).samples.x) == ["age"]
    lacking = write_table(tmp_path, ["1,a,2,x", *good], "lacking.csv")
    allowed = DataFields(columns=COLUMNS.columns, missing_classes="allow")
    assert of(lacking, allowed).num_classes == 3
    with pytest.raises(UserError, match="labels are 'regression', which are numbers"):
        of(table, DataFields(columns={"label": "blood", "domain": "site"}), "regression")
    (tmp_path / "no.npz").write_text("nothing")
    (tmp_path / "no.parquet").write_text("nothing")
    for name in ("arrays:{}/no.npz", "table:{}/no.parquet", "table:{}/gone.csv", "table:{}/"):
        with pytest.raises(UserError, match=r"dataset '.*' cannot be read"):
            of(name.format(tmp_path))
    nan = np.zeros((30, 4))
    nan[17, 2] = np.nan
    for content, message in (
        ({"x": nan}, "expected finite numbers"),
        ({"x": np.full((30, 4), -1)}, "tokens .* from 0 on"),
        ({"x": np.zeros(30)}, r"of the shape \(30,\)"),
        ({"domain": np.arange(29)}, "30 labels and 29 domains"),
    ):
        with pytest.raises(UserError, match=message):
            of(arrays(tmp_path, **content), USUAL)


def test_parquet_is_read_as_csv_is(tmp_path):
    frame = pd.DataFrame(
        {"age": [1.5, None, 3, 4], "blood": ["a", None, "b", "b"], "sick": [1, 0] * 2}
    ).assign(site=list("xxyy"))
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    ours, others = (of(f"table:{tmp_path}/t.{end}").samples for end in ("parquet", "csv"))
    pd.testing.assert_frame_equal(ours.x, others.x)
    np.testing.assert_array_equal(ours.y, others.y)


def test_penguins_are_the_published_ones():
    for name in ("Penguins", "PenguinsMass", "PenguinsSpecies"):
        dataset = DATASETS[name]("", [0], {})
        assert tuple(len(domain) for domain in dataset.datasets) == dataset.info.images
        assert tuple(sorted(set(dataset.samples.roles.domain))) == dataset.ENVIRONMENTS
    assert dataset.class_names == ["Adelie", "Chinstrap", "Gentoo"]
    counts = [domain.y.bincount(minlength=3).tolist() for domain in dataset.datasets]
    assert counts == [[44, 0, 124], [56, 68, 0], [52, 0, 0]]
    mass = torch.cat([domain.y for domain in DATASETS["PenguinsMass"]("", [0], {}).datasets])
    assert mass.mean().item() == pytest.approx(4.201754, abs=1e-6)  # in the package's own summary
