"""What a hub answers, which may be a mirror, a proxy or a hotel's login page."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mllama_cli.hub import listing, plan
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import changed, damaged

FILE: dict[str, Any] = {"rfilename": "config.json", "size": 2, "blobId": "b" * 40}
WEIGHTS: dict[str, Any] = {"rfilename": "model.safetensors", "size": 9, "lfs": {"sha256": "c" * 64, "size": 9}}
INDEX: dict[str, Any] = {"rfilename": "model.safetensors.index.json", "size": 2, "blobId": "d" * 40}
LISTING: dict[str, Any] = {"sha": "a" * 40, "siblings": [FILE, WEIGHTS, INDEX]}


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_listing(fuzz: Fuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b""
    monkeypatch.setattr(listing, "get_bytes", lambda url, limit: answer)

    def read(data: bytes) -> None:
        nonlocal answer
        answer = data
        commit, files = listing.hub_listing("a/b", "main")
        assert len(commit) in (40, 64)
        for name, (size, etag) in files.items():
            assert ".." not in PurePosixPath(name).parts
            assert size >= 0
            assert "/" not in etag

    read(as_json(LISTING))
    fuzz(read, changed(LISTING).map(as_json) | damaged([as_json(LISTING), b"<!doctype html>"]))


def test_the_configs_of_a_repository(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, bytes] = {}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(listing, "get_bytes", lambda url, limit: as_json(LISTING))
    monkeypatch.setattr(plan, "get_bytes", lambda url, limit: answers[url.rpartition("/")[2]])

    def read(config: bytes, index: bytes) -> None:
        answers.update({"config.json": config, "model.safetensors.index.json": index})
        assert plan.plan("a/b").files

    config, index = {"model_type": "mllama"}, {"weight_map": {"w": "model.safetensors"}}
    read(as_json(config), as_json(index))
    fuzz(read, changed(config).map(as_json) | damaged([as_json(config)]), changed(index).map(as_json))
