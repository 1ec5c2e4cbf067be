"""Ask a running engine over HTTP: on a Unix socket of this user, or over the network."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mllama_cli.core.errors import EngineError, MllamaError, UsageError
from mllama_cli.core.text import one_line
from mllama_cli.remote.events import line, read_error
from mllama_cli.system.loopback import LOOPBACK, PortRecord
from mllama_cli.system.private_sockets import has_unix_sockets, is_own_peer

DEFAULT_PORT = 11434
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""How long an engine may say nothing: one that works sends a heartbeat every few seconds."""
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Address:
    """Where an engine listens: on a Unix socket, or at a host and a port. ``key`` is what a server asks for.

    A port whose number and key are in a file of this user has that ``file``, too.
    """

    file: Path | None = None
    secure: bool = False
    host: str = "localhost"
    port: int = DEFAULT_PORT
    folder: str = ""
    key: str | None = None

    @classmethod
    def of_file(cls, file: Path) -> "Address":
        """Return the address of an engine of this user by its socket, or by its record where there are no sockets.

        Raise an absent EngineError if there is no record.
        """
        if has_unix_sockets():
            return cls(file)
        try:
            record = PortRecord.read(file)
        except OSError as error:
            raise _absent(file, error) from error
        return cls(file, host=LOOPBACK, port=record.port, key=record.token)

    @classmethod
    def parse(cls, text: str, key: str | None = None) -> "Address":
        """Return the address in a URL, or in a host with or without a port. Raise UsageError for others.

        >>> Address.parse("gpu-box"), Address.parse("https://gpu-box/llama").port
        (Address('http://gpu-box:11434'), 443)
        """
        whole = text.strip()
        try:
            parts = urlsplit(whole if "://" in whole else f"http://{whole}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise UsageError(f"{one_line(text)} is not the address of a server", "Expected: http://gpu-box:11434")
        default = {"https": 443, "http": 80}[parts.scheme] if "://" in whole else DEFAULT_PORT
        return cls(None, parts.scheme == "https", parts.hostname, port or default, parts.path.rstrip("/"), key)

    def __str__(self) -> str:
        if self.file is not None:
            return str(self.file)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.folder}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def connection(self) -> http.client.HTTPConnection:
        if self.file is not None and self.key is None:
            return _SocketConnection(self.file)
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=CONNECT_SECONDS)


class _SocketConnection(http.client.HTTPConnection):
    """A connection over a Unix socket at whose other end this user is."""

    def __init__(self, file: Path) -> None:
        super().__init__("localhost")
        self._file = file

    def connect(self) -> None:
        end = time.monotonic() + CONNECT_SECONDS
        while True:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connected.settimeout(CONNECT_SECONDS)
                connected.connect(str(self._file))
                if not is_own_peer(connected):
                    raise PermissionError(f"{self._file} belongs to another user")
                self.sock = connected
                return
            except BlockingIOError:  # so many clients connect that the queue is full
                connected.close()
                if time.monotonic() > end:
                    raise TimeoutError from None
                time.sleep(0.02)
            except OSError:
                connected.close()
                raise


class Client:
    """Requests to one address. Each has a connection of its own, so that closing it cancels that request alone.

    ``silence`` is how many seconds the engine may say nothing.
    """

    def __init__(self, address: Address, silence: float = SILENCE_SECONDS) -> None:
        self.address, self._silence = address, silence

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the object that a request is answered with. Raise the error that the engine reports, or EngineError.

        The cause of an EngineError is an OSError if there was no connection.
        """
        with closing(self.lines(method, path, body)) as lines:
            return next(lines)

    def lines(self, method: str, path: str, body: dict[str, Any] | None = None) -> Generator[dict[str, Any]]:
        """Yield the objects of an answer's lines as they come. Closing the generator cancels the request.

        Raise the error that the engine reports, also halfway, or EngineError if the engine says nothing or ends: the
        caller must know the last object.
        """
        heard = False
        with closing(self.address.connection()) as connection, self._explained(lambda: heard):
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self._silence)
            headers = {"Content-Type": "application/json", "Connection": "close"}
            if self.address.key:
                headers["Authorization"] = f"Bearer {self.address.key}"
            data = line(body) if body is not None else None
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered without reading all
                connection.request(method, f"{self.address.folder}{path}", data, headers)
            answer = connection.getresponse()
            while text := answer.readline(MAX_LINE_BYTES):
                heard = True
                if text.strip():
                    yield self._object(text, answer.status)
        raise _gone(heard)

    def _object(self, text: bytes, status: int) -> dict[str, Any]:
        """Return the object in a line. Raise the error that it is."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
        if status not in (404, 405) and (error := read_error(data)) is not None:
            if status == 401:
                raise MllamaError(error.message, "Set MLLAMA_API_KEY to the server's key.")
            raise error
        if status != 200 or not isinstance(data, dict):
            raise EngineError(
                f"What answers on {self.address} is not mllama (status {status})",
                "Check the address, and that `mllama serve` of this version runs there.",
            )
        return data

    @contextmanager
    def _explained(self, heard: Callable[[], bool]) -> Generator[None]:
        """Raise an EngineError for what can go wrong with a connection."""
        try:
            yield
        except TimeoutError as error:
            hint = "End it with `mllama stop`, or leave it out with --no-server."
            if self.address.file is None:
                hint = "Check the address and the network."
            raise EngineError(f"The engine on {self.address} does not answer", hint) from error
        except (ConnectionResetError, BrokenPipeError, http.client.HTTPException) as error:
            raise _gone(heard()) from error
        except OSError as error:
            raise _absent(self.address, error) from error


def _absent(where: object, error: OSError) -> EngineError:
    """Return the error for an address that cannot be connected to."""
    absent = EngineError(f"Nothing answers on {where}: {error.strerror or error}", "Check that the server runs.")
    absent.is_absent = isinstance(error, FileNotFoundError | ConnectionRefusedError | PermissionError)
    return absent


def _gone(heard: bool) -> EngineError:
    """Return the error for an engine that was ended, by whom ever, and had said something or nothing before."""
    error = EngineError("The engine ended before the answer was complete", "Ask again.")
    error.is_absent = not heard
    return error
