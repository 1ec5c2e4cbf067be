"""Decode images in a process of its own: a decoder that crashes, hangs or takes all memory takes nothing else with it.

Run as a script. A request on stdin is a line of JSON, and the bytes of the file unless its path is given. An answer on
stdout is a line of JSON, and what was asked for unless it is an error: the canvas's pixels (and the file's bytes, if it
was read here), or the pictures of a document. What fits is in shared memory instead, if its descriptor is given as an
argument, and then the answer is "shared". An image that takes much memory is announced first, and decoded once a
line on stdin admits it, unless the request is "admitted".
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
from mllama_cli.processing.images import Admit
from mllama_cli.processing.limits import DOCUMENT_BYTES, LARGE_PICTURE_BYTES, SMALL_DOCUMENT_BYTES, WORKER_BYTES
from mllama_cli.processing.memory_budget import DecodingPlan
from mllama_cli.processing.prepared import PreparedImage, prepare_image
from mllama_cli.processing.shared_memory import attach
from mllama_cli.processing.sources import read_image
from mllama_cli.processing.worker_process import limit_memory

Request = tuple[dict[str, Any], bytes]


def main() -> None:
    """Serve until stdin ends, which it does with the process that started this one."""
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)  # libraries in C must not write among the answers
    limit_memory(WORKER_BYTES)
    memory = memoryview(attach(int(sys.argv[1]))) if sys.argv[1:] else memoryview(b"")
    requests: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    while True:
        _answer(requests, answers, memory)


def _receive(stdin: BinaryIO, requests: "SimpleQueue[Request]") -> None:
    """Read ahead, in a thread, so that the end of stdin ends this process also in the midst of an image."""
    while line := stdin.readline():
        request = json.loads(line)
        requests.put((request, stdin.read(request.get("bytes", 0))))
    os._exit(0)


def _answer(requests: "SimpleQueue[Request]", answers: BinaryIO, memory: memoryview) -> None:
    request, data = requests.get()
    admitted = request.get("admitted", False)
    is_document = "page" in request or "config" not in request
    limit_memory((DOCUMENT_BYTES if admitted else SMALL_DOCUMENT_BYTES) if is_document else WORKER_BYTES)

    def wait_for_turn() -> None:
        nonlocal admitted
        _send(answers, {"large": True})
        requests.get()
        admitted = True  # for all pages of a document
        limit_memory(DOCUMENT_BYTES if is_document else WORKER_BYTES)

    def admit(plan: DecodingPlan) -> bool:
        if plan.needed > LARGE_PICTURE_BYTES and not admitted:
            wait_for_turn()
        return True

    try:
        try:
            head, *payload = _work(request, data, admit, memory)
        except MemoryError:
            if admitted or not is_document:
                raise
            wait_for_turn()
            head, *payload = _work(request, data, admit, memory)
    except MemoryError:
        name = request["name"]
        _send_error(answers, ImageError(f"{name} does not fit in memory", "Make the picture smaller first."))
    except MllamaError as error:
        _send_error(answers, error)
    else:
        size = sum(map(len, payload))
        if size > len(memory):
            _send(answers, {**head, "payload": size}, *payload)
            return
        end = 0
        for each in payload:
            begin, end = end, end + len(each)
            if not (isinstance(each, memoryview) and each.obj is memory.obj):  # else it is there
                memory[begin:end] = each
        _send(answers, {**head, "payload": size, "shared": True})


def _work(request: Mapping[str, Any], data: bytes, admit: Admit, memory: memoryview) -> tuple[Any, ...]:
    """Return the head of an answer, and the bytes that follow it. Raise MllamaError or MemoryError.

    The pixels of a canvas are in ``memory`` if they fit.
    """
    name = request["name"]
    with suppress(OSError):  # what it has as a relative path is then not found
        os.chdir(request.get("folder", ""))
    path = Path(request.get("path", name))
    sent = ImagePart(data, name) if "bytes" in request else None
    if "clipboard" in request:
        from mllama_cli.processing.clipboard import grab_clipboard_image

        found = grab_clipboard_image()
        return {"name": found.name}, found.data
    if "config" not in request:  # so that images need not wait for these imports
        from mllama_cli.processing.excerpts import count_pages, make_excerpts

        if "excerpts" not in request:
            return ({"pages": count_pages(path)},)
        pictures = make_excerpts(sent or path, name, **request["excerpts"], admit=admit)
        head = {"names": [each.name for each in pictures], "sizes": [len(each.data) for each in pictures]}
        return head, *(each.data for each in pictures)
    config = ImageProcessorConfig(**request["config"])

    def buffer(size: int) -> memoryview:
        return memory[:size] if size <= len(memory) else memoryview(bytearray(size))

    if "page" in request:
        from mllama_cli.processing.excerpts import page_picture

        image = prepare_image(page_picture(path, request["page"], config, admit), config, buffer=buffer)
    else:
        image = prepare_image(sent or read_image(path), config, admit, buffer)
    file = b"" if sent else image.data
    if not request.get("canvas", True):
        return _described(image), b"", file
    size = image.canvas.pixels.nbytes
    return _described(image), memory[:size] if size <= len(memory) else image.canvas.pixels.data.cast("B"), file


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


def _send(answers: BinaryIO, head: Mapping[str, Any], *more: bytes | memoryview) -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    for each in more:
        answers.write(each)
    answers.flush()


if __name__ == "__main__":
    main()
