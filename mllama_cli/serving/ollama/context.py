"""The ``context`` of /api/generate: token ids that a client sends back to go on with an answer.

After each image token follow 16 numbers that spell the image's digest, as an id alone would not say which image it was.
ollama itself loses the images of a context.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.text import shown
from mllama_cli.processing.limits import MAX_IMAGES
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.errors import FieldError

WORD_DIGITS = 4
"""Hexadecimal digits of a digest in one number, which any client's integers hold."""
DIGEST_WORDS = 16

_HINT = "Send the context of an earlier answer of this server."


@dataclass(frozen=True)
class Context:
    """The ids of earlier turns and the digests of their images, in the order of their image tokens."""

    ids: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()


def read_context(context: Sequence[Any], image_token: int | None, vocabulary: int) -> Context:
    """Return what a client sent back; ``image_token`` is None if the model is text-only. Raise FieldError."""
    ids: list[int] = []
    digests: list[str] = []
    numbers = enumerate(context)
    for index, id_ in numbers:
        if type(id_) is int and id_ == image_token:
            digests.append("".join(_digest_digits(context, index, numbers)))
        elif type(id_) is not int or not 0 <= id_ < vocabulary:
            raise FieldError("context", f"context[{index}] is not a token of this model: {shown(id_)}", _HINT)
        ids.append(id_)
    if len(digests) > MAX_IMAGES:
        raise FieldError("context", f"context has {len(digests)} images, and at most {MAX_IMAGES} are read")
    return Context(tuple(ids), tuple(digests))


def write_context(inputs: ModelInputs, answer: Sequence[int], image_token: int) -> list[int]:
    """Return the context after an answer, for ``read_context``."""
    written: list[int] = []
    images = iter(inputs.images)
    for id_ in inputs.ids:
        written.append(id_)
        if id_ == image_token:
            digest = next(images).digest
            written += (int(digest[at : at + WORD_DIGITS], 16) for at in range(0, len(digest), WORD_DIGITS))
    return [*written, *(id_ for id_ in answer if id_ != image_token)]


def after(
    context: Context,
    inputs: ModelInputs,
    eos: Container[int],
    bos: int | None,
    find: Callable[[str], ImagePart | None],
) -> ModelInputs:
    """Return a prompt that follows the turns in ``context``, whose last answer has lost the token that ended it.

    ``find`` returns an image by its digest. Raise FieldError for one that neither it nor the prompt has.
    """
    if not context.ids:
        return inputs
    sent = {image.digest: image for image in inputs.images}
    images: list[ImagePart] = []
    for number, digest in enumerate(context.digests, 1):
        image = sent.get(digest) or find(digest)
        if image is None:
            raise FieldError(
                "context",
                f"image {number} of the context is not in this server's memory any more",
                "Send the same file again in images, or leave out context and begin a new conversation.",
            )
        images.append(image)
    end = [id_ for id_ in inputs.ids if id_ in eos][-1:]  # the template ends each turn with it
    turn = inputs.ids[1:] if inputs.ids[:1] == (bos,) else inputs.ids
    ids = (*context.ids, *([] if context.ids[-1] in eos else end), *turn)
    return replace(inputs, ids=ids, images=(*images, *inputs.images))


def _digest_digits(context: Sequence[Any], at: int, numbers: Iterator[tuple[int, Any]]) -> Iterator[str]:
    """Yield the hexadecimal digits of a digest, which the next of ``numbers`` spell."""
    for _ in range(DIGEST_WORDS):
        _, number = next(numbers, (at, None))
        if type(number) is not int or not 0 <= number < 16**WORD_DIGITS:
            raise FieldError("context", f"context[{at}] is an image, and the numbers after it do not name one", _HINT)
        yield f"{number:0{WORD_DIGITS}x}"
