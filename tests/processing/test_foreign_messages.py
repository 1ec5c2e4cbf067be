"""Messages as other tools write them: ollama, exported histories, whole requests; and any JSON at all."""

import base64

import pytest

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import ImageNotFoundError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.processing.messages import parse_messages, parse_request
from tests.processing.message_json import (
    CALL,
    DATA_URL,
    ENCODED,
    GOOD,
    PICTURE,
    TEXT,
    fake_read,
    image_of,
    refused,
    user,
)

BARE = "".join(f"{ENCODED[start : start + 76]}\n" for start in range(0, len(ENCODED), 76))


@pytest.mark.parametrize(
    "value", [ENCODED, BARE, ENCODED.rstrip("="), f"  {ENCODED}", f" {DATA_URL}", f"\n{DATA_URL}\n"]
)
@pytest.mark.parametrize("form", [{"type": "image_url"}, {"type": "image"}, {"type": "input_image"}], ids=str)
def test_base64_where_a_url_goes(form: dict, value: str) -> None:
    key = "image" if form["type"] == "image" else "image_url"
    assert image_of({**form, key: value}).data == PICTURE
    assert image_of({**form, key: value}).name == "messages[0].content[0]"
    assert image_of({"type": "image_url", "image_url": {"url": value}}).data == PICTURE


def test_base64_that_is_no_picture_is_told_in_a_short_line() -> None:
    text = base64.b64encode(b"no picture at all, but rather long " * 200).decode()
    error = refused(user({"type": "image_url", "image_url": text}), ImageNotFoundError)
    assert "base64" in error.hint
    assert len(error.message) < 200


@pytest.mark.parametrize("value", [ENCODED, DATA_URL, PICTURE])
def test_the_images_of_ollama(value: str | bytes) -> None:
    data = [{"role": "user", "content": "What is this?", "images": [value, value]}]
    image = ImagePart(PICTURE, "messages[0].images[0]")
    other = ImagePart(PICTURE, "messages[0].images[1]")
    assert parse_messages(data) == Conversation.ask("What is this?", (image, other))
    assert parse_messages([{"role": "user", "content": "", "images": [value]}]) == Conversation.ask("", (image,))
    assert parse_messages([{"role": "user", "images": ["a.png"]}], fake_read).images[0].name == "read a.png"
    assert parse_messages([{**GOOD, "images": []}]) == parse_messages([{**GOOD, "images": None}])


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "image_url", "url": "a.png"}, "read a.png"),
        ({"type": "image", "image_url": {"url": "a.png"}}, "read a.png"),
        ({"type": "image", "source": {"type": "url", "url": "a.png"}}, "read a.png"),
        ({"type": "image", "source": {"type": "base64", "data": ENCODED}}, "messages[0].content[0]"),
    ],
)
def test_other_names_of_pictures(part: dict, name: str) -> None:
    assert image_of(part, read=fake_read).name == name


@pytest.mark.parametrize(
    "key",
    ["attachments", "experimental_attachments", "files", "audio", "imageUrls", "input_image", "b64_json", "media"],
)
def test_a_key_whose_content_would_be_lost_is_an_error(key: str) -> None:
    for data, where in (
        ([{**GOOD, key: ["a.png"]}], "messages[0]: "),
        ({"messages": [GOOD], key: ["a.png"]}, "the request: "),
        (user({**TEXT, key: "a.png"}), "messages[0].content[0]: "),
    ):
        error = refused(data)
        assert error.message.startswith(where)
        assert repr(key) in error.message


@pytest.mark.parametrize("value", [DATA_URL, ENCODED, [{"deep": [DATA_URL]}]])
def test_a_picture_under_a_name_that_nobody_knows_is_an_error(value: object) -> None:
    assert "'thing'" in refused([{**GOOD, "thing": value}]).message
    assert "'thing'" in refused({"messages": [GOOD], "thing": value}).message


def test_harmless_keys_pass() -> None:
    harmless = {
        "name": "me",
        "refusal": None,
        "reasoning_content": "hm",
        "annotations": [],
        "audio": None,
        "images": None,
        "id": "msg_1",
        "created_at": "2026-01-01",
        "content_type": "text",
        "prompt_tokens": 5,
        "content_filter_results": {"hate": {"filtered": False}},
        "metadata": {"a": "b"},
    }
    assert parse_messages([{**harmless, **GOOD}]) == Conversation.ask("hi")


def test_a_whole_request_brings_its_sampling() -> None:
    request = parse_request(
        {
            "model": "gpt-4o",
            "messages": [GOOD],
            "temperature": 1,
            "max_completion_tokens": 3,
            "stop": "x",
            "seed": None,
            "stream": True,
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        }
    )
    assert request.sampling == {"temperature": 1.0, "max_tokens": 3, "stop": ("x",)}
    assert request.ignored == ("tools", "response_format")
    ollama = parse_request({"messages": [GOOD], "options": {"num_predict": 7, "stop": ["a", "b"], "num_ctx": 2048}})
    assert (ollama.sampling, ollama.ignored) == ({"max_tokens": 7, "stop": ("a", "b")}, ("num_ctx",))
    assert refused({"messages": [GOOD], "temperature": -1}).message.startswith("the request's temperature must be 0")
    assert refused({"messages": [GOOD], "top_p": "much"}).message.startswith("the request's top_p must be a number")


@pytest.mark.parametrize("role", ["tool", "ipython", "function"])
def test_tools_of_exported_histories(role: str) -> None:
    data = [
        {"role": "system", "content": ""},
        GOOD,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": role, "tool_call_id": "1", "content": "42"},
        {"role": "assistant", "content": "", "function_call": {"name": "g", "arguments": {"y": [2]}}},
        {"role": role, "name": "g", "content": [{"type": "text", "text": "43"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "refusal": "never"},
        {"role": "assistant", "content": ""},
        GOOD,
    ]
    assert parse_messages(data).messages == (
        Message("user", (TextPart("hi"),)),
        Message("assistant", (), (ToolCall("f", '{"x": 1}', "1"),)),
        Message("tool", (TextPart("42"),), call_id="1"),
        Message("assistant", (), (ToolCall("g", '{"y": [2]}'),)),
        Message("tool", (TextPart("43"),), name="g"),
        Message("assistant", (TextPart("no"),)),
        Message("assistant", (TextPart("never"),)),
        Message("assistant", ()),
        Message("user", (TextPart("hi"),)),
    )
    assert parse_messages(data[:4]).messages[-1].role == "tool", "the model answers to a tool's result"
