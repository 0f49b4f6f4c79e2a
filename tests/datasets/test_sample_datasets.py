"""Tables and arrays: what is learned from the samples that train, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from domainbed.config.run_fields import DataFields
from domainbed.datasets import DATASETS, get_dataset_class
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training.experiment import build

COLUMNS = DataFields(columns={"label": "sick", "domain": "site"})


def write_table(folder, rows, name="t.csv"):
    file = folder / name
    file.write_text("\n".join(["age,blood,sick,site", *rows]) + "\n")
    return f"table:{file}"


def of(name, options=COLUMNS, labels=""):
    return get_dataset_class(name, options)("", [0], {}, **({"labels": labels} if labels else {}))


def test_numbers_and_categories_are_learned_from_the_training_in_splits_alone(tmp_path):
    random = np.random.RandomState(0)
    rows = [
        f"{random.normal(50 + 30 * site, 9):.2f},{'abc'[i % (2 + (site == 2))]},{i % 2},{site}"
        for site in range(3)
        for i in range(40)
    ]
    name = write_table(tmp_path, rows)
    fields = {"columns": COLUMNS.columns, "steps": 2}
    built = build(RunSpec.create(name, "ERM", [2], **fields))
    numbers = np.array([float(row.split(",")[0]) for row in rows]).reshape(3, 40)
    trained = np.concatenate([numbers[e][built.splits[e].inside] for e in (0, 1)])
    assert len(trained) == 64
    age, blood = built.dataset.encoding
    assert age["mean"] == pytest.approx(trained.mean(), abs=1e-12)
    assert age["deviation"] == pytest.approx(trained.std(), abs=1e-12)
    assert abs(age["mean"] - numbers[:2].mean()) > 0.05  # with the out-splits
    assert abs(age["mean"] - numbers.mean()) > 5  # with the test domain
    assert blood["categories"] == ["a", "b"]
    x = built.domains[2].x
    assert x.shape == (40, 3)
    expected = (numbers[2] - trained.mean()) / trained.std()
    np.testing.assert_allclose(x[:, 0], expected, rtol=1e-6)
    assert x[2].tolist()[1:] == [0, 0]  # c, which no sample that trains has
    inside = torch.cat([built.domains[e].x[built.splits[e].inside, 0] for e in (0, 1)])
    assert inside.mean().item() == pytest.approx(0, abs=1e-6)
    assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    # What the test domain holds changes nothing.
    changed = [row if row[-1] != "2" else f"-1e6,z,{row[-3:]}" for row in rows]
    other = build(RunSpec.create(write_table(tmp_path, changed), "ERM", [2], **fields))
    assert other.dataset.encoding == built.dataset.encoding
    assert "no sample that trains has blood z: all inputs" in other.dataset.notes[-1]


def test_what_is_missing(tmp_path):
    cells = [
        "1,a,0,x",
        ",a,1,x",
        "3,,0,y",
        "5,b,NA,y",
        "3,b,1,y",
        "NaN,?,1,x",
        "9,b,0,x",
        "2,a,0,y",
    ]
    dataset = of(write_table(tmp_path, cells))
    assert dataset.notes == [
        "t.csv: 7 samples; 1 rows without a label are left out; missing values: age (2), blood (2);"
        " a missing number counts as the mean of those that train, and one more input says so; a "
        "missing category is one of its own"
    ]
    encoding = dataset.learned_encoding([[0, 1, 2], []])  # ages 1, missing, missing; blood a, a, ""
    assert encoding == [
        {"column": "age", "mean": 1.0, "deviation": 0.0, "indicator": True},
        {"column": "blood", "categories": ["", "a"]},
    ]
    encoding = dataset.learned_encoding([[0, 1, 3], [0]])  # 1, missing, 9, 3; a, a, b, ""
    mean, deviation = 13 / 3, math.sqrt(np.var([1, 9, 3]))
    x = dataset.encoded(json.loads(json.dumps(encoding))).datasets[0].x
    expected = [
        [(1 - mean) / deviation, 0, 0, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 0, 0],
        [(9 - mean) / deviation, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    # No indicator where nothing was missing in training: its weights would never be trained.
    only = dataset.encoded(dataset.learned_encoding([[0, 3], []])).datasets[0].x
    assert only.tolist()[1] == [0, 1, 0]


def arrays(folder, n=30, **content):
    usual = {"x": np.zeros((n, 4)), "y": np.arange(n) % 2, "domain": np.arange(n) // (n // 3)}
    file = folder / "a.npz"
    np.savez(file, **{**usual, **content})
    return f"arrays:{file}"


def test_arrays_are_standardised_by_channel_and_tokens_numbered(tmp_path):
    random = np.random.RandomState(0)
    rows = [list(range(10)), [3, 4, 5], []]
    for shape, channel in (((4,), 1), ((7, 3), 2), ((2, 8, 8), 1)):
        x = random.normal(5, 3, (30, *shape)).astype(np.float32)
        dataset = of(arrays(tmp_path, x=x), DataFields())
        encoding = json.loads(json.dumps(dataset.learned_encoding(rows)))
        trained = np.moveaxis(x[[*range(10), 13, 14, 15]], channel, -1).reshape(
            -1, x.shape[channel]
        )
        np.testing.assert_allclose(encoding["mean"], trained.mean(0, np.float64), rtol=1e-12)
        found = dataset.encoded(encoding)
        assert found.input_shape == shape
        z = np.moveaxis(found.datasets[2].x.numpy(), channel, -1)
        expected = (np.moveaxis(x[20:], channel, -1) - trained.mean(0)) / trained.std(0)
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-6)
    x = np.zeros((30, 4), np.uint8)
    x[:, :2], x[29, 2] = [7, 200], 8
    dataset = of(arrays(tmp_path, x=x), DataFields())
    found = dataset.encoded(dataset.learned_encoding(rows))
    assert found.encoding == {"tokens": [7, 200]}
    assert found.input_shape == {"vocabulary": 3, "length": 4}
    assert found.datasets[2].x[-1].tolist() == [1, 2, 0, 0]  # 8 is in no sample that trains


def test_labels_of_each_type(tmp_path):
    y = np.arange(30) % 3
    cases = [
        ({"y": np.array(["b", "a", "c"])[y]}, "classes", ["a", "b", "c"], [1, 0, 2]),
        ({"y": y + 4}, "classes", ["4", "5", "6"], [0, 1, 2]),
        ({"y": y + 0.5}, "regression", ["0"], [0.5, 1.5, 2.5]),
        (
            {"y": np.stack([y > 0, y > 1], axis=1)},
            "multilabel",
            ["0", "1"],
            [[0, 0], [1, 0], [1, 1]],
        ),
        ({"y": np.stack([y, y + 1], axis=1)}, "regression", ["0", "1"], [[0, 1], [1, 2], [2, 3]]),
    ]
    for content, kind, names, first in cases:
        dataset = of(arrays(tmp_path, **content), DataFields())
        assert (dataset.labels, dataset.class_names, dataset.y[:3].tolist()) == (kind, names, first)
    dataset = of(arrays(tmp_path, y=y), DataFields(), "regression")  # a run's field decides
    assert dataset.y.dtype == torch.float32
    table = write_table(tmp_path, ["1,a,0,x", "2,a,1,y", "3,b,1,x", "4,b,1,y"])
    several = DataFields(
        columns={"label": ["age", "sick"], "domain": "site", "features": ["blood"]}
    )
    assert of(table, several).class_names == ["age", "sick"]
    assert of(table, several).y.tolist() == [[1, 0], [2, 1], [3, 1], [4, 1]]


def test_roles_of_columns(tmp_path):
    (tmp_path / "b.csv").write_text(
        "x;y;place;who;set;skin\n1,5;vogel;s;p;in;d\n".replace(",", ".")
        + "2;cat;s;p;in;l\n3;bird;s;q;out;l\n1;cat;t;r;val;d\n1;cat;t;r;train;d\n2;bird;t;u;in;l\n"
    )
    roles = {"domain": "place", "group": "who", "split": "set", "attribute": "skin", "label": "y"}
    options = DataFields(columns=roles, classes={"bird": ["vogel"]})
    dataset = of(f"table:{tmp_path / 'b.csv'}", options)
    assert dataset.class_names == ["bird", "cat"]
    assert dataset.out_splits == [[2], [0]]
    assert dataset.groups == [["p", "p", "q"], ["r", "r", "u"]]
    assert (dataset.attribute_names, dataset.attributes) == (["d", "l"], [[0, 1, 1], [0, 0, 1]])
    assert list(dataset.samples.x) == ["x"]


def test_what_cannot_be_read(tmp_path):
    good = ["1,a,0,x", "2,a,1,x", "3,b,0,y", "4,b,1,y"]
    rows = {
        r"line 3: 'age' is '2,5', and most others are numbers": ['"2,5",a,1,x', *good[2:], good[0]],
        r"line 6: 'site' is missing": [*good, "1,a,0,"],
        r"the domain 'y' lacks the classes 2: all domains must have all, unless": [
            "1,a,2,x",
            *good,
        ],
        r"domains are \['x'\]: expected two or more": good[:2],
    }
    for message, lines in rows.items():
        lines = lines if "2,5" not in message else [good[0], *lines]
        with pytest.raises(UserError, match=message):
            of(write_table(tmp_path, lines))
    table = write_table(tmp_path, good)
    for columns, message in (
        ({"domain": "site"}, "has no column 'label' for label"),
        (
            {"label": "sick", "domain": "site", "features": ["sick"]},
            "no column 'sick' for features",
        ),
    ):
        with pytest.raises(UserError, match=message):
            of(table, DataFields(columns=columns))
    assert of(table, DataFields(**{**dict(COLUMNS), "missing_classes": "allow"})).num_classes == 2
    with pytest.raises(
        UserError, match="labels of the type 'regression' are numbers, and there are"
    ):
        of(table, DataFields(columns={"label": "blood", "domain": "site"}), "regression")
    with pytest.raises(UserError, match=r"dataset '.*gone.csv' cannot be read"):
        of(f"table:{tmp_path}/gone.csv")
    (tmp_path / "no.npz").write_text("nothing")
    (tmp_path / "no.parquet").write_text("nothing")
    for kind, end in (("arrays", "npz"), ("table", "parquet")):
        with pytest.raises(UserError, match=rf"no\.{end} is no "):
            of(f"{kind}:{tmp_path}/no.{end}", DataFields())
    nan = np.zeros((30, 4))
    nan[17, 2] = np.nan
    for content, message in (
        ({"x": nan}, "no finite numbers in sample 17"),
        ({"x": np.full((30, 4), -1)}, "tokens below 0"),
        ({"x": np.zeros((30, 9, 9, 3))}, "expected images"),
        ({"x": np.zeros(30)}, "expected numbers"),
        ({"domain": np.arange(29)}, r"'domain' has the shape \(29,\)"),
    ):
        with pytest.raises(UserError, match=message):
            of(arrays(tmp_path, **content), DataFields())


def test_parquet_is_read_as_csv_is(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"age": [1.5, None, 3, 4], "blood": ["a", None, "b", "b"], "sick": [True, False] * 2}
    ).assign(site=list("xxyy"))
    frame.to_parquet(tmp_path / "t.parquet")
    frame.assign(sick=frame.sick.astype(int)).to_csv(tmp_path / "t.csv", index=False)
    ours, others = (of(f"table:{tmp_path}/t.{end}").samples for end in ("parquet", "csv"))
    for name in ("age", "blood"):
        np.testing.assert_array_equal(ours.x[name], others.x[name])
    np.testing.assert_array_equal(ours.y, others.y)


def test_penguins_are_the_published_ones():
    found = {}
    for name in ("Penguins", "PenguinsMass", "PenguinsSpecies"):
        dataset = DATASETS[name]("", [0], {})
        found[name] = [len(domain) for domain in dataset.datasets]
        assert tuple(found[name]) == dataset.info.images
        assert tuple(dataset.samples.domains) == dataset.ENVIRONMENTS
    assert found["PenguinsSpecies"] == [168, 124, 52]
    assert dataset.class_names == ["Adelie", "Chinstrap", "Gentoo"]
    counts = [domain.y.bincount(minlength=3).tolist() for domain in dataset.datasets]
    assert counts == [[44, 0, 124], [56, 68, 0], [52, 0, 0]]
    mass = torch.cat([domain.y for domain in DATASETS["PenguinsMass"]("", [0], {}).datasets])
    assert mass.mean().item() == pytest.approx(4.201754, abs=1e-6)  # of the package's own summary
