"""Plug-ins: imported by name or path, known by the digest of what was imported."""

from __future__ import annotations

import hashlib
import sys

import pytest

from domainbed.core import plugins
from domainbed.core.plugins import changed, import_plugins, located, named, plugins_of
from domainbed.core.registry import Registry
from domainbed.errors import UserError

SHAPES: Registry = Registry("shape")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(SHAPES, "_entries", {})
    monkeypatch.setattr(SHAPES, "_modules", {})
    monkeypatch.setattr(plugins, "_imported", {})


def write(file, size: int, name: str = "Circle") -> str:
    file.write_text(
        f"import {__name__} as shapes\n@shapes.SHAPES.register\nclass {name}:\n    size = {size}\n"
    )
    return str(file)


def test_a_file_is_known_by_its_name_and_content(tmp_path):
    file = write(tmp_path / "circles.py", 1)
    import_plugins([file])
    digest = f"sha256:{hashlib.sha256((tmp_path / 'circles.py').read_bytes()).hexdigest()}"
    circle = SHAPES["Circle"]
    assert named([file]) == {"circles.py": digest}
    assert plugins_of([circle]) == plugins_of([circle()]) == {"circles.py": digest}
    holder = type("Holder", (), {})()
    holder.part = circle()
    assert plugins_of([holder]) == {"circles.py": digest}
    assert plugins_of([int, type("Sub", (circle,), {})]) == {"circles.py": digest}
    assert plugins_of([int, Registry, print]) == {}


def test_what_was_imported_counts_until_it_is_imported_again(tmp_path):
    file = write(tmp_path / "circles.py", 1)
    import_plugins([file])
    before = named([file])
    write(tmp_path / "circles.py", 2)
    assert named([file]) == before
    assert changed(before.items()) == []
    import_plugins([file])
    assert SHAPES["Circle"].size == 2
    assert changed(before.items()) == ["circles.py"]
    assert changed([("gone.py", "sha256:0"), ("no_such_package", "sha256:0")]) == [
        "gone.py",
        "no_such_package",
    ]


def test_a_module_is_known_by_all_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "round_things"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("SIZE = 1\n")
    write(package / "shapes.py", 1, "Disc")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_plugins(["round_things.shapes"])
    before = named(["round_things.shapes"])
    assert list(before) == ["round_things"]
    assert plugins_of([SHAPES["Disc"]]) == before
    monkeypatch.setattr(plugins, "_imported", {})  # as another process sees it
    assert changed(before.items()) == []
    (package / "helper.py").write_text("SIZE = 2\n")
    assert changed(before.items()) == ["round_things"]
    for name in ("round_things.shapes", "round_things"):
        del sys.modules[name]


def test_two_plugins_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    first = write(tmp_path / "circles.py", 1)
    second = write(tmp_path / "other" / "circles.py", 2, "Ring")
    with pytest.raises(UserError, match=r"circles.py' are files of the same name: rename one"):
        import_plugins([first, second])
    third = write(tmp_path / "more.py", 3)
    said = r"more.py' cannot be imported \(ValueError: shape 'Circle' is registered already, by .*"
    with pytest.raises(UserError, match=said + r"circles.Circle: choose another name"):
        import_plugins([first, third])


def test_files_beside_a_plugin_are_not_searched(tmp_path):
    (tmp_path / "beside.py").touch()
    (tmp_path / "shapes.py").write_text("import beside")
    with pytest.raises(UserError, match=r"'beside'\): files beside a plug-in are not searched"):
        import_plugins([str(tmp_path / "shapes.py")])


def test_an_object_belongs_to_who_defines_its_functions(tmp_path):
    """As a selection method does, whose class is this package's."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            f"import types\nimport {__name__} as shapes\ndef area(): ...\n"
            "shapes.SHAPES.register(types.SimpleNamespace(area=area), name='square')\n"
        )
    one, two = str(tmp_path / "one.py"), str(tmp_path / "two.py")
    import_plugins([one])
    assert plugins_of([SHAPES["square"]]) == named([one])
    with pytest.raises(UserError, match=r"by domainbed_plugin_one.area: choose another name"):
        import_plugins([two])


def test_paths_start_at_a_folder(tmp_path):
    found = located(["a.py", "/b/c.py", "a_module"], tmp_path)
    assert found == [str(tmp_path / "a.py"), "/b/c.py", "a_module"]
    assert located("a.py", tmp_path) == [str(tmp_path / "a.py")]
    assert located(3, tmp_path) == 3
    assert located(["a.py", 3], tmp_path) == ["a.py", 3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("import a_package_that_nobody_has", "No module named 'a_package_that_nobody_has'"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("1 +", "SyntaxError: invalid syntax"),
    ],
)
def test_a_broken_plugin_is_one_line(content, says, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        import_plugins([str(file)])
    assert str(caught.value).endswith("repair it")
    assert "domainbed_plugin_broken" not in sys.modules
