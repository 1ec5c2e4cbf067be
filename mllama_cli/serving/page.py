"""The page at ``/``: a chat for a browser, or for anything else the line that ollama's clients look for."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

_RUNNING = "Ollama is running"  # what ollama answers here: clients compare the text


async def page(request: Request) -> Response:
    """Return the chat to a browser, and ollama's greeting to other clients."""
    if request.method == "HEAD" or "text/html" not in request.headers.get("accept", "").lower():
        return PlainTextResponse(_RUNNING, headers={"Vary": "Accept"})
    html, policy = _document()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
    }
    return HTMLResponse(html, headers=headers)


@cache
def _document() -> tuple[str, str]:
    """Return the page, and a policy that allows its own script and style and requests to this server alone."""
    html = Path(__file__).with_name("page.html").read_text("utf-8")
    script, style = (re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("script", "style"))
    assert script is not None
    assert style is not None
    policy = (
        f"default-src 'none'; script-src {_source(script[1])}; style-src {_source(style[1])}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
