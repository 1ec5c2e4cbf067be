"""Keeps a live chat in the store as it goes. A disk that fails is told once, and the chat goes on without."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mllama_cli.chat.storage.saved import SYSTEM
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.chat.dialogue import LiveChat
    from mllama_cli.chat.storage.store import ChatStore, SavedChat


class Saving:
    """``store`` None keeps nothing (--no-log)."""

    def __init__(self, terminal: Terminal, store: "ChatStore | None", current: "SavedChat | None" = None) -> None:
        self.terminal = terminal
        self.store = store
        self.current = current

    @property
    def label(self) -> str:
        """How the chat can be named in /load and `mllama history`."""
        if self.store is None:
            return "not saved"
        if self.current is None:
            return "nothing yet"
        return self.current.name or str(self.current.id)

    def save(self, chat: "LiveChat") -> None:
        """Bring the store up to the chat's state."""
        if self.store is None or (self.current is None and not chat.conversation.messages):
            return
        try:
            if self.current is None:
                self.current = self.store.create(chat.engine.name)
            self.current = self.store.save(
                self.current, chat.conversation, model=chat.engine.name, settings=_settings(chat)
            )
        except MllamaError as error:
            self.terminal.error(error.message, error.hint)
            self.terminal.note("From here on this chat is not saved.")
            self.store = None

    def start_anew(self) -> None:
        """What follows is another conversation."""
        self.current = None

    def branch(self) -> None:
        """What follows is kept as a chat of its own, so that the one so far stays whole."""
        if self.current is not None:
            self.terminal.note(f"The whole chat so far stays saved: `mllama history show {self.label}`.")
        self.current = None

    def needed(self) -> "ChatStore":
        """The store. Raises UsageError where nothing is kept."""
        if self.store is None:
            raise UsageError("This chat is not saved (--no-log)", "Start without --no-log to save and load.")
        return self.store

    def open(self, name: str, chat: "LiveChat") -> "SavedChat":
        """Go on with a saved chat."""
        saved = self.needed().load(name)
        self.current = saved
        restore(chat, saved)
        return saved


def restore(chat: "LiveChat", saved: "SavedChat") -> None:
    """Bring a saved chat's conversation and settings into a live one."""
    chat.clear()
    system, *said = saved.whole.messages or (None,)
    if system is not None and system.role == "system":
        chat.system, chat.conversation = system.text, Conversation(tuple(said))
    else:
        chat.system, chat.conversation = "", saved.whole
    sampling: dict[str, Any] = saved.settings.get("sampling") or {}
    known = {name: value for name, value in sampling.items() if hasattr(chat.sampling, name)}
    if "stop" in known:
        known["stop"] = tuple(known["stop"])
    chat.set_sampling(**known)


def _settings(chat: "LiveChat") -> dict[str, Any]:
    return {SYSTEM: chat.system, "sampling": asdict(chat.sampling)}
