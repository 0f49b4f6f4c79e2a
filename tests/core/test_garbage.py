"""Spans without garbage collection."""

from __future__ import annotations

import gc

import pytest

from domainbed.core.garbage import without_garbage_collection


def test_it_is_as_before_at_the_end():
    assert gc.isenabled()
    with without_garbage_collection():
        assert not gc.isenabled()
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()  # as it was when the inner span began
    assert gc.isenabled()


def test_it_is_as_before_after_an_error():
    with pytest.raises(ZeroDivisionError), without_garbage_collection():
        print(1 / 0)
    assert gc.isenabled()
