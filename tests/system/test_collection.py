"""The garbage collector is paused for a while, and goes on afterwards."""

import gc

import pytest

from mllama_cli.system.collection import paused_collection


def work() -> None:
    with paused_collection():
        with paused_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError


def test_the_collector_is_paused_and_goes_on_afterwards() -> None:
    with pytest.raises(KeyError):
        work()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with paused_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
