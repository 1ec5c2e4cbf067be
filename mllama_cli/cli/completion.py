"""`mllama completion SHELL`: print the script that makes Tab complete commands, options, models and chats."""

from enum import StrEnum
from typing import Annotated

import typer

from mllama_cli.cli.options import Debug


class Shell(StrEnum):
    """Shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


HOW = {
    Shell.BASH: "# In ~/.bashrc:  source <(mllama completion bash)",
    Shell.ZSH: "# In ~/.zshrc, after compinit:  source <(mllama completion zsh)",
    Shell.FISH: "# mllama completion fish > ~/.config/fish/completions/mllama.fish",
    Shell.POWERSHELL: "# In $PROFILE:  mllama completion powershell | Out-String | Invoke-Expression",
}


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.")],
    debug: Debug = False,
) -> None:
    """Print the completion script of a shell; its first line says where it goes."""
    from mllama_cli.terminal.console import Terminal

    Terminal().stdout.write(script(shell))


def script(shell: Shell) -> str:
    """Return the script as it is stored in completions/."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    text = get_completion_script(prog_name="mllama", complete_var="_MLLAMA_COMPLETE", shell=shell.value)
    lines = text.strip().splitlines()
    # zsh reads #compdef only in the first line, when the script is in a folder of $fpath.
    first = [lines.pop(0)] if lines[0].startswith("#compdef") else []
    return "\n".join([*first, HOW[shell], *lines]) + "\n"
