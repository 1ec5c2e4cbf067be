"""Open the interactive chat: `mllama chat` without a question, on a terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.cli import complete
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ChatNotFoundError, UsageError
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import SavedChat
    from mllama_cli.cli.chat_request import ChatRequest
    from mllama_cli.engine.engine import Engine
    from mllama_cli.terminal.type_ahead import TypeAhead


def find_chat(name: str | None, *, last: bool) -> "SavedChat | None":
    """Return the chat to continue, if any is asked for. Raise UsageError or ChatNotFoundError."""
    if name is None and not last:
        return None
    if name is not None and last:
        raise UsageError("--continue and --resume both say which chat to continue", "Leave one of them out.")
    from mllama_cli.chat.storage.store import ChatStore

    saved = ChatStore().last() if name is None else ChatStore().load(name)
    if saved is None:
        raise ChatNotFoundError("There is no chat to continue: nothing was saved yet", "Start with `mllama chat`.")
    return saved


def run_chat(
    terminal: Terminal,
    engine: "Engine",
    request: "ChatRequest",
    images: Sequence[ImagePart],
    saved: "SavedChat | None",
    type_ahead: "TypeAhead",
) -> None:
    """Load the model, greet, and chat until the user leaves.

    Sampling and system message of the command line override the saved chat's.
    """
    from mllama_cli.chat.autosave import Autosave, restore
    from mllama_cli.chat.commands.registry import COMMANDS
    from mllama_cli.chat.dialogue import Dialogue
    from mllama_cli.chat.repl import Repl
    from mllama_cli.chat.shell import DisplayOptions, Shell
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.prompt import ChatPrompt

    def loaded(engine: "Engine", *, vision: bool) -> "Engine":
        with StatusLine(terminal) as status:
            for event in engine.load_weights(vision=vision):
                status.event(event)
        return engine

    def other(name: str) -> "Engine":
        from mllama_cli.hub.catalog import resolve

        compute = replace(request.compute, adapter=None)  # adapters belong to the model that they were given with
        return loaded(compute.open_engine(resolve(name), name), vision=bool(dialogue.conversation.images))

    store = ChatStore() if request.saves else None
    system = request.system(saved)
    dialogue = Dialogue(engine, request.sampling_for(engine), system or "")
    if saved is not None:
        restore(dialogue, saved)
        dialogue.set_sampling(**request.sampling)
        if system is not None:
            dialogue.system = system
    loaded(engine, vision=bool(images) or bool(dialogue.conversation.images))
    prompt = ChatPrompt(
        terminal,
        history_file=history_file(),
        commands=COMMANDS,
        complete_models=lambda: complete.models(""),
        complete_chats=lambda: [chat.name or str(chat.id) for chat in store.chats()] if store else [],
        type_ahead=type_ahead,
    )
    shell = Shell(
        terminal,
        dialogue,
        prompt,
        Autosave(terminal, store, saved),
        load_engine=other,
        default_sampling=request.sampling_for,
        display=DisplayOptions(
            verbose=request.verbose,
            preview=not request.output.no_preview and request.settings.preview is not False,
            theme=request.settings.theme or "auto",
            background=type_ahead.background(),
        ),
    )
    terminal.err.print(engine.name, style="bold", end="  ")
    terminal.note("/? for help, /bye leaves")
    if saved is not None:
        shell.show_resumed(saved)
    shell.attach_images(images)
    Repl(shell).run()


def history_file() -> Path | None:
    """Return the file for typed lines, or None if MLLAMA_NOHISTORY is set."""
    import os

    from mllama_cli.system.paths import state_folder

    return None if os.environ.get("MLLAMA_NOHISTORY") else state_folder() / "history"
