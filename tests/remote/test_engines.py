"""Where sockets are, which are found, and what is left alone."""

import os
import shutil
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mllama_cli.core.errors import EngineError, UsageError
from mllama_cli.remote.client import Address
from mllama_cli.remote.engines import EngineKey, Registration, existing_folders, find, running, usable_folder
from mllama_cli.system import private_sockets
from mllama_cli.system.paths import built_in_model
from mllama_cli.system.private_sockets import bind_private, make_private_folder, peer_user, runtime_folders


def test_a_key_tells_apart_what_answers_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(built_in_model(), tmp_path / "model")
    painter, poet = tmp_path / "painter", tmp_path / "poet"
    for adapter in (painter, poet):
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"1")
    key = EngineKey.of(folder)
    assert key == EngineKey.of(tmp_path / "." / "model")
    others = [
        EngineKey.of(built_in_model()),
        EngineKey.of(folder, "cpu"),
        EngineKey.of(folder, dtype="float32"),
        EngineKey.of(folder, quantize="int4"),
        EngineKey.of(folder, exact=True),
        EngineKey.of(folder, image_kv="fp8"),
        EngineKey.of(folder, fast=True),
        EngineKey.of(folder, adapters=[painter]),
        EngineKey.of(folder, adapters=[painter, poet]),
        EngineKey.of(folder, adapters=[poet, painter]),
        replace(key, version="0.0.1"),
        replace(key, protocol=0),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    others.append(EngineKey.of(folder))
    assert EngineKey.of(folder, "cpu") == others[1]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    os.utime(painter / "adapter_model.safetensors", ns=(1, 1))
    others.append(EngineKey.of(folder, adapters=[painter]))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    others.append(EngineKey.of(folder))
    assert len({each.name for each in (key, *others)}) == len(others) + 1


def test_sockets_are_in_the_runtime_folder(sockets: Path) -> None:
    assert usable_folder() == sockets
    assert list(existing_folders()) == [sockets]
    assert sockets.stat().st_mode & 0o777 == 0o700


def test_a_socket_has_mode_600_and_its_user_at_the_other_end(sockets: Path) -> None:
    make_private_folder(sockets)
    with closing(bind_private(sockets / "a.sock")) as bound:
        assert (sockets / "a.sock").stat().st_mode & 0o777 == 0o600
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sockets / "a.sock"))
            assert peer_user(client) == os.geteuid()


def test_a_path_too_long_for_a_socket_gets_a_shorter_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    monkeypatch.delenv("TMPDIR")
    assert runtime_folders("mllama", 30) == [Path(f"/tmp/mllama-{os.geteuid()}")]


def test_a_folder_that_others_may_enter_is_not_used(sockets: Path, key: EngineKey) -> None:
    with closing_registration(key) as registration:
        assert registration.file.parent == sockets
        assert running() == [Address(registration.file)]
        sockets.chmod(0o755)
        assert running() == []
        assert find(key) is None
        other = usable_folder()
        assert other.name == f"mllama-{os.geteuid()}"
        assert other.stat().st_mode & 0o777 == 0o700
        sockets.chmod(0o700)


def test_a_link_to_a_folder_is_not_used(sockets: Path, tmp_path: Path) -> None:
    sockets.symlink_to(tmp_path)
    assert usable_folder() != sockets
    assert list(existing_folders()) == [usable_folder()]


def test_without_a_private_folder_the_reasons_are_named(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in runtime_folders("mllama", 30)[:2]:
        folder.mkdir(0o700)
        folder.chmod(0o777)
    monkeypatch.setattr(private_sockets, "runtime_folders", lambda *_: [])
    monkeypatch.setattr("mllama_cli.remote.engines.runtime_folders", lambda *names: runtime_folders(*names)[:2])
    with pytest.raises(EngineError, match=r"mode 777.*mode 777") as raised:
        usable_folder()
    assert "XDG_RUNTIME_DIR" in raised.value.hint


def test_a_folder_of_another_user_is_not_used(sockets: Path, key: EngineKey, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing_registration(key):
        monkeypatch.setattr("mllama_cli.system.safe_files.is_own", lambda status: False)
        monkeypatch.setattr(private_sockets, "is_own", lambda status: False)
        assert find(key) is None
        assert list(existing_folders()) == []
        with pytest.raises(EngineError, match="belongs to another user"):
            usable_folder()


def test_an_engine_of_another_user_is_not_asked(key: EngineKey, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing_registration(key) as registration:
        registration.bound.listen()
        monkeypatch.setattr("mllama_cli.remote.client.is_own_peer", lambda connected: False)
        assert find(key) is None


def test_a_runtime_folder_that_cannot_be_written(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_private_folder(sockets)
    monkeypatch.setattr("mllama_cli.remote.engines.os.access", lambda path, mode: Path(path) != sockets)
    assert usable_folder() != sockets  # root may write anywhere, so the system is not asked


def test_a_socket_that_a_killed_engine_left(sockets: Path, key: EngineKey) -> None:
    make_private_folder(sockets)
    stale = sockets / f"{key.name}.sock"
    bind_private(stale).close()
    assert find(key) is None
    assert running() == []
    assert list(sockets.iterdir()) == []


def test_an_engine_of_another_version_is_left_alone(sockets: Path, key: EngineKey) -> None:
    with closing_registration(replace(key, version="0.0.1")) as registration:
        assert find(key) is None
        assert running() == [Address(registration.file)]
        assert registration.file.exists()


def test_one_engine_has_several_names_and_each_name_one_engine(sockets: Path, key: EngineKey) -> None:
    auto = replace(key, device="auto")
    with closing_registration(key, auto) as first:
        assert Registration.create([key, auto]) is None
        assert running() == [Address(first.file)]
        assert (sockets / f"{auto.name}.sock").resolve() == first.file
    assert list(sockets.iterdir()) == []


def closing_registration(*keys: EngineKey) -> "closing[Registration]":
    registration = Registration.create(keys)
    assert registration is not None
    return closing(registration)


@pytest.mark.parametrize("text", ["", "http://", "ftp://box", "box:port", "http://box:99999", "http://me:pw@box"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not the address of a server"):
        Address.parse(text)
