"""Strategies of hostile input: damaged bytes, and JSON with odd values anywhere."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**32 - 1,
    2**63,
    10**18,
    10**400,
    -(10**30),
    0.0,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
)
ODD_TEXTS = (
    "", "x", "\0", "\x1b]0;x\x07", "\n", "\ud800", "日", "é", "../..", "/etc/passwd", "~nosuch", "9" * 5000, "a" * 3000,
    "<|image|>", "<|eot_id|>", "{{", "{% endfor %}", "re:(a+)+$", "http://me:secret@[", "data:,", "true", "null",
)  # fmt: skip
TEXTS = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_NUMBERS) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Any JSON, mostly small."""

DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]


@st.composite
def changed(draw: st.DrawFn, good: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """``good`` JSON with one to three entries replaced, added or left out at any depth."""
    data = good
    for _ in range(draw(st.integers(1, 3))):
        data = _changed_once(draw, data, values)
    return data


def _changed_once(draw: st.DrawFn, data: Any, values: st.SearchStrategy[Any]) -> Any:
    inner = dict(enumerate(data)) if isinstance(data, list) else data
    if not isinstance(inner, dict) or not inner or draw(st.integers(0, 9)) == 0:
        return draw(values | st.just(DEEP))
    key = draw(st.sampled_from(sorted(inner, key=repr)))
    kind = draw(st.sampled_from(["inside", "inside", "inside", "leave out", "add", "copy"]))
    if kind == "leave out":
        inner = {other: value for other, value in inner.items() if other != key}
    elif kind == "add":
        inner = {**inner, draw(TEXTS): draw(values)}
    elif kind == "copy":
        inner = {**inner, key: inner[draw(st.sampled_from(sorted(inner, key=repr)))]}
    else:
        inner = {**inner, key: _changed_once(draw, inner[key], values)}
    return list(inner.values()) if isinstance(data, list) else inner


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """One of the samples with bytes overwritten, inserted, left out or repeated, or cut off; or just any bytes."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(samples)))
    filler = st.binary(min_size=1, max_size=8) | st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", *pieces))
    for _ in range(draw(st.integers(0, 5))):
        # Headers decide most, so half of the changes are near the start.
        last = min(len(data), draw(st.sampled_from((64, len(data)))))
        start = draw(st.integers(0, last))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 2, 4, 8, 100))))
        kind = draw(st.sampled_from(["overwrite", "flip", "insert", "leave out", "repeat", "cut"]))
        if kind == "overwrite":
            new = draw(filler)
            data[start : start + len(new)] = new
        elif kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[start:start] = draw(filler)
        elif kind == "leave out":
            del data[start:end]
        elif kind == "repeat":
            data[start:start] = data[start:end] * draw(st.integers(1, 50))
        elif kind == "cut":
            del data[start:]
    return bytes(data)
