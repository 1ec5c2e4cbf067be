"""`mllama completion`: print the script with which a shell completes commands, options, models and chats."""

import re
from enum import StrEnum
from typing import Annotated

import typer

from mllama_cli.cli.options import Debug


class ShellName(StrEnum):
    """Shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


INSTALL_HINTS = {
    ShellName.BASH: "# In ~/.bashrc:  source <(mllama completion bash)",
    ShellName.ZSH: "# In ~/.zshrc, after compinit:  source <(mllama completion zsh)",
    ShellName.FISH: "# mllama completion fish > ~/.config/fish/completions/mllama.fish",
    ShellName.POWERSHELL: "# In $PROFILE:  mllama completion powershell | Out-String | Invoke-Expression",
}

# Where a script calls us. A traceback after Ctrl-C would disturb the line that the user is typing.
_CALL = re.compile(r"complete_bash \$1|complete_zsh mllama|\(commandline -cp\) mllama|^ +mllama(?= \|)", re.MULTILINE)


def completion(
    shell: Annotated[ShellName, typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.")],
    debug: Debug = False,
) -> None:
    """Print the completion script for a shell; its first line says where to put it."""
    from mllama_cli.terminal.console import Terminal

    Terminal().result(script(shell))


def script(shell: ShellName) -> str:
    """Return the script, as stored in completions/."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    text = get_completion_script(prog_name="mllama", complete_var="_MLLAMA_COMPLETE", shell=shell.value)
    text = _CALL.sub(rf"\g<0> 2>{'$null' if shell is ShellName.POWERSHELL else '/dev/null'}", text)
    lines = text.strip().splitlines()
    # zsh reads #compdef only in the first line.
    first = [lines.pop(0)] if lines[0].startswith("#compdef") else []
    return "\n".join([*first, INSTALL_HINTS[shell], *lines]) + "\n"
