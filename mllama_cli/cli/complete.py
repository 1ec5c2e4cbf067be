"""Names for shell completion. Errors complete nothing: they must not reach the line that the user is typing."""

from mllama_cli.core.errors import MllamaError


def models(incomplete: str) -> list[str]:
    """Return models on this machine, the built-in one and aliases."""
    from mllama_cli.hub.catalog import ALIASES, BUILT_IN, installed

    try:
        here = [entry.name for entry in installed()]
    except (MllamaError, OSError):
        here = []
    return _beginning(incomplete, [*here, BUILT_IN, *ALIASES])


def installed_models(incomplete: str) -> list[str]:
    """Return models on this machine."""
    from mllama_cli.hub.catalog import installed

    try:
        return _beginning(incomplete, [entry.name for entry in installed()])
    except (MllamaError, OSError):
        return []


def aliases(incomplete: str) -> list[str]:
    """Return names that can be downloaded."""
    from mllama_cli.hub.catalog import ALIASES

    return _beginning(incomplete, list(ALIASES))


def chats(incomplete: str) -> list[str]:
    """Return names of saved chats, and numbers of those without a name."""
    from mllama_cli.chat.storage.store import ChatStore

    try:
        return _beginning(incomplete, [chat.name or str(chat.id) for chat in ChatStore().chats()])
    except (MllamaError, OSError):
        return []


def devices(incomplete: str) -> list[str]:
    return _beginning(incomplete, ["auto", "cpu", "cuda", "cuda:0"])


def dtypes(incomplete: str) -> list[str]:
    from mllama_cli.core.settings import DTYPE_CHOICES

    return _beginning(incomplete, list(DTYPE_CHOICES))


def quantizations(incomplete: str) -> list[str]:
    from mllama_cli.core.settings import QUANTIZATIONS

    return _beginning(incomplete, list(QUANTIZATIONS))


def setting_names(incomplete: str) -> list[str]:
    """Return the keys of the config file."""
    from mllama_cli.core.settings import KEYS

    return _beginning(incomplete, list(KEYS))


def caption_styles(incomplete: str) -> list[str]:
    from mllama_cli.captioning.prompts import STYLES

    return _beginning(incomplete, list(STYLES))


def existing_choices(incomplete: str) -> list[str]:
    from mllama_cli.core.caption_events import EXISTING

    return _beginning(incomplete, list(EXISTING))


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.lower().startswith(incomplete.lower())]
