"""Pictures and messages in JSON for tests, and how to read them."""

import base64
from pathlib import Path

import pytest

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.processing.messages import parse_messages
from tests.processing.pictures import file_of, noise

PICTURE = file_of(noise())
ENCODED = base64.b64encode(PICTURE).decode()
DATA_URL = "data:image/png;base64," + ENCODED
TEXT = {"type": "text", "text": "What is this?"}
GOOD = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def fake_read(source: str | Path) -> tuple[ImagePart, ...]:
    return (ImagePart(PICTURE, f"read {source}"),)


def user(*parts: object) -> list:
    return [{"role": "user", "content": list(parts)}]


def image_of(part: object, **options: object) -> ImagePart:
    [image] = parse_messages(user(part, TEXT), **options).images
    return image


def refused(data: object, kind: type[MllamaError] = UsageError) -> MllamaError:
    with pytest.raises(kind) as caught:
        parse_messages(data)
    assert caught.value.hint
    return caught.value
