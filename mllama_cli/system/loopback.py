"""A port of this machine in place of a private Unix socket, for those who can read its record: this user alone."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from mllama_cli.system.safe_files import read_regular

LOOPBACK = "127.0.0.1"
_TOKEN_BYTES = 32
_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True)
class PortRecord:
    """The port that a process listens on, and the token that it asks for."""

    port: int
    token: str
    process: int

    @classmethod
    def read(cls, path: Path) -> "PortRecord":
        """Return the record in a file. Raise OSError, or FileNotFoundError while it is not yet whole."""
        try:
            fields = json.loads(read_regular(str(path), _MAX_RECORD_BYTES, follow=True))
            return cls(int(fields["port"]), str(fields["token"]), int(fields["process"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FileNotFoundError(f"{path} is not complete") from error


def listen_on_loopback(path: Path, backlog: int) -> tuple[socket.socket, str]:
    """Return a listening socket and its token, which a new file of mode 0600 tells this user. Raise OSError."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.bind((LOOPBACK, 0))
        bound.listen(backlog)
        record = PortRecord(bound.getsockname()[1], secrets.token_urlsafe(_TOKEN_BYTES), os.getpid())
        created = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(created, "w", encoding="ascii") as file:
                json.dump(asdict(record), file)
        except OSError:  # the disk is full
            path.unlink()
            raise
    except BaseException:
        bound.close()
        raise
    return bound, record.token
