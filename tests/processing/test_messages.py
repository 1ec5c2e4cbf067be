"""Conversations as JSON, in the formats that other tools write."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import ImageError, ImageNotFoundError, UsageError
from mllama_cli.processing.images import open_image
from mllama_cli.processing.messages import load_messages, parse_messages
from tests.documents import needs_pdf
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
from tests.processing.pdf_files import pdf_of
from tests.processing.pictures import noise


def test_a_whole_conversation() -> None:
    data = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, TEXT], "name": "me"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A dog."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
    ]
    expected = Conversation(
        (
            Message("system", (TextPart("Be brief."),)),
            Message("user", (ImagePart(PICTURE, "read a.png"), TextPart("What is this?"))),
            Message("assistant", (TextPart("A dog."),)),
            Message("user", (TextPart("Sure?"),)),
        )
    )
    assert parse_messages(data, fake_read) == expected
    assert parse_messages({"model": "x", "messages": data}, fake_read) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://h/a.png", "detail": "auto"}},
        {"type": "image_url", "image_url": "http://h/a.png"},
        {"type": "input_image", "image_url": "http://h/a.png"},
        {"type": "image", "url": "http://h/a.png"},
        {"type": "image", "path": "http://h/a.png"},
        {"type": "image", "image": "http://h/a.png", "url": None},
    ],
)
def test_every_way_to_name_a_picture(part: object) -> None:
    assert image_of(part, read=fake_read) == ImagePart(PICTURE, "read http://h/a.png")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "image", "url": DATA_URL},
        {"type": "image", "base64": ENCODED},
        {"type": "image", "base64": DATA_URL},
        {"type": "image", "data": ENCODED},
        {"type": "image", "data": PICTURE},
        {"type": "image", "image": PICTURE},
    ],
)
def test_pictures_inside_the_messages_are_named_by_their_place(part: object) -> None:
    assert image_of(part) == ImagePart(PICTURE, "messages[0].content[0]")


def test_pil_images_as_transformers_takes_them() -> None:
    image = noise()
    assert open_image(image_of({"type": "image", "image": image})).tobytes() == image.tobytes()


def test_paths_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    assert image_of({"type": "image", "path": "a.png"}) == ImagePart(PICTURE, "a.png")
    assert image_of({"type": "image", "path": Path("a.png")}) == ImagePart(PICTURE, "a.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "messages must be a list, not null"),
        ("hi", "messages must be a list, not a string"),
        (3, "messages must be a list, not a number"),
        ([], "there are no messages"),
        ({}, 'the object has no "messages"'),
        ({"messages": {}}, "messages must be a list, not an object"),
        ([GOOD, "hi"], "messages[1] must be an object, not a string"),
        ([{"content": "hi"}], 'messages[0] has no "role"'),
        ([{"role": "user"}], 'messages[0] has no "content"'),
        ([{"role": "human", "content": "x"}], "messages[0]: role 'human' is not supported"),
        ([{"role": ["user"], "content": "x"}], "messages[0]: role ['user'] is not supported"),
        ([{"role": "user", "content": None}], "messages[0].content is empty"),
        ([{"role": "user", "content": {}}], "messages[0].content must be a string or a list of parts, not an object"),
        ([{"role": "user", "content": True}], "messages[0].content must be a string or a list of parts, not a boolean"),
        ([{"role": "user", "content": ""}], "messages[0].content is empty"),
        ([{"role": "user", "content": []}], "messages[0].content is empty"),
        ([GOOD, {"role": "assistant", "content": ""}], "the last message is an empty message of the assistant"),
        ([GOOD, {"role": "assistant", "tool_calls": [CALL]}], "the last message is a tool call of the assistant"),
        ([GOOD, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls must hold functions"),
        ([GOOD, {"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[1]: a tool call in a message of"),
        ([{"role": "assistant", "content": "x"}], "there is no question to answer"),
        ([{"role": "system", "content": "x"}], "the last message is from the system"),
        ([{"role": "system", "content": ""}], "there are no messages"),
        (user(["x"]), "messages[0].content[0] must be an object, not a list"),
        (user("x"), "messages[0].content[0] must be an object, not a string"),
        (user(TEXT, {"text": "x"}), "messages[0].content[1]: part of type None is not supported"),
        (user({"type": "audio", "url": "x"}), "messages[0].content[0]: part of type 'audio' is not supported"),
        (user({"type": {}, "url": "x"}), "messages[0].content[0]: part of type {} is not supported"),
        (user({"type": "text"}), 'messages[0].content[0] has no string "text"'),
        (user({"type": "text", "text": 5}), 'messages[0].content[0] has no string "text"'),
        (user({"type": "text", "text": "a\ud800"}), "messages[0].content[0]: half a surrogate pair at character 1"),
        (user({"type": "image"}), "messages[0].content[0] names no picture"),
        (user({"type": "input_image", "file_id": "f1"}), "messages[0].content[0] names no picture"),
        (user({"type": "image", "url": "a", "path": "b"}), "messages[0].content[0] names its picture more than once"),
        (
            user({"type": "image_url", "image_url": {}}),
            'messages[0].content[0]: "image_url.url" must be a string, not null',
        ),
        (user({"type": "image", "path": 5}), 'messages[0].content[0]: "path" must be a string, not a number'),
        (user({"type": "image", "path": "-"}), 'messages[0].content[0]: "path" cannot be stdin'),
        (
            user({"type": "image", "url": "ftp://h/a"}),
            "messages[0].content[0]: ftp://h/a: pictures cannot be read from ftp",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(data: object, message: str) -> None:
    assert refused(data).message.startswith(message)


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_only_the_user_shows_pictures(role: str) -> None:
    data = [{"role": role, "content": [{"type": "image", "url": DATA_URL}]}, GOOD]
    assert refused(data).message == f"messages[0]: a picture in a message of the {role}"


def test_errors_of_pictures_keep_their_type_and_gain_the_place(tmp_path: Path) -> None:
    missing = refused(user(TEXT, {"type": "image", "path": str(tmp_path / "no.png")}), ImageNotFoundError)
    assert missing.message == f"messages[0].content[1]: no such picture: {tmp_path / 'no.png'}"
    damaged = refused(user({"type": "image", "base64": "!"}), ImageError)
    assert damaged.message == "messages[0].content[0] is not valid base64"
    damaged = refused(user({"type": "image", "url": "data:;base64,!"}), ImageError)
    assert damaged.message == "messages[0].content[0]: the data: URL is not valid base64"


# Files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_with_or_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps([{"role": "user", "content": "größer?"}], ensure_ascii=False), encoding=encoding)
    expected = Conversation.ask("größer?")
    assert load_messages(path) == load_messages(str(path)) == expected


def test_stdin() -> None:
    assert load_messages("-", BytesIO(json.dumps([GOOD]).encode())) == Conversation.ask("hi")


def test_the_reader_is_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(user({"type": "image", "path": "a.png"})))
    assert load_messages(path, read=fake_read).images[0].name == "read a.png"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "m.json is empty"),
        (b" \n", "m.json is empty"),
        (b"[{]", "is not valid JSON: Expecting property name enclosed in double quotes at line 1, column 3"),
        (b'{"role": "user"}\n{"role": "user"}', "is not valid JSON: Extra data at line 2, column 1"),
        ("[]".encode("utf-16")[:-1], "is not UTF-16 text (byte 4)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "a number of 5000 digits"),
        (b'["\xff"]', "is not UTF-8 text (byte 2)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "there are no messages"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_messages(path)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_messages(tmp_path / "m.json")
    with pytest.raises(UsageError, match="is a folder"):
        load_messages(tmp_path)


def test_an_image_is_encoded_from_any_mode() -> None:
    part = image_of({"type": "image", "image": Image.new("RGBA", (2, 2), (0, 0, 0, 0))})
    assert open_image(part).getpixel((0, 0)) == (255, 255, 255)


def test_a_conversation_that_is_only_read_may_end_with_an_answer() -> None:
    data = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert parse_messages(data, to_answer=False).messages[-1] == Message("assistant", (TextPart("Hello."),))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "image", "base64": ENCODED},
        {"type": "image", "image": PICTURE},
    ],
    ids=["data URL", "base64", "bytes"],
)
def test_a_picture_given_by_its_bytes_may_have_a_name(part: dict) -> None:
    assert image_of(part | {"name": "photo.png"}) == ImagePart(PICTURE, "photo.png")
    assert image_of(part | {"name": 3}).name == "messages[0].content[0]"


@needs_pdf
@pytest.mark.parametrize("field", ["file", "flat", "base64"])
def test_a_document_becomes_its_pages_in_their_place(field: str) -> None:
    encoded = base64.b64encode(pdf_of(2)).decode()
    file = {"file_data": f"data:application/pdf;base64,{encoded}", "filename": "a.pdf"}
    part = {
        "file": {"type": "file", "file": file},
        "flat": {"type": "input_file", **file},
        "base64": {"type": "image", "base64": encoded, "name": "a.pdf"},
    }[field]
    (message,) = parse_messages(user(part, TEXT))
    assert [each.name for each in message.images] == ["a.pdf#1", "a.pdf#2"]
    assert message.parts[2] == TextPart("What is this?")


def test_the_content_of_a_file_that_is_not_sent_is_missed() -> None:
    assert "file_id" in refused(user({"type": "file", "file": {"file_id": "file-1"}}, TEXT)).message
