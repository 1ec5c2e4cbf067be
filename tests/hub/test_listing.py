"""What a hub lists: taken if every value is what a Hub gives, else refused in one line."""

import json
from typing import Any

import pytest

from mllama_cli.core.errors import DownloadError
from mllama_cli.hub import listing
from mllama_cli.hub.client import body

FILE: dict[str, Any] = {"rfilename": "config.json", "size": 2, "blobId": "b" * 40}
GOOD: dict[str, Any] = {"sha": "a" * 40, "siblings": [FILE]}


def listed(answer: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        patch.setattr(listing, "get_bytes", lambda url, limit: data)
        return listing.hub_listing("a/b", "main")


def test_sizes_and_hashes_of_ordinary_and_large_files() -> None:
    large = {**FILE, "rfilename": "x/model.safetensors", "lfs": {"sha256": "c" * 64, "size": 9, "pointerSize": 1}}
    expected = {"config.json": (2, "b" * 40), "x/model.safetensors": (9, "c" * 64)}
    assert listed({**GOOD, "siblings": [{**FILE, "lfs": None}, large]}) == ("a" * 40, expected)


def with_file(**changes: object) -> dict[str, Any]:
    return {**GOOD, "siblings": [{**FILE, **changes}]}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"<html>", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"sha": ' + b"1" * 5000 + b"}", {},
        {**GOOD, "sha": 5}, {**GOOD, "sha": None}, {**GOOD, "sha": "../../x"}, {"sha": "a" * 40},
        {**GOOD, "siblings": {}}, {**GOOD, "siblings": [None]}, {**GOOD, "siblings": ["config.json"]},
        {**GOOD, "siblings": [{"size": 1, "blobId": "b" * 40}]},
        with_file(rfilename=5), with_file(rfilename=""), with_file(rfilename="../x"), with_file(rfilename="/etc/x"),
        with_file(rfilename="a/../../x"), with_file(rfilename="C:\\x"), with_file(rfilename="a\x1b[31m"),
        with_file(size="big"), with_file(size=-1), with_file(size=1.5), with_file(size=True), with_file(size=10**30),
        with_file(size=None), with_file(blobId=5), with_file(blobId="../../x"), with_file(blobId=None),
        with_file(lfs=[]), with_file(lfs=[1]), with_file(lfs="x"), with_file(lfs={"sha256": 5}),
        with_file(lfs={"size": "9"}),
    ],
    ids=lambda answer: str(answer)[:60],
)  # fmt: skip
def test_an_answer_with_other_types_is_one_line(answer: object) -> None:
    with pytest.raises(DownloadError, match="does not answer like a Hugging Face Hub") as caught:
        listed(answer)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "zstd"])
def test_a_compressed_answer_is_refused_unread(encoding: str) -> None:
    class Response:
        headers = {"content-encoding": encoding}  # noqa: RUF012

        def iter_raw(self) -> Any:
            raise AssertionError("read")

    with pytest.raises(DownloadError, match="compresses its answer"):
        list(body(Response()))
