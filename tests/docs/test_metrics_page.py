"""docs/metrics.md lists the metrics as they are, and its own ones measure what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from page_files import REPOSITORY

from domainbed.core.plugins import import_plugins
from domainbed.metrics import METRICS, describe_metric, get_metric, label_type
from domainbed.metrics.labels import LABEL_TYPES

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text()


def test_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", PAGE, re.M)
    kinds = ("classes", "binary", "multilabel", "regression")
    expected = []
    for name in METRICS:
        suited = [kind for kind in kinds if get_metric(name).suits(label_type(kind))]
        labels = "all" if len(suited) == len(kinds) else ", ".join(suited)
        better = "higher" if describe_metric(name).higher_is_better else "lower"
        expected.append((name, better, labels))
    assert rows == expected
    (shown,) = re.findall(r"Tables show (.+?) in percent", PAGE, re.S)
    percent = [name for name in METRICS if describe_metric(name).percent]
    assert re.findall(r"`(\w+)`", shown) == percent


def test_own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    (code,) = re.findall(r"<!-- file: my_metrics.py -->\n+```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "page_metrics.py").write_text(code)
    import_plugins([str(tmp_path / "page_metrics.py")])
    outputs = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [2, 1, 3], [5, 0, 0]])
    targets = torch.tensor([0, 2, 2, 0, 0])
    found = get_metric("rarest_top2").measured(LABEL_TYPES["classes"](), outputs, targets, None)
    assert found == {"rarest_top2": 0.5}  # class 2: the second of two
    assert describe_metric("rarest_top2") == ("rarest_top2", True, True)
    assert describe_metric("confidence").percent
