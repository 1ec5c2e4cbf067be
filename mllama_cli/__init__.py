"""mllama: Llama 3.2 Vision on your own GPU or CPU, from the terminal or from Python.

The public names load on first use (PEP 562), so importing the package, and ``mllama --help``, never imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mllama_cli.core.version import __version__ as __version__

if TYPE_CHECKING:
    from mllama_cli.core.config import GenerationConfig as GenerationConfig
    from mllama_cli.core.config import ImageProcessorConfig as ImageProcessorConfig
    from mllama_cli.core.config import MllamaConfig as MllamaConfig
    from mllama_cli.core.config import MllamaTextConfig as MllamaTextConfig
    from mllama_cli.core.config import MllamaVisionConfig as MllamaVisionConfig
    from mllama_cli.core.conversation import Conversation as Conversation
    from mllama_cli.core.conversation import ImagePart as ImagePart
    from mllama_cli.core.conversation import Message as Message
    from mllama_cli.core.conversation import TextPart as TextPart
    from mllama_cli.core.errors import MllamaError as MllamaError
    from mllama_cli.core.events import EncodingImage as EncodingImage
    from mllama_cli.core.events import GenerationStats as GenerationStats
    from mllama_cli.core.events import LoadProgress as LoadProgress
    from mllama_cli.core.events import Notice as Notice
    from mllama_cli.core.events import ReadingPrompt as ReadingPrompt
    from mllama_cli.core.events import Token as Token
    from mllama_cli.core.grammar import Grammar as Grammar
    from mllama_cli.core.sampling import Sampling as Sampling
    from mllama_cli.engine.batch.run import Reply as Reply
    from mllama_cli.engine.engine import Engine as Engine
    from mllama_cli.engine.engine import load as load
    from mllama_cli.engine.session import Session as Session
    from mllama_cli.model.mllama import MllamaForConditionalGeneration as MllamaForConditionalGeneration
    from mllama_cli.model.mllama import MllamaModel as MllamaModel
    from mllama_cli.model.text import MllamaForCausalLM as MllamaForCausalLM
    from mllama_cli.model.text import MllamaTextModel as MllamaTextModel
    from mllama_cli.model.vision import MllamaVisionModel as MllamaVisionModel
    from mllama_cli.processing.documents import read_images as read_images
    from mllama_cli.processing.image_processor import MllamaImageProcessor as MllamaImageProcessor
    from mllama_cli.processing.processor import MllamaProcessor as MllamaProcessor
    from mllama_cli.processing.sources import read_image as read_image


_NAMES = {
    "core.config": "GenerationConfig ImageProcessorConfig MllamaConfig MllamaTextConfig MllamaVisionConfig",
    "core.conversation": "Conversation ImagePart Message TextPart",
    "core.errors": "MllamaError",
    "core.events": "EncodingImage GenerationStats LoadProgress Notice ReadingPrompt Token",
    "core.grammar": "Grammar",
    "core.sampling": "Sampling",
    "engine.batch.run": "Reply",
    "engine.engine": "Engine load",
    "engine.session": "Session",
    "model.mllama": "MllamaForConditionalGeneration MllamaModel",
    "model.text": "MllamaForCausalLM MllamaTextModel",
    "model.vision": "MllamaVisionModel",
    "processing.documents": "read_images",
    "processing.image_processor": "MllamaImageProcessor",
    "processing.processor": "MllamaProcessor",
    "processing.sources": "read_image",
}
_HOMES = {name: f"mllama_cli.{home}" for home, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
