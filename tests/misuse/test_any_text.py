"""Files with anything in them: they are read, or refused as bad input, and nothing else happens."""

from __future__ import annotations

import contextlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbed.core.settings import make
from domainbed.errors import UserError
from domainbed.reporting import build_report, load_records
from domainbed.runs.folder import RunFolder
from domainbed.sweeps.config import SweepConfig, load_config
from domainbed.training.trained import read_spec

anything = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted(set(SweepConfig.model_fields) - {"plugins", "output_dir"}))
YAML_SIGNS = st.text("-: \n\t[]{}&*!|>'\"#%@`,?0123abc~<=.", max_size=40)

RECORD = {
    "step": 0,
    "hparams": {},
    **{f"env{e}_{split}_acc": 0.5 for e in range(3) for split in ("in", "out")},
    "args": {
        "dataset": "D",
        "algorithm": "A",
        "test_envs": [0],
        "hparams_seed": 0,
        "trial_seed": 0,
    },
}
SPEC = {
    "protocol": "default",
    "protocol_version": 1,
    "dataset": "ColoredDigits",
    "algorithm": "ERM",
    "test_envs": [0],
    "seed": 0,
    "steps": 1,
    "checkpoint_freq": 1,
    "hparams": {},
    "run_id": "a",
}


def changed(content: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    """The content with other values for some of its keys."""
    others = st.dictionaries(st.sampled_from(sorted(content)), VALUES, max_size=2)
    return others.map(lambda values: {**content, **values})


def as_lines(content: dict[str, object]) -> st.SearchStrategy[bytes]:
    """Lines of JSON, cut off anywhere; or any bytes."""
    lines = st.lists(changed(content).map(json.dumps), max_size=3).map("\n".join)
    cut = st.tuples(lines, st.integers(0, 2000)).map(lambda two: (two[0] + "\n")[: two[1]])
    return st.one_of(lines.map(lambda text: text + "\n"), cut).map(str.encode) | st.binary()


@anything
@given(text=YAML_SIGNS | st.dictionaries(FIELDS, VALUES, max_size=3).map(json.dumps))
def test_configs(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    refused_or_done(load_config, file, {"datasets": "ColoredDigits", "algorithms": "ERM"})


@anything
@given(content=as_lines(RECORD), is_done=st.booleans())
def test_records(content, is_done, tmp_path):
    (tmp_path / "results.jsonl").write_bytes(content)
    (tmp_path / "done").touch() if is_done else (tmp_path / "done").unlink(missing_ok=True)
    refused_or_done(lambda: build_report(load_records(tmp_path)))


@anything
@given(content=as_lines(SPEC))
def test_run_folders(content, tmp_path):
    folder = RunFolder(tmp_path)
    folder.spec.write_bytes(content)
    folder.done.touch()
    refused_or_done(read_spec, folder)


@anything
@given(values=st.dictionaries(st.text(max_size=8) | FIELDS, VALUES, max_size=3))
def test_settings(values):
    refused_or_done(make, SweepConfig, values)


def refused_or_done(do, *arguments) -> None:
    """Whatever is not `UserError` fails the test, and so does one of more than one line."""
    said = "one line"
    with contextlib.suppress(UserError):
        try:
            do(*arguments)
        except UserError as error:
            said = str(error)
            raise
    assert len(said.splitlines()) == 1
