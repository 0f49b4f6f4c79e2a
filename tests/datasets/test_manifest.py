"""Manifests: what they say, what they are refused for, and a training on one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.cli import main as command
from domainbed.datasets import get_dataset_class, load_dataset
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import build

HEADER = "path,label,domain"


def write_images(root, domains=("a", "b"), classes=("cat", "dog"), per_class=4):
    """Random images as `<domain>/<class>/<i>.png`; returns (path, label, domain, i) of each."""
    random = np.random.RandomState(0)
    rows = []
    for domain in domains:
        for name in classes:
            (root / domain / name).mkdir(parents=True)
            for i in range(per_class):
                path = f"{domain}/{name}/{i}.png"
                pixels = random.randint(0, 256, (8, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / path)
                rows.append((path, name, domain, i))
    return rows


@pytest.fixture
def pets(tmp_path):
    """Images, and three manifests of them: plain, as JSON Lines, and with splits."""
    rows = write_images(tmp_path / "pets")
    np.random.RandomState(1).shuffle(rows)
    (tmp_path / "pets.csv").write_text(
        "\n".join(["domain,label,extra,path", *(f"{d},{c},x,pets/{p}" for p, c, d, _ in rows)])
    )
    lines = [json.dumps({"path": f"pets/{p}", "label": c, "domain": d}) for p, c, d, _ in rows]
    (tmp_path / "lines.jsonl").write_text("\n\n".join(lines) + "\n")
    splits = ("train", "out", "val", "in")
    (tmp_path / "fixed.csv").write_text(
        "\n".join([HEADER + ",split", *(f"pets/{p},{c},{d},{splits[i]}" for p, c, d, i in rows)])
    )
    return tmp_path


def written(tmp_path, *lines, name="bad.csv"):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ["pets.csv", "lines.jsonl", "fixed.csv"])
def test_a_manifest_of_a_folder_is_that_folder(name, pets):
    """Same domains, classes, files in the same order, and images, however lines are ordered."""
    folder = get_dataset_class(f"folder:{pets / 'pets'}")("", [0], {})
    cls = get_dataset_class(f"manifest:{pets / name}")
    dataset = cls("", [0], {})
    assert cls.ENVIRONMENTS == ("a", "b")
    assert (cls.N_STEPS, cls.CHECKPOINT_FREQ, cls.small_images) == (5001, 300, False)
    assert (dataset.classes, dataset.num_classes) == (["cat", "dog"], 2)
    assert (dataset.input_shape, dataset.domain_names) == ((3, 224, 224), ["a", "b"])
    for domain, reference in zip(dataset, folder, strict=True):
        assert [f.resolve() for f in domain.files] == reference.files
        assert domain.targets == reference.targets == [0] * 4 + [1] * 4
        assert torch.equal(domain[5][0], reference[5][0])


def test_names(pets, monkeypatch):
    monkeypatch.chdir(pets)
    for name in ("pets.csv", "manifest:pets.csv", f"manifest:{pets}/pets.csv"):
        spec = RunSpec.create(name, "ERM", [1])
        assert spec.dataset_label == spec.identity()["dataset"] == "pets"
        assert str(pets) not in json.dumps(spec.identity())
        assert spec.run_id == RunSpec.create("pets.csv", "ERM", [1]).run_id
    upper = pets / "PETS.CSV"
    upper.write_text((pets / "pets.csv").read_text())
    assert RunSpec.create("PETS.CSV", "ERM", [1]).dataset_label == "PETS"
    with pytest.raises(UserError, match="domains of pets between 0 and 1"):
        RunSpec.create("pets.csv", "ERM", [2])


def test_absolute_paths_and_changed_files(pets):
    rows = [f"{pets}/pets/{d}/cat/{i}.png,cat,{d}" for d in "ab" for i in (0, 1)]
    file = written(pets, HEADER, *rows)
    assert [len(domain) for domain in get_dataset_class(file)("", [0], {})] == [2, 2]
    file = written(pets, HEADER, *rows, f"{pets}/pets/b/cat/3.png,cat,b")
    dataset = get_dataset_class(file)("", [0], {})
    assert [domain.files[-1].name for domain in dataset] == ["1.png", "3.png"]


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["NA", "null", "b"], ["NA", "b", "null"]),
    ],
)
def test_order_of_labels(labels, ordered, tmp_path):
    rows = [f"{domain}/{label}.png,{label},{domain}" for label in labels for domain in ("2", "10")]
    cls = get_dataset_class(written(tmp_path, HEADER, *rows))
    assert cls.listed.classes == ordered
    assert cls.ENVIRONMENTS == ("10", "2")


def test_numbers_in_json_lines(tmp_path):
    rows = [{"path": f"{c}/{d}", "label": c, "domain": d} for c in (2, 10) for d in (1, 0)]
    cls = get_dataset_class(written(tmp_path, *map(json.dumps, rows), name="n.jsonl"))
    assert (cls.listed.classes, cls.ENVIRONMENTS) == (["2", "10"], ("0", "1"))


def test_byte_order_mark_blank_lines_and_quotes(tmp_path):
    text = f'\ufeff{HEADER}\r\n\r\n"a, b.png", cat ,x\r\n"c.png",cat,y\r\n\r\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8", newline="")
    cls = get_dataset_class(str(tmp_path / "m.csv"))
    images = [tmp_path / "a, b.png", tmp_path / "c.png"]
    assert list(cls.listed.images) == [[(image, 0)] for image in images]
    assert cls.listed.classes == ["cat"]
    assert cls.lines == dict(zip(images, (3, 4)))


GOOD = ("x.png,cat,a", "y.png,cat,b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,class,domain", *GOOD), "line 1: 0 columns 'label' in 'path, class, domain'"),
        (("path;label;domain", "x.png;cat;a"), "line 2: all images are of the domain 'a'"),
        (("path\tlabel\tdomain", "x.png\tcat;a"), "line 2: 'domain' is missing"),
        ((), "bad.csv lists no images: expected path, label and domain"),
        ((HEADER,), "bad.csv lists no images"),
        ((HEADER, GOOD[0]), "line 2: all images are of the domain 'a'"),
        ((HEADER, *GOOD, "z.png,,b"), "line 4: 'label' is missing"),
        ((HEADER, *GOOD, "z.png,cat"), "line 4: 'domain' is missing"),
        ((HEADER, *GOOD, "z,1.png,cat,b"), "line 4: more values than columns"),
        ((HEADER, *GOOD, '"z.png'), "line 4: not valid CSV"),
        ((f'"{HEADER}', *GOOD), "line 3: not valid CSV"),
        ((HEADER, *GOOD, "./x.png,cat,b"), "line 4: './x.png' is already listed in line 2"),
        ((HEADER, *GOOD, "z.png,dog,b"), "line 4: the domain 'b' has the label 'dog', but 'a' lac"),
        (
            (HEADER, *GOOD),
            "x.png' (2 of 2 images are missing): give path",
        ),
        ((HEADER + ",split", "x,c,a,in", "y,c,b,test"), "line 3: 'split' is 'test': expected one"),
        (
            (HEADER + ",split", "x,c,a,in", "w,c,a,out", "y,c,b,"),
            "line 4: in the domain 'b' 'split' is ''",
        ),
        (
            (HEADER + ",split", "x,c,a,in", "y,c,b,val"),
            "line 2: in the domain 'a' 'split' is 'in': expected images to train",
        ),
    ],
)
def test_bad_csv(lines, message, tmp_path):
    with pytest.raises(UserError) as caught:
        get_dataset_class(written(tmp_path, *lines))("", [0], {})
    assert message in str(caught.value)
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("{", "{}"), "line 1: not valid JSON"),
        (
            ('{"path": "x", "label": 1, "label": 2, "domain": "a"}',),
            "line 1: not valid JSON (a key",
        ),
        (("", "[1]"), "line 2: not a JSON object: write one object a line"),
        (('{"path": "x", "label": 1}',), "line 1: 0 columns 'domain' in 'path, label'"),
        (('{"path": "x", "label": [1], "domain": "a"}',), "line 1: 'label' is [1]: expected text"),
        (('{"path": "x", "label": true, "domain": "a"}',), "line 1: 'label' is True"),
    ],
)
def test_bad_json_lines(lines, message, tmp_path):
    with pytest.raises(UserError) as caught:
        get_dataset_class(written(tmp_path, *lines, name="bad.jsonl"))
    assert message in str(caught.value)


def test_files_that_are_no_manifests(tmp_path):
    with pytest.raises(UserError, match=r"manifest '.*none.csv' cannot be read .*: check the path"):
        get_dataset_class(str(tmp_path / "none.csv"))
    for content in (b"path,label,domain\n\x81.png,cat,a\n", "path,label".encode("utf-16-le")):
        (tmp_path / "bytes.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"bytes.csv is neither UTF-8 nor marked UTF-16"):
            get_dataset_class(str(tmp_path / "bytes.csv"))
    with pytest.raises(UserError, match=r"expected a file ending in .csv, .tsv, .jsonl"):
        get_dataset_class(f"manifest:{written(tmp_path, HEADER, name='m.txt')}")


def test_one_missing_file_is_named_by_its_line(pets):
    (pets / "pets" / "b" / "cat" / "2.png").unlink()
    lines = (pets / "pets.csv").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if "b/cat/2.png" in line)
    message = rf"line {number}: no file '.*pets/b/cat/2.png' \(1 of 16 images are missing\)"
    with pytest.raises(UserError, match=message):
        load_dataset(str(pets / "pets.csv"), "", [0], {}, 0)


SMALL = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "batch_size": 2}


def small_run(pets, name, **changes):
    fields = {"steps": 2, "checkpoint_freq": 2, "hparams": SMALL, **changes}
    return RunSpec.create(str(pets / name), "ERM", [1], **fields)


@pytest.mark.parametrize("trial_seed", [0, 1])
def test_fixed_splits_reach_the_experiment(trial_seed, pets):
    spec = small_run(pets, "fixed.csv", trial_seed=trial_seed, holdout_fraction=0.9)
    experiment = build(spec)
    for split, domain in zip(experiment.splits, experiment.dataset, strict=True):
        assert [domain.files[i].stem for i in split.out] == ["1", "2"] * 2
        assert [domain.files[i].stem for i in split.inside] == ["0", "3"] * 2


def test_fixed_splits_leave_images_for_adaptation(pets):
    task = {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    train, test = build(small_run(pets, "fixed.csv", **task)).splits
    assert (len(train.out), len(train.inside), len(train.unlabeled)) == (4, 4, 0)
    assert (len(test.out), len(test.inside), len(test.unlabeled)) == (4, 2, 2)
    assert not set(test.out) & {*test.inside, *test.unlabeled}


def test_images_are_those_of_the_folder(pets):
    listed, folder = (
        load_dataset(name, "", [1], {}, 0) for name in (f"{pets}/pets.csv", f"folder:{pets}/pets")
    )
    assert listed.ENVIRONMENTS == folder.ENVIRONMENTS == ("a", "b")
    for ours, theirs in zip(listed, folder, strict=True):
        assert (ours.files, ours.targets) == (theirs.files, theirs.targets)


def execute(*arguments):
    """A command as it is typed; it must end well."""
    with pytest.raises(SystemExit) as ended:
        command([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_list_hparams(pets, capsys):
    execute("list", "hparams", "ERM", f"manifest:{pets}/pets.csv")
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "5e-05" in rows["lr"]  # that of natural images
    assert "vit" not in rows["backbone"]


def test_sweep_and_collect(pets, tmp_path, capsys):
    config = {
        "datasets": [f"manifest:{pets}/fixed.csv"],
        "algorithms": ["ERM"],
        "selection": ["training-domain"],
        "trials": 1,
        "hparams_seeds": 1,
        "steps": 1,
        "hparams": SMALL,
        "num_workers": 0,
        "device": "cpu",
        "launcher": "debug",
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(config))
    execute("sweep", "launch", tmp_path / "sweep.yaml", "--skip_confirmation")
    for records in (tmp_path / "out").glob("*/results.jsonl"):
        kept = json.loads(records.read_text().splitlines()[-1])["args"]
        assert (kept["dataset"], kept["environments"]) == ("fixed", ["a", "b"])
    execute("collect", tmp_path / "out")
    table = capsys.readouterr().out
    assert "fixed" in table
    assert "X" not in [cell for line in table.splitlines() for cell in line.split()]


def test_one_file_is_not_listed_twice_by_any_spelling(pets):
    (pets / "pets/a/cat/link.png").symlink_to(pets / "pets/b/dog/0.png")
    (pets / "same").symlink_to(pets / "pets")
    spellings = ("pets/a/cat/link.png", str(pets / "pets/b/dog/0.png"), "same/b/dog/0.png")
    lines = (pets / "pets.csv").read_text().splitlines()
    for spelling in spellings:
        name = written(pets, *lines, f"a,cat,x,{spelling}", name="twice.csv")
        with pytest.raises(UserError, match=r"line 18: .*list each image once"):
            load_dataset(name, "data", [0], {}, 0)


def test_labels_in_two_unicode_forms_are_one_class(pets):
    text = (pets / "pets.csv").read_text()
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    lines = [
        line.replace("cat", composed if line.startswith("a") else decomposed, 1)
        for line in text.splitlines()
    ]
    dataset = load_dataset(written(pets, *lines), "data", [0], {}, 0)
    assert dataset.classes == [composed, "dog"]
    assert [len(domain) for domain in dataset] == [8, 8]
