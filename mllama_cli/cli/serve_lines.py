"""What `mllama serve` says when it listens: where, and lines that can be pasted into a shell."""

import ipaddress
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllama_cli.serving.settings import ServerSettings

_OPEN = "Anyone who reaches this machine over the network can use the model: --api-key-file FILE asks for a key."


def port_lines(name: str, settings: "ServerSettings", port: int) -> list[str]:
    """Return the lines for a server on a port."""
    url, has_key = server_url(settings.host, port), settings.api_key is not None
    key = "$MLLAMA_API_KEY" if has_key else "none"
    create = f"OpenAI().chat.completions.create(model={name!r}, messages=[{{'role': 'user', 'content': 'Hello'}}])"
    python = f'python3 -c "from openai import OpenAI; print({create}.choices[0].message.content)"'
    lines = [
        f"Serving {name} on {url} (Ctrl-C stops it). Try it:",
        f"  curl {url}{_chat(name, has_key)}",
        f"  OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key} {python}",
    ]
    if has_key:  # which the ollama command cannot send
        return lines
    lines.append(f"  OLLAMA_HOST={url} ollama run {shlex.quote(name)}")
    return lines if _is_loopback(settings.host) else [*lines, _OPEN]


def server_url(host: str, port: int) -> str:
    """Return the URL of a server that is bound to ``host``, for programs of this machine."""
    return f"http://{_url_host(host)}:{port}"


def file_lines(name: str, settings: "ServerSettings", path: Path) -> list[str]:
    """Return the lines for a server on a Unix socket."""
    chat = _chat(name, settings.api_key is not None)
    return [
        f"Serving {name} on {path} (Ctrl-C stops it). Try it:",
        f"  curl --unix-socket {shlex.quote(str(path))} http://localhost{chat}",
    ]


def _chat(name: str, has_key: bool) -> str:
    """Return what follows the address in a call of curl."""
    header = ' -H "Authorization: Bearer $MLLAMA_API_KEY"' if has_key else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    return f"/v1/chat/completions{header} -d {shlex.quote(body)}"


def _url_host(host: str) -> str:
    """Return the host in a URL that reaches a server bound to ``host`` from this machine.

    >>> _url_host("0.0.0.0"), _url_host("::1")
    ('127.0.0.1', '[::1]')
    """
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach a server that is bound to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
