"""What makes the text of prompts: a checkpoint's tokenizer and chat template. Doesn't import torch."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.errors import MllamaError
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.system.torch_libraries import load_libraries


@dataclass(frozen=True)
class PromptText:
    """A tokenizer and a chat template, which is None for a base model."""

    tokenizer: MllamaTokenizer
    template: ChatTemplate | None

    @classmethod
    def from_pretrained(cls, folder: Path) -> "PromptText":
        """Read the files of a checkpoint folder. Raise CheckpointError."""
        tokenizer = MllamaTokenizer.from_pretrained(folder)
        return cls(tokenizer, ChatTemplate.from_pretrained(folder, tokenizer.special_names))


def read_ahead(folder: Path) -> PromptText | None:
    """Read a checkpoint's tokenizer, half a second, while torch's libraries load, and start its template's worker.

    For a process that is about to import torch. Return None where a file is damaged, which is reported when all files
    are read in order.
    """
    load_libraries()
    with suppress(MllamaError):
        text = PromptText.from_pretrained(folder)
        if text.template is not None:
            text.template.start()
        return text
    return None
