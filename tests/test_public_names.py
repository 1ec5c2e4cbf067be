"""The names that the package promises to library users."""

import ast
import subprocess
import sys
from pathlib import Path

import mllama_cli

PROMISED = [
    "Conversation",
    "EncodingImage",
    "Engine",
    "GenerationConfig",
    "GenerationStats",
    "Grammar",
    "ImagePart",
    "ImageProcessorConfig",
    "LoadProgress",
    "Message",
    "MllamaConfig",
    "MllamaError",
    "MllamaForCausalLM",
    "MllamaForConditionalGeneration",
    "MllamaImageProcessor",
    "MllamaModel",
    "MllamaProcessor",
    "MllamaTextConfig",
    "MllamaTextModel",
    "MllamaVisionConfig",
    "MllamaVisionModel",
    "Notice",
    "ReadingPrompt",
    "Reply",
    "Sampling",
    "Session",
    "TextPart",
    "Token",
    "__version__",
    "load",
    "read_image",
    "read_images",
]


def test_every_promised_name_is_there_and_no_other() -> None:
    assert sorted(mllama_cli.__all__) == sorted(PROMISED)
    assert set(dir(mllama_cli)) == set(PROMISED)
    for name in PROMISED:
        assert getattr(mllama_cli, name).__doc__, f"{name} has no docstring"


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(mllama_cli.__file__).read_text(encoding="utf-8"))
    for_checkers = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mllama_cli.")
        for alias in node.names
    }
    assert for_checkers.pop("__version__") == "mllama_cli.core.version"
    assert for_checkers == mllama_cli._HOMES


def test_plain_data_needs_no_torch() -> None:
    code = "import sys; from mllama_cli import Conversation, ImagePart, MllamaConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
