"""Which GPU's context is created ahead of torch."""

import ctypes

import pytest

from mllama_cli.system import cuda_context
from mllama_cli.system.cuda_context import create_context


class Driver:
    """Stands for libcuda: notes the devices whose contexts are asked for."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.devices: list[int] = []

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDevicePrimaryCtxRetain(self, context: object, device: int) -> int:
        self.devices.append(device)
        return 0


def devices_for(name: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: driver)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    if (thread := create_context(name)) is not None:
        thread.join()
    return driver.devices


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("auto", [0]),
        ("cuda", [0]),
        ("cuda:2", [2]),
        ("cuda:3,cuda:1", [3]),
        ("cuda:all", [0]),
        ("cpu", []),
        ("cpu,cpu", []),
        ("cuda:x", []),
        ("cuda:-1", []),
        ("", []),
    ],
)
def test_the_first_gpu_that_is_named_gets_its_context(
    name: str, devices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices_for(name, Driver(), monkeypatch) == devices


def test_a_driver_without_gpus_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_for("auto", Driver(status=100), monkeypatch) == []


def test_a_machine_without_a_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_context, "LIBRARY", "libmissing.so.1")
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    thread = create_context("cuda")
    assert thread is not None
    thread.join()
