"""What a hub answers."""

import copy
from collections.abc import Iterator
from typing import Any

from mllama_cli.hub import listing, plan
from tests.fuzz.test_hub_answers import LISTING, as_json
from tests.hostile.cases import Case
from tests.hostile.checkpoints import NOT_JSON, ODD

NAMES = (
    "", "/etc/passwd", "../x", "a/../../x", "C:\\x", "a\x1b[31m", "\0", ".", "..", "x" * 5000, "a/./b", "~/x",
    "\ud800",
    "a\nb", ".git/config", "a\\..\\b", "\u202egnp.x",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield answers: not JSON, of odd types, with names that lead elsewhere."""
    for name, data in NOT_JSON.items():
        yield Case(f"listing: {name}", lambda _, data=data: _listed(data))
        yield Case(f"config.json: {name}", lambda _, data=data: _planned({"config.json": data}))
        yield Case(f"index: {name}", lambda _, data=data: _planned({"model.safetensors.index.json": data}))
    for odd in (*ODD, *NAMES):
        for key in LISTING:
            yield _changed(f"{key} = {repr(odd)[:20]}", {**LISTING, key: odd})
        for key in ("rfilename", "size", "blobId", "lfs"):
            answer = copy.deepcopy(LISTING)
            answer["siblings"][0][key] = odd
            yield _changed(f"{key} = {repr(odd)[:20]}", answer)
        for key in ("sha256", "size"):
            answer = copy.deepcopy(LISTING)
            answer["siblings"][1]["lfs"][key] = odd
            yield _changed(f"lfs.{key} = {repr(odd)[:20]}", answer)
    many = [{**LISTING["siblings"][0], "rfilename": f"{n}.safetensors"} for n in range(100_000)]
    yield _changed("100,000 files", {**LISTING, "siblings": many})


def _changed(name: str, answer: Any) -> Case:
    return Case(f"listing: {name}", lambda _: _listed(as_json(answer)))


def _listed(data: bytes) -> None:
    listing.get_bytes = lambda url, limit: data  # type: ignore[assignment]
    for name in listing.hub_listing("a/b", "main")[1]:
        assert not name.startswith("/"), "a name leads elsewhere"
        assert ".." not in name.split("/"), "a name leads elsewhere"


def _planned(answers: dict[str, bytes]) -> None:
    known = {
        "config.json": b'{"model_type": "mllama"}',
        "model.safetensors.index.json": b'{"weight_map": {}}',
        **answers,
    }
    listing.get_bytes = lambda url, limit: as_json(LISTING)
    plan.get_bytes = lambda url, limit: known[url.rpartition("/")[2]]
    plan.plan("a/b")
