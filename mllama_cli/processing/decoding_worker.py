"""Decode images in a process of its own: a decoder that crashes, hangs or takes all memory takes nothing else with it.

Run as a script. A request on stdin is a line of JSON, and the bytes of the file unless its path is given. An answer on
stdout is a line of JSON, and the canvas's pixels (and the file's bytes, if it was read here) unless it is an error. An
image that takes much memory is announced first, and decoded once a line on stdin admits it.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.limits import LARGE_PICTURE_BYTES, WORKER_BYTES
from mllama_cli.processing.memory_budget import DecodingPlan
from mllama_cli.processing.prepared import PreparedImage, prepare_image
from mllama_cli.processing.sources import read_image

Request = tuple[dict[str, Any], bytes]


def main() -> None:
    """Serve until stdin ends, which it does with the process that started this one."""
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)  # libraries in C must not write among the answers
    limit_memory()
    requests: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        _answer(requests, answers)


def limit_memory() -> None:
    """Make any allocation beyond WORKER_BYTES fail, where the system can."""
    if sys.platform == "linux":
        import resource

        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (WORKER_BYTES, hard))


def _receive(stdin: BinaryIO, requests: "SimpleQueue[Request]") -> None:
    """Read ahead, in a thread, so that the end of stdin ends this process also in the midst of an image."""
    while line := stdin.readline():
        request = json.loads(line)
        requests.put((request, stdin.read(request.get("bytes", 0))))
    os._exit(0)


def _answer(requests: "SimpleQueue[Request]", answers: BinaryIO) -> None:
    request, data = requests.get()

    def admit(plan: DecodingPlan) -> bool:
        if plan.needed > LARGE_PICTURE_BYTES:
            _send(answers, {"large": True})
            requests.get()
        return True

    name = request["name"]
    try:
        part = read_image(Path(name)) if "bytes" not in request else ImagePart(data, name)
        image = prepare_image(part, ImageProcessorConfig(**request["config"]), admit)
    except MemoryError:
        _send_error(answers, ImageError(f"{name} does not fit in memory", "Make the picture smaller first."))
    except MllamaError as error:
        _send_error(answers, error)
    else:
        file = b"" if "bytes" in request else image.data
        pixels = image.canvas.pixels.tobytes() if request.get("canvas", True) else b""
        _send(answers, {**_described(image), "payload": len(pixels) + len(file)}, pixels, file)


def _described(image: PreparedImage) -> Mapping[str, Any]:
    canvas = image.canvas
    return {
        "width": image.width,
        "height": image.height,
        "tiles": canvas.num_tiles,
        "columns": canvas.columns,
        "aspect_ratio_id": canvas.aspect_ratio_id,
        "size": canvas.size,
    }


def _send_error(answers: BinaryIO, error: MllamaError) -> None:
    _send(answers, {"error": type(error).__name__, "message": error.message, "hint": error.hint})


def _send(answers: BinaryIO, head: Mapping[str, Any], *more: bytes) -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    for each in more:
        answers.write(each)
    answers.flush()


if __name__ == "__main__":
    main()
