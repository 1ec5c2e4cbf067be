"""The read-eval-print loop of the interactive chat."""

from mllama_cli.chat.commands.registry import find_command
from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import MllamaError


class Repl:
    """Reads the user's lines until /bye or Ctrl-D."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def run(self) -> None:
        """Handle one line after another; an error does not end the chat."""
        shell = self.shell
        while not shell.leaving:
            draft, shell.draft = shell.draft, ""
            if not draft:
                shell.dialogue.cancel_edit()
            try:
                text = shell.source.ask(shell.dialogue.chips, draft)
            except EOFError:
                return
            if shell.source.cleared:
                shell.dialogue.cancel_edit()
            try:
                self.handle(text)
            except MllamaError as error:
                shell.terminal.error(error.message, error.hint)
                if shell.dialogue.editing:  # what was edited is not sent yet
                    shell.draft = text
            except KeyboardInterrupt:
                shell.stopped()
            except BrokenPipeError:  # nobody reads any more
                raise
            except Exception as error:
                ours = _explained(error)
                shell.terminal.error(ours.message, ours.hint)

    def handle(self, text: str) -> None:
        """Run a command, or send a message with the images it names. Raise MllamaError."""
        found = find_command(text)
        if found is not None:
            command, argument = found
            self.shell.dialogue.cancel_edit()
            command(self.shell, argument)
            return
        dropped = find_images(text)
        self.shell.attach(*dropped.paths)
        dialogue = self.shell.dialogue
        if dropped.text.strip() or dialogue.attached_text:  # an image alone waits for its question
            self.shell.send(dialogue.compose(dropped.text), typed=dropped.text)


def _explained(error: Exception) -> MllamaError:
    """Return what an unforeseen error of one line means."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return MllamaError(f"{error.strerror or error}{where}", "The chat goes on.")
    if isinstance(error, RuntimeError | MemoryError):
        from mllama_cli.engine.device import is_out_of_memory, memory_shortage

        if is_out_of_memory(error):
            return memory_shortage()
    return MllamaError(
        f"This line failed unexpectedly: {type(error).__name__}: {error}", "The chat goes on. Please report this."
    )
