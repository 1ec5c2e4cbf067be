"""Convert conversations to model inputs, with the chat template, the tokenizer and the image processor."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mllama_cli.core.answerer import Prompt, RawPrompt, text_only
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import TemplateError, UsageError
from mllama_cli.core.text import replace_surrogates
from mllama_cli.processing.chat_template import ChatTemplate, RefusedError, fold_system, template_messages
from mllama_cli.processing.decoding import decode_image
from mllama_cli.processing.image_processor import ImageTiles, MllamaImageProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer

IMAGE_TOKEN = "<|image|>"
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

SEVERAL_TURNS = (
    "There are images in several turns: text sees only the latest group of images before it (the model's own rule)."
)


@dataclass(frozen=True)
class ModelInputs:
    """One prompt: token ids, and the images in the order of their image tokens.

    Tiles are made only of images that a session has not encoded yet (``MllamaProcessor.tiles``).
    """

    ids: tuple[int, ...]
    images: tuple[ImagePart, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes for the user about how the prompt was built."""
    prefill: str = ""
    """The text at the end of ``ids`` that the answer begins with."""


class MllamaProcessor:
    """Convert conversations to ModelInputs.

    ``image_processor`` is None for text-only checkpoints, ``chat_template`` for base models.
    ``max_tokens`` is the model's context: a text that is far longer is refused before it is tokenized.
    """

    def __init__(
        self,
        tokenizer: MllamaTokenizer,
        image_processor: MllamaImageProcessor | None,
        chat_template: ChatTemplate | None,
        image_token_id: int,
        max_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat_template = chat_template
        self.image_token_id = image_token_id
        self.max_tokens = max_tokens

    @classmethod
    def from_pretrained(
        cls, folder: Path, image_token_id: int = 128256, *, vision: bool = True, max_tokens: int | None = None
    ) -> "MllamaProcessor":
        tokenizer = MllamaTokenizer.from_pretrained(folder)
        return cls(
            tokenizer,
            MllamaImageProcessor.from_pretrained(folder) if vision else None,
            ChatTemplate.from_pretrained(folder, tokenizer.special_names),
            image_token_id,
            max_tokens,
        )

    def prompt(self, prompt: Prompt) -> ModelInputs:
        """Return a conversation's prompt, or a raw one. Raise UsageError if the conversation has no question."""
        if isinstance(prompt, RawPrompt):
            return self.raw(prompt.text, prompt.images, prompt.prefill)
        prompt.require_answerable()
        return self(prompt)

    def __call__(self, conversation: Conversation) -> ModelInputs:
        """Return the prompt of a conversation by the checkpoint's own template, up to the start of the answer.

        If the conversation ends with the assistant, the beginning of the answer is part of the prompt.
        """
        if self.chat_template is None:
            raise TemplateError(
                "This checkpoint has no chat template, so it is a base model",
                "Use --raw to send it the prompt verbatim.",
            )
        if conversation.images:
            self.require_vision()
        notes = [SEVERAL_TURNS] if conversation.image_turns > 1 else []
        prefill = conversation.prefill
        asked = Conversation(conversation.messages[:-1]) if prefill else conversation
        # An unused private use character masks special tokens in the text: they must stay text.
        used = set(prefill + json.dumps(template_messages(asked), ensure_ascii=False))
        marker = next((chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in used), None)
        if marker is None:
            raise UsageError("The text has every private use character of Unicode", "Remove those that mean nothing.")
        try:
            prompt = self.chat_template.render(self._masked(template_messages(asked), marker))
        except RefusedError:
            if not (conversation.images and any(message.role == "system" for message in conversation)):
                raise
            prompt = self.chat_template.render(self._masked(template_messages(fold_system(asked)), marker))
            notes.append(
                "This model's chat template takes no system message along with images: "
                "the system text now opens the first user message."
            )
        if any(message.role == "tool" and not self._shows(prompt, message.text, marker) for message in asked):
            notes.append("This model's chat template leaves out tool messages.")
        prompt += self.tokenizer.mask(prefill, marker)
        ids = self.tokenizer.encode_markup(prompt, self.tokenizer.placeholders(marker), self.max_tokens)
        return replace(self._inputs(ids, conversation.images, notes), prefill=prefill)

    def raw(self, text: str, images: Sequence[ImagePart] = (), prefill: str = "") -> ModelInputs:
        """Return the prompt for a base model: image tokens, begin_of_text, then the text verbatim.

        Special tokens in the text are parsed as such. Images replace <|image|>, else they precede everything.
        ``prefill`` follows on a line of its own and begins the answer. Raise CheckpointError if the model has no
        begin_of_text.
        """
        text, prefill = replace_surrogates(text), replace_surrogates(prefill).rstrip(" \t")
        text = f"{text}\n{prefill}" if prefill else text
        if images:
            self.require_vision()
        bos = self.tokenizer.require_bos()
        if IMAGE_TOKEN not in text:
            text = IMAGE_TOKEN * len(images) + text
        if bos not in text:
            body = text
            while body.startswith(IMAGE_TOKEN):
                body = body.removeprefix(IMAGE_TOKEN)
            text = text[: len(text) - len(body)] + bos + body
        ids = self.tokenizer.encode_markup(text, max_tokens=self.max_tokens)
        return replace(self._inputs(ids, tuple(images), []), prefill=prefill)

    def tiles(self, image: ImagePart) -> ImageTiles:
        """Return the vision tower's input for one image, which is decoded unless it was prepared for this model."""
        processor = self.require_vision()
        return processor.normalise(decode_image(image, processor.config).canvas)

    def require_vision(self) -> MllamaImageProcessor:
        """Return the image processor. Raise UsageError if the model is text-only."""
        if self.image_processor is None:
            raise text_only()
        return self.image_processor

    def _shows(self, prompt: str, text: str, marker: str) -> bool:
        """Return whether a rendered prompt has a message's text, verbatim or as JSON."""
        masked = self.tokenizer.mask(text.strip(), marker)
        return masked in prompt or json.dumps(masked, ensure_ascii=False)[1:-1] in prompt

    def _masked(self, value: Any, marker: str) -> Any:
        """Return messages for the template with special tokens masked in every text, those of tool calls included."""
        match value:
            case str():
                return self.tokenizer.mask(value, marker)
            case list():
                return [self._masked(each, marker) for each in value]
            case dict():
                return {self._masked(key, marker): self._masked(each, marker) for key, each in value.items()}
        return value

    def _inputs(self, ids: list[int], images: tuple[ImagePart, ...], notes: list[str]) -> ModelInputs:
        found = ids.count(self.image_token_id)
        if found != len(images):
            raise UsageError(
                f"The prompt has {found} {IMAGE_TOKEN} tokens but there are {len(images)} images",
                "Write as many image tokens as there are images, or none.",
            )
        return ModelInputs(tuple(ids), images, tuple(notes))
