"""Names for shell completion. An error offers nothing: it must not disturb the line that the user is typing."""

import typer

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.text import one_line


def models(incomplete: str) -> list[str]:
    """Return installed models, the built-in one and aliases."""
    from mllama_cli.hub.catalog import BUILT_IN, MODEL_ALIASES

    return _starting_with(incomplete, [*installed_models(""), BUILT_IN, *MODEL_ALIASES])


def installed_models(incomplete: str) -> list[str]:
    """Return installed models."""
    from mllama_cli.hub.catalog import installed

    try:
        return _starting_with(incomplete, [entry.name for entry in installed()])
    except (MllamaError, OSError):
        return []


def runnable_models(incomplete: str) -> list[str]:
    """Return installed models and the built-in one."""
    from mllama_cli.hub.catalog import BUILT_IN

    return _starting_with(incomplete, [*installed_models(""), BUILT_IN])


def importable(incomplete: str) -> list[str]:
    """Return ollama's models that can be imported."""
    from mllama_cli.hub.ollama_store import PREFIX
    from mllama_cli.hub.ollama_store import importable as found

    return _starting_with(incomplete, [PREFIX + model.name for model in found()])


def aliases(incomplete: str) -> list[str]:
    """Return names that can be downloaded."""
    from mllama_cli.hub.catalog import MODEL_ALIASES

    return _starting_with(incomplete, list(MODEL_ALIASES))


def chats(incomplete: str) -> list[tuple[str, str]]:
    """Return names of saved chats, and numbers of those without a name; with their titles, which some shells show."""
    from mllama_cli.chat.storage.store import ChatStore

    try:
        titles = {chat.name or str(chat.id): one_line(chat.title, 60) for chat in ChatStore().chats()}
    except (MllamaError, OSError):
        return []
    return [(name, titles[name]) for name in _starting_with(incomplete, list(titles))]


def devices(incomplete: str) -> list[str]:
    return _starting_with(incomplete, ["auto", "cpu", "cuda", "cuda:0", "cuda:all"])


def dtypes(incomplete: str) -> list[str]:
    from mllama_cli.core.settings import DTYPE_CHOICES

    return _starting_with(incomplete, list(DTYPE_CHOICES))


def quantizations(incomplete: str) -> list[str]:
    from mllama_cli.core.settings import QUANTIZATIONS

    return _starting_with(incomplete, list(QUANTIZATIONS))


def image_kv_formats(incomplete: str) -> list[str]:
    from mllama_cli.core.settings import IMAGE_KV_FORMATS

    return _starting_with(incomplete, list(IMAGE_KV_FORMATS))


def setting_names(incomplete: str) -> list[str]:
    """Return the keys of the config file."""
    from mllama_cli.core.settings import KEYS

    return _starting_with(incomplete, list(KEYS))


def setting_values(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the values of the setting whose key is on the line, if there are few."""
    from mllama_cli.core.settings import KEYS

    key = ctx.params.get("key")
    if key == "model":
        return runnable_models(incomplete)
    if key == "device":
        return devices(incomplete)
    return _starting_with(incomplete, list(KEYS[key].choices)) if key in KEYS else []


def released_shapes(incomplete: str) -> list[str]:
    """Return the aliases of the models whose shape `mllama bench --random` takes."""
    return _starting_with(incomplete, ["11b", "90b"])


def caption_styles(incomplete: str) -> list[str]:
    from mllama_cli.captioning.prompts import STYLES

    return _starting_with(incomplete, list(STYLES))


def existing_choices(incomplete: str) -> list[str]:
    from mllama_cli.core.caption_events import EXISTING

    return _starting_with(incomplete, list(EXISTING))


def _starting_with(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.lower().startswith(incomplete.lower())]
