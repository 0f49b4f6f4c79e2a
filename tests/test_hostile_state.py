"""A run of any algorithm that goes on from a file equals one that was never interrupted."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from helpers import assert_same_tensors, random_minibatches, resumed, through_a_file
from hostile_algorithms import (
    HOSTILE,
    REFUSED,
    Base,
    CallableHelper,
    Constants,
    LazyModule,
    RandomSources,
    Recreated,
)

from domainbed.errors import UserError
from domainbed.training.restoring import restore
from domainbed.training.state import capture, unseen

SIZES, SHAPE = (4, 3), (6,)


def fresh(cls, seed=0):
    torch.manual_seed(seed)
    return cls(SHAPE, 3, 2, {"lr": 0.1})


def updates(algorithm, steps):
    return [algorithm.update(random_minibatches(SIZES, step, SHAPE)) for step in steps]


@pytest.mark.parametrize("done", [1, 2, 4])
@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_resumes_bit_for_bit(cls, done):
    original = fresh(cls)
    updates(original, range(done))
    copy = resumed(original, fresh(cls, seed=0))
    expected = updates(original, range(done, done + 4))
    assert updates(copy, range(done, done + 4)) == expected
    assert_same_tensors(copy, original)


@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_state_matters(cls):
    """Without it the next updates would differ: the test above can fail."""
    original, forgetful = fresh(cls), fresh(cls)
    updates(original, range(3))
    forgetful.load_state_dict(original.state_dict(), strict=False)
    assert updates(forgetful, range(3, 7)) != updates(original, range(3, 7))


@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_restoring_twice(cls):
    """A file is read into an instance that has gone on in the meantime."""
    original = fresh(cls)
    updates(original, range(3))
    copy = resumed(original, fresh(cls))
    updates(copy, range(3))
    again = resumed(original, copy)
    assert updates(again, range(3, 6)) == updates(original, range(3, 6))


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_cannot_be_brought_back_is_refused_by_name(cls):
    original = fresh(cls)
    updates(original, range(2))
    message = f"algorithm's {cls.where!r} (", "; remove its checkpoint.pt to start it again"
    with pytest.raises(UserError, match=".*".join(map(re.escape, message))) as caught:
        restore(fresh(cls), capture(original))
    assert "\n" not in str(caught.value)


def test_unseen_state_is_known_before_the_first_update():
    found = {cls.__name__: unseen(fresh(cls)) for cls in REFUSED}
    assert found["Slots"] == ["counter (hostile_algorithms:Slots.Counter)"]
    assert found["Iterating"] == ["numbers[0] (itertools:count)"]
    assert found["Generating"] == ["helper.numbers (builtins:generator)"]
    assert found["OwnList"] == ["window['last'] (hostile_algorithms:OwnList.Window)"]
    assert len(found["OwnTuple"]) == 1
    assert not any(unseen(fresh(cls)) for cls in HOSTILE if cls is not Constants)
    names = [text.partition(" ")[0] for text in unseen(fresh(Constants))]
    assert names == ["setting", "pair", "fixed"]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module on the import path that leaves a mark where it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nimport torch\n"
        f"Path({str(mark)!r}).write_text('imported')\n"
        "class Module(torch.nn.Module): ...\nclass Adam(torch.optim.Adam): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    assert not mark.exists()
    assert "planted" not in sys.modules


def saved(cls, steps):
    original = fresh(cls)
    updates(original, range(steps))
    return through_a_file(capture(original))


NAMES = ["os:system", "torch.nn.modules.module:os", "torch.nn:Nothing", "builtins:type", ":", "a"]


@pytest.mark.parametrize("name", ["planted:Module", *NAMES, "torch.optim.adam:Adam"])
def test_a_checkpoint_imports_no_module(name, planted):
    state = saved(LazyModule, 3)
    state["modules"]["teacher"]["class"] = name
    with pytest.raises(UserError, match=re.escape(f"'teacher' ({name}) is of a class that")):
        restore(fresh(LazyModule), state)


@pytest.mark.parametrize("name", ["planted:Adam", *NAMES, "torch.nn.modules.linear:Linear"])
def test_a_checkpoint_imports_no_optimizer(name, planted):
    state = saved(Recreated, 3)
    state["attributes"][""]["optimizer"]["class"] = name
    with pytest.raises(UserError, match=re.escape(f"'optimizer' ({name}) is of a class that")):
        restore(fresh(Recreated), state)


@pytest.mark.parametrize("name", ["seterr", "Generator", "RandomState", "os"])
def test_a_checkpoint_names_no_other_part_of_numpy(name):
    state = saved(RandomSources, 1)
    encoded = state["attributes"][""]["modern"]["value"]
    encoded["items"][encoded["keys"].index("bit_generator")]["value"] = name
    with pytest.raises(UserError, match=rf"'modern' \({name}\) is no bit generator of NumPy"):
        restore(fresh(RandomSources), state)


def test_classes_that_the_algorithm_knows():
    """Its own module's, one inside another, and those of networks that it has."""

    class Lazy(LazyModule): ...

    for teacher in (Inner.Teacher(5, 5), fresh(Base).network):
        original = fresh(Lazy)
        original.teacher = teacher
        copy = resumed(original, fresh(Lazy))
        assert type(copy.teacher) is type(teacher)
        assert_same_tensors(copy, original)


class Inner:
    class Teacher(torch.nn.Linear): ...


def test_a_script_goes_on_in_a_worker(monkeypatch):
    """Which sees the classes of its parent's script under another module's name."""
    monkeypatch.setattr(CallableHelper.Average, "__module__", "__main__")
    original = fresh(CallableHelper)
    updates(original, range(2))
    state = through_a_file(capture(original))
    monkeypatch.setattr(CallableHelper.Average, "__module__", "__mp_main__")
    copy = fresh(CallableHelper)
    restore(copy, state)
    assert copy.average.value == original.average.value != 1.0
