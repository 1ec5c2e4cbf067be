"""Choose who answers: the server that MLLAMA_HOST names, a running engine, one started now, or this process."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.cli.common import resolve_model
from mllama_cli.cli.options import HOST_VARIABLE, KEY_VARIABLE, ComputeOptions, SharingOptions, adapter_folders
from mllama_cli.core.errors import EngineError, MllamaError, ModelNotFoundError, UsageError

if TYPE_CHECKING:
    from mllama_cli.core.answerer import Answerer
    from mllama_cli.core.settings import Settings
    from mllama_cli.remote.answerer import RemoteAnswerer
    from mllama_cli.remote.engines import EngineKey
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal

COLD_STARTS_WITHIN = 600.0
"""Seconds between two loads of a model after which nothing is said about keeping it in memory."""


@dataclass(frozen=True)
class ModelChoice:
    """The model of a command. ``folder`` is None if it is on the machine that MLLAMA_HOST names."""

    name: str
    folder: Path | None
    host: str = ""

    @property
    def where(self) -> str:
        """Return what identifies the model in a record of what was done with it."""
        return str(self.folder) if self.folder is not None else f"{self.host} {self.name}"


class Answerers:
    """Opens models for one command.

    ``compute`` and ``sharing`` are the command's own options, which the environment and ``settings`` complete. With
    ``verbose``, a line says who answers.
    """

    def __init__(
        self,
        terminal: "Terminal",
        compute: ComputeOptions,
        sharing: SharingOptions,
        settings: "Settings",
        *,
        verbose: bool = False,
    ) -> None:
        self._terminal, self._verbose = terminal, verbose
        self._sharing = sharing.with_defaults(settings)
        if self._sharing.host:
            _require_none_of(compute, self._sharing.host)
        self._asked = compute.model or os.environ.get("MLLAMA_MODEL")
        self.compute = compute.with_defaults(settings)

    def choose(self, default: str | None = None) -> ModelChoice:
        """Return the model that was asked for, else ``default``, else as ``resolve_model`` does."""
        if self._sharing.host:
            return ModelChoice(self._asked or "", None, self._sharing.host)
        return ModelChoice(*resolve_model(self.compute.model or default, self._terminal))

    def running(self, model: ModelChoice, status: "StatusLine") -> "Answerer | None":
        """Return the engine that holds the model, once it has loaded; None if none runs. Raise EngineError."""
        if model.folder is None:
            return self._elsewhere(model, status)
        if self._sharing.no_server:
            return None
        from mllama_cli.remote.engines import find

        if (key := self._key(model)) is None:
            return None
        found = find(key, keep_alive=self._sharing.seconds or None, progress=status.event)
        return None if found is None else self._remote(found, model, status)

    def opened(self, model: ModelChoice, status: "StatusLine") -> "Answerer":
        """Return the model in an engine that is started in the background, or else in this process.

        The weights need not be loaded yet.
        """
        assert model.folder is not None
        status.show("Starting")  # mostly the import of torch
        if self._sharing.seconds and (key := self._key(model)) is not None and self._can_start(status):
            return self._remote(self._started(key, model, status), model, status)
        self._say(status, "The model is loaded in this process.")
        if self._terminal.stderr_is_tty and not self._sharing.no_server and is_second_cold_start():
            status.clear()
            self._terminal.note("--keep-alive 10m keeps the model in memory for the next command.")
        return self.compute.open_engine(model.folder, model.name)

    def open(self, name: str, status: "StatusLine") -> "Answerer":
        """Return another model by its name, in a running engine or as ``opened`` does."""
        from mllama_cli.hub.catalog import resolve

        self.compute = replace(self.compute, adapter=None)  # adapters belong to the model that they were given with
        model = ModelChoice(name, None if self._sharing.host else resolve(name), self._sharing.host)
        return self.running(model, status) or self.opened(model, status)

    def _elsewhere(self, model: ModelChoice, status: "StatusLine") -> "RemoteAnswerer":
        from mllama_cli.remote.answerer import connect
        from mllama_cli.remote.client import Address

        address = Address.parse(self._sharing.host, os.environ.get(KEY_VARIABLE) or None)
        found = connect(address, progress=status.event)
        if model.name and not _is_same(model.name, found.about.name):
            raise ModelNotFoundError(
                f"The server on {address} holds {found.about.name}, not {model.name}",
                f"Leave out -m, or unset {HOST_VARIABLE} to use the models of this machine.",
            )
        return self._remote(found, model, status)

    def _started(self, key: "EngineKey", model: ModelChoice, status: "StatusLine") -> "RemoteAnswerer":
        from mllama_cli.remote.start import start

        return start(model.name, key, self._sharing.seconds, progress=status.event)

    def _remote(self, found: "RemoteAnswerer", model: ModelChoice, status: "StatusLine") -> "RemoteAnswerer":
        self._say(status, f"The running engine on {found.client.address} answers.")
        if model.folder is not None:
            found.call_model(model.name)
            if not found.info.background:  # whose context is the model's own
                found.open_longer = lambda: self._longer(found, model, status)
            if self._sharing.seconds and (key := self._key(model)) is not None:
                found.reconnect = lambda: self._started(key, model, status)  # it may end before the next question
        return found

    def _longer(self, found: "RemoteAnswerer", model: ModelChoice, status: "StatusLine") -> "Answerer":
        """Return the model in this process, for a conversation that is longer than a server's context."""
        assert model.folder is not None
        self._say(
            status,
            f"The conversation is longer than the context of the engine on {found.client.address}: the model is loaded "
            f"in this process.",
        )
        return self.compute.open_engine(model.folder, model.name)

    def _say(self, status: "StatusLine", text: str) -> None:
        if self._verbose:
            status.clear()
            self._terminal.note(text)

    def _key(self, model: ModelChoice) -> "EngineKey | None":
        """Return what a running engine must agree with; None if a folder cannot be read."""
        from mllama_cli.remote.engines import EngineKey

        compute = self.compute
        assert model.folder is not None
        try:
            return EngineKey.of(
                model.folder,
                compute.device or "auto",
                compute.dtype or "auto",
                compute.quantize,
                compute.exact,
                adapter_folders(compute.adapter),
                compute.image_kv,
                compute.fast,
            )
        except OSError:
            return None

    def _can_start(self, status: "StatusLine") -> bool:
        """Return whether an engine in the background can be reached; say why not."""
        from mllama_cli.remote.engines import usable_folder

        try:
            usable_folder()
        except EngineError as error:
            status.clear()
            self._terminal.note(f"The model is not kept in memory. {error.message}")
            return False
        return True


def _require_none_of(compute: ComputeOptions, host: str) -> None:
    """Raise UsageError for options that say how to load a model, which the server on ``host`` has done."""
    for name in ("device", "dtype", "quantize", "exact", "fast", "adapter", "image_kv"):
        if getattr(compute, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is for a model on this machine, and {HOST_VARIABLE} names a server ({host})",
                "Leave it out, or add --no-server.",
            )


def _is_same(asked: str, served: str) -> bool:
    """Return whether two names mean the same model."""
    from mllama_cli.hub.catalog import hub_id, is_built_in

    if is_built_in(asked) or is_built_in(served):
        return is_built_in(asked) and is_built_in(served)
    return (hub_id(asked) or asked).lower() == (hub_id(served) or served).lower()


def is_second_cold_start() -> bool:
    """Note that a model is loaded; return, once for each user, whether another was loaded some minutes ago."""
    from mllama_cli.system.paths import state_folder

    file, said = state_folder() / "cold-start", state_folder() / "cold-start-said"
    try:
        if said.exists():
            return False
        recent = file.exists() and 0 <= time.time() - file.stat().st_mtime < COLD_STARTS_WITHIN
        file.parent.mkdir(parents=True, exist_ok=True)
        (said if recent else file).touch()
    except OSError:
        return False
    return recent


def warm_engines() -> str:
    """Return a sentence about the running engines that hold memory, and how to end them; empty if there are none."""
    from mllama_cli.core.text import human_size
    from mllama_cli.remote.answerer import ask_about
    from mllama_cli.remote.engines import running

    held = []
    for address in running():
        try:
            info = ask_about(address)
        except MllamaError:
            continue
        held.append(f"{info.about.name} ({human_size(info.memory)} on {info.about.device})")
    if not held:
        return ""
    return f"In memory already: {', '.join(held)}; `mllama stop MODEL` or `mllama stop --all` ends them."
