"""`mllama chat` without a question, on a terminal: opens the interactive chat."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ChatNotFoundError, MllamaError, UsageError
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Look
    from mllama_cli.chat.storage.store import ChatStore, SavedChat
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine


def open_store(terminal: Terminal, *, wanted: bool) -> "ChatStore | None":
    """The saved chats; None if they are not ``wanted``, or cannot be kept (which is said)."""
    if not wanted:
        return None
    from mllama_cli.chat.storage.store import ChatStore

    try:
        return ChatStore()
    except MllamaError as error:
        terminal.error(error.message, error.hint)
        terminal.note("This chat is not saved.")
        return None


def find_saved(name: str | None, *, last: bool) -> "SavedChat | None":
    """The chat to go on with. Raises UsageError where both or none such are asked for, ChatNotFoundError."""
    if name is None and not last:
        return None
    if name is not None and last:
        raise UsageError("--continue and --resume both say which chat to go on with", "Leave one of the two out.")
    from mllama_cli.chat.storage.store import ChatStore

    saved = ChatStore().last() if name is None else ChatStore().load(name)
    if saved is None:
        raise ChatNotFoundError("There is no chat to go on with: nothing was saved yet", "Start with `mllama chat`.")
    return saved


def run_chat(
    terminal: Terminal,
    engine: "Engine",
    engine_of: "Callable[[Path, str], Engine]",
    sampling_for: "Callable[[Engine], Sampling]",
    *,
    flags: Mapping[str, Any],
    images: Sequence[ImagePart],
    system: str | None,
    store: "ChatStore | None",
    saved: "SavedChat | None",
    look: "Look",
) -> None:
    """Load the model, greet, and chat until the person leaves.

    ``flags`` and ``system`` are what the command line says of sampling and system message: they win over a saved one.
    """
    from mllama_cli.chat.autosave import Saving, restore
    from mllama_cli.chat.commands.registry import COMMANDS
    from mllama_cli.chat.dialogue import LiveChat
    from mllama_cli.chat.repl import Repl
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.prompt import ChatPrompt, CommandHelp

    def loaded(engine: "Engine", *, vision: bool) -> "Engine":
        with StatusLine(terminal) as status:
            for event in engine.load_weights(vision=vision):
                status.event(event)
        return engine

    def other(name: str) -> "Engine":
        from mllama_cli.hub.catalog import resolve

        return loaded(engine_of(resolve(name), name), vision=bool(chat.conversation.images))

    chat = LiveChat(engine, sampling_for(engine), system or "")
    saving = Saving(terminal, store, saved)
    if saved is not None:
        restore(chat, saved)
        chat.set_sampling(**flags)
        if system is not None:
            chat.system = system
    loaded(engine, vision=bool(images) or bool(chat.conversation.images))
    prompt = ChatPrompt(
        terminal,
        history_file=history_file(),
        commands=[CommandHelp(action.names, action.usage, action.kind, action.help) for action in COMMANDS],
        complete_models=_models,
        complete_chats=lambda: [chat.name or str(chat.id) for chat in store.chats()] if store else [],
    )
    repl = Repl(terminal, chat, prompt, saving, load_engine=other, default_sampling=sampling_for, look=look)
    terminal.err.print(f"[bold]{engine.name}[/]  [dim]/? for help, /bye leaves[/]")
    if saved is not None and chat.last_answer:
        repl.replay()
    for image in images:
        repl.show_picture(chat.attach(image))
    repl.run()


def history_file() -> Path | None:
    """Where typed lines are kept; None where MLLAMA_NOHISTORY forbids it."""
    import os

    from mllama_cli.system.paths import state_folder

    return None if os.environ.get("MLLAMA_NOHISTORY") else state_folder() / "history"


def _models() -> list[str]:
    from mllama_cli.hub.catalog import ALIASES, BUILT_IN, installed

    return [*(entry.name for entry in installed()), BUILT_IN, *ALIASES]
