"""DomainBed's keys: made and read again."""

from __future__ import annotations

import pytest

from domainbed.record_keys import parse_record_key, record_key

KEYS = {
    "env0_in_acc": (0, "in", "accuracy"),
    "env12_out_acc": (12, "out", "accuracy"),
    "env3_uda_acc": (3, "uda", "accuracy"),
    "env1_out_loss": (1, "out", "loss"),
    "env1_out_top_5": (1, "out", "top_5"),
}


@pytest.mark.parametrize("key", KEYS)
def test_round_trip(key: str) -> None:
    assert parse_record_key(key) == KEYS[key]
    assert record_key(*KEYS[key]) == key


@pytest.mark.parametrize(
    "key",
    ["loss", "step", "env_in_acc", "env0_acc", "env0_all_acc", "xenv0_in_acc", "env-1_in_acc"],
)
def test_other_keys(key: str) -> None:
    assert parse_record_key(key) is None
