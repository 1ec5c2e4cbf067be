from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllama_cli.core.conversation import ImagePart
from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint, device="cpu", vision=True)


def picture(colour: str = "red", size: tuple[int, int] = (60, 40)) -> ImagePart:
    buffer = BytesIO()
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    Image.blend(image, Image.new("RGB", size, colour), 0.5).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), f"{colour}.png")


def fail_once(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, call: int, error: Callable[[], BaseException]
) -> list[int]:
    """Let one call of a method, counted from 1, raise an error. Return a list that gets an item with each call."""
    original: Any = getattr(where, method)
    calls: list[int] = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error()
        return original(*arguments)

    monkeypatch.setattr(where, method, failing)
    return calls
