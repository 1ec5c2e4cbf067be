"""The model names that a server answers to."""

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import ModelNotFoundError
from mllama_cli.hub.catalog import BUILT_IN, MODEL_ALIASES, hub_id, is_built_in, short_name

OLLAMA_NAME = "llama3.2-vision"
"""What ollama calls this family of models."""
_LAYERS = {40: "11b", 100: "90b"}
"""The layers of the released language models, and what ollama's tags call their sizes."""


class ServedNames:
    """The names of the one model that a server has. ``main`` is the one that lists show."""

    def __init__(self, name: str, config: MllamaConfig) -> None:
        name = name.rstrip("/\\")
        is_path = hub_id(name) is None and any(mark in name for mark in "/\\")
        name = name.replace("\\", "/").rpartition("/")[2] if is_path or name.startswith((".", "/", "~")) else name
        id_ = hub_id(name)
        self.main = short_name(id_) if id_ else BUILT_IN if is_built_in(name) else name
        own = {self.main, name, *([id_] if id_ else []), *(a for a, full in MODEL_ALIASES.items() if full == id_)}
        self.size = _LAYERS.get(config.text_config.num_hidden_layers, "") if config.vision_config else ""
        """11b or 90b; empty for other shapes and for models without vision."""
        ollama = [OLLAMA_NAME, f"{OLLAMA_NAME}:{self.size}"] if self.size else []
        self.all = (self.main, *sorted(own - {self.main}), *ollama)
        self._known = {each.lower() for each in self.all}

    def require(self, asked: str) -> None:
        """Raise ModelNotFoundError, with the names that there are, unless ``asked`` names this model."""
        name = asked.lower().removesuffix(":latest")
        tag = name.removeprefix(f"{OLLAMA_NAME}:")
        if name in self._known or (self.size and tag != name and tag.startswith(f"{self.size}-")):
            return
        raise ModelNotFoundError(
            f"model {asked[:200]!r} is not here", f"This server has one model, called {' or '.join(self.all)}."
        )
