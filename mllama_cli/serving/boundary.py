"""The last resort for errors that no handler foresaw."""

import logging
from pathlib import PurePath

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllama_cli.core.text import one_line
from mllama_cli.serving.access_log import MAX_PATH
from mllama_cli.serving.errors import error_response

logger = logging.getLogger("mllama.serving")


class ErrorBoundary:
    """Answer what no handler foresaw with a plain 500, and log where it happened without what the request said."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:
            return
        except Exception as error:
            path = one_line(scope["path"], MAX_PATH)
            logger.error("%s %s failed: %s at %s", scope["method"], path, type(error).__name__, _place(error))
            if begun:
                return  # the server closes the connection, so that the answer does not look complete
            await error_response(scope["path"], 500, "The server failed to answer this request")(scope, receive, send)


def _place(error: Exception) -> str:
    """Return the file and line of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
