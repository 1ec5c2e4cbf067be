"""Save a dialogue as it grows. A write failure is reported once, and the chat continues unsaved."""

import shlex
from dataclasses import asdict, replace
from typing import Any

from mllama_cli.chat.dialogue import Dialogue
from mllama_cli.chat.storage.names import unreadable
from mllama_cli.chat.storage.saved import SYSTEM_KEY, SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import SETTABLE, Sampling
from mllama_cli.terminal.console import Terminal


class Autosave:
    """Keeps the store in step with a dialogue. Without a ``store`` (--no-log) nothing is saved.

    ``failed`` is set once writing failed; only /save tries again.
    """

    def __init__(self, terminal: Terminal, store: ChatStore | None, current: SavedChat | None = None) -> None:
        self.terminal = terminal
        self.store = store
        self.current = current
        self.failed = False

    @property
    def label(self) -> str:
        """The chat's name or number in /load and `mllama history`, or why it has none."""
        if self.store is None or self.failed:
            return "not saved"
        if self.current is None:
            return "nothing yet"
        return self.current.name or str(self.current.id)

    def save(self, dialogue: Dialogue) -> None:
        """Save the dialogue's current state."""
        if self.store is None or self.failed or (self.current is None and not dialogue.conversation.messages):
            return
        try:
            self.current = self._write(self.store, dialogue)
        except MllamaError as error:
            self.terminal.error(error.message, error.hint)
            self.terminal.note("This chat is no longer saved. /export FILE writes it to a file, /save tries again.")
            self.failed = True

    def saved(self, dialogue: Dialogue) -> SavedChat:
        """Save and return the chat. Raise UsageError without a store or a question, ChatStoreError if that fails."""
        store = self.require_store()
        self.snapshot(dialogue)
        self.current = self._write(store, dialogue)
        self.failed = False
        return self.current

    def snapshot(self, dialogue: Dialogue) -> SavedChat:
        """Return the chat as it is in memory, saved or not. Raise UsageError if nothing was asked yet."""
        if self.current is None and not dialogue.conversation.messages:
            raise UsageError("This chat is still empty", "Ask something first.")
        name = dialogue.engine.about.name
        chat = self.current or SavedChat.new(name)
        return replace(chat, conversation=dialogue.conversation, model=name, settings=_settings(dialogue))

    def _write(self, store: ChatStore, dialogue: Dialogue) -> SavedChat:
        name = dialogue.engine.about.name
        before = self.current or SavedChat.new(name)
        saved = store.save(before, dialogue.conversation, model=name, settings=_settings(dialogue))
        note_fork(self.terminal, before, saved)
        return saved

    def detach(self) -> None:
        """Save what follows as another chat."""
        self.current = None

    def branch(self) -> None:
        """Like ``detach``, with a note that the chat so far stays saved in full."""
        if self.current is not None:
            self.terminal.note(f"The whole chat so far stays saved: `mllama history show {shlex.quote(self.label)}`.")
        self.detach()

    def require_store(self) -> ChatStore:
        """Return the store. Raise UsageError if there is none."""
        if self.store is None:
            raise UsageError("This chat is not saved (--no-log)", "Start without --no-log to save and load.")
        return self.store

    def open(self, name: str, dialogue: Dialogue) -> SavedChat:
        """Continue a saved chat in ``dialogue``."""
        saved = self.require_store().load(name)
        self.current = saved
        restore(dialogue, saved)
        return saved


def note_fork(terminal: Terminal, before: SavedChat, saved: SavedChat) -> None:
    """Say that another mllama continued the chat meanwhile, if that is why it was saved as another one."""
    if before.id and saved.id != before.id:
        label = before.name or before.id
        terminal.note(
            f"Chat {label} was continued elsewhere meanwhile, so this conversation is chat {saved.id} from here on. "
            "Nothing is lost: `mllama history list` shows both."
        )


def restore(dialogue: Dialogue, saved: SavedChat) -> None:
    """Load a saved chat's conversation and settings into a dialogue. Raise ChatStoreError if a setting is damaged."""
    sampling = _sampling(saved)
    dialogue.clear()
    system, *said = saved.whole.messages or (None,)
    if system is not None and system.role == "system":
        dialogue.system, dialogue.conversation = system.text, Conversation(tuple(said))
    else:
        dialogue.system, dialogue.conversation = "", saved.whole
    dialogue.set_sampling(**sampling)


def _sampling(saved: SavedChat) -> dict[str, Any]:
    stored = saved.settings.get("sampling") or {}
    if not isinstance(stored, dict):
        raise unreadable(saved.id, "its settings are damaged")
    known = {name: value for name, value in stored.items() if name in SETTABLE}
    unset = {name for name, value in known.items() if value is None and getattr(Sampling, name, ...) is None}
    try:
        return {name: None if name in unset else SETTABLE[name].converted(value, name) for name, value in known.items()}
    except UsageError as error:
        raise unreadable(saved.id, error.message) from error


def _settings(dialogue: Dialogue) -> dict[str, Any]:
    return {SYSTEM_KEY: dialogue.system, "sampling": asdict(dialogue.sampling)}
