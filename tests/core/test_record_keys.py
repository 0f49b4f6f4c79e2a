"""DomainBed's keys: made and read again."""

from __future__ import annotations

import pytest

from domainbed.core.names import (
    average_key,
    order_algorithms,
    parse_average_key,
    parse_record_key,
    record_key,
    trained_algorithm,
)

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


def test_keys_of_averages() -> None:
    for key in KEYS:
        assert parse_average_key(average_key("swad", key)) == ("swad", key)
        assert parse_record_key(average_key("swad", key)) is None
    for other in ("env0_out_acc", "swad_start", "mine_env0_out_acc", "swad_fd_env0_in_acc"):
        assert parse_average_key(other) is None


def test_averages_stand_after_what_they_are_of() -> None:
    seen = ["Mine + EMA", "ERM + SWAD", "Mine", "CORAL", "LISA", "ERM", "Fish + SMA"]
    ordered = ["ERM", "ERM + SWAD", "CORAL", "Fish + SMA", "LISA", "Mine", "Mine + EMA"]
    assert order_algorithms(seen) == ordered
    assert trained_algorithm("Fishr+ERM + SWAD") == "Fishr+ERM"
