"""Copy text to the system's clipboard."""

import base64
import os
import shutil
import subprocess
import sys

from mllama_cli.core.errors import MllamaError
from mllama_cli.terminal.console import Terminal

_OSC52_LIMIT = 74_994
"""Largest text in bytes that every terminal accepts (100,000 of base64)."""


def copy_text(terminal: Terminal, text: str) -> None:
    """Copy with the system's own program if there is one, else through the terminal (OSC 52, also over ssh).

    Raise MllamaError if neither works.
    """
    data = text.encode("utf-8", "replace")
    for command in _programs():
        if shutil.which(command[0]):
            try:
                # xclip keeps running to serve the clipboard: it must not hold our streams open.
                null = subprocess.DEVNULL
                subprocess.run(command, input=data, stdout=null, stderr=null, check=True, timeout=5)
                return
            except (OSError, subprocess.SubprocessError):
                continue
    if terminal.stdout_is_tty and len(data) <= _OSC52_LIMIT:
        terminal.stdout.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
        terminal.stdout.flush()
        return
    raise MllamaError("No clipboard found", "Install wl-clipboard or xclip, or use /export FILE.md.")


def _programs() -> list[list[str]]:
    if sys.platform == "darwin":
        return [["pbcopy"]]
    if sys.platform == "win32":
        return [["clip"]]
    programs = []
    if os.environ.get("WAYLAND_DISPLAY"):
        programs.append(["wl-copy"])
    if os.environ.get("DISPLAY"):
        programs += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if "microsoft" in os.uname().release.lower():
        programs.append(["clip.exe"])
    return programs
