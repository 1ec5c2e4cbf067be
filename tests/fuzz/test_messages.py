"""Conversations as JSON, from values and from bytes."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageNotFoundError
from mllama_cli.processing.chat_template import template_messages
from mllama_cli.processing.messages import load_request, parse_request
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import TEXTS, VALUES, changed, damaged
from tests.processing.pictures import file_of, noise

ENCODED = base64.b64encode(file_of(noise())).decode()
DATA_URL = "data:image/png;base64," + ENCODED
TEXT = {"type": "text", "text": "What is this?"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
REQUEST: dict[str, Any] = {
    "model": "m", "temperature": 0.5, "max_tokens": 9, "stop": ["x"], "options": {"num_predict": 5, "seed": 1},
    "messages": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "hi", "images": [ENCODED]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": DATA_URL}}]},
    ],
}  # fmt: skip
KEYS = st.sampled_from(["role", "content", "images", "tool_calls", "function_call", "refusal", "name", "tool_call_id"])
ROLES = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool"])})
MESSAGE = st.builds(dict.__or__, st.dictionaries(KEYS, VALUES | st.sampled_from([DATA_URL, [TEXT]]), max_size=3), ROLES)


def read_no_file(source: str | Path) -> tuple[ImagePart, ...]:
    if str(source).startswith("a"):
        raise ImageNotFoundError(f"no such picture: {source}", "Check the path.")
    return (ImagePart(b"x", str(source)),)


def parse(data: Any) -> None:
    request = parse_request(data, read_no_file)
    json.dumps(template_messages(request.conversation))


def test_values(fuzz: Fuzz) -> None:
    parse(REQUEST)
    fuzz(parse, changed(REQUEST) | st.lists(MESSAGE, max_size=4) | st.builds(lambda k, v: {k: v}, TEXTS, VALUES))


def test_bytes(fuzz: Fuzz) -> None:
    data = json.dumps(REQUEST).encode()
    samples = [
        data,
        b"\xff\xfe" + data.decode().encode("utf-16-le"),
        b"[" * 3000,
        b'[{"role":"user","content":"x"}]\n' * 2,
    ]
    fuzz(lambda data: load_request("-", BytesIO(data), read=read_no_file), damaged(samples, [b"9" * 5000, b"\\ud800"]))
