"""All errors that users see. Each says what is wrong and, in its hint, what to do.

MllamaError                    exit code 1
|-- UsageError                 exit code 2: the request itself cannot be carried out
|   |-- ImageNotFoundError     no such image, or a folder where an image should be
|   |-- ModelNotFoundError     no model of that name on this machine or on the hub
|   |-- ChatNotFoundError      no saved chat of that name or number
|   `-- DeviceError            a device that this machine does not have
|-- ImageError                 bytes that cannot be read as an image
|-- CheckpointError            a model folder that is incomplete or damaged
|-- TemplateError              a chat template that is missing or refuses the conversation
|-- ContextLengthError         a conversation longer than the model can hold
|-- MemoryShortageError        the model does not fit this machine
|-- DownloadError              a download from the hub or a web server failed
|-- QuantizationError          a quantized model that could not be written
|-- ChatStoreError             saved chats that cannot be read or written
|-- CaptionError               captions that cannot be written
|-- EngineError                a running engine that does not start, does not answer, or has ended
|-- BusyError                  a server that takes no request now
|   |-- QueueFullError         too many requests are waiting
|   `-- ShuttingDownError      the server is ending
`-- RemovalError               a model that must not or could not be deleted
"""

import re

from mllama_cli.core.text import hide_passwords

COPY_AGAIN = "Download or copy the file again."
"""The hint for a damaged model file."""


class MllamaError(Exception):
    """Base of the tree.

    Args:
        message: one line that says what is wrong, with the name of the file, model or option.
        hint: one line that says what to do about it.

    Neither shows the passwords of addresses in it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = hide_passwords(message)
        self.hint = hide_passwords(hint)
        super().__init__(self.message)

    @property
    def kind(self) -> str:
        """The type for scripts: the class's name without "Error" in snake_case, as "chat_not_found", or "failure"."""
        if type(self) is MllamaError:
            return "failure"
        name = type(self).__name__.removesuffix("Error")
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class UsageError(MllamaError):
    """The request itself cannot be carried out."""

    exit_code = 2


class ImageNotFoundError(UsageError):
    """No such image, or a folder where an image should be."""


class ModelNotFoundError(UsageError):
    """No model of that name on this machine or on the hub."""


class ChatNotFoundError(UsageError):
    """No saved chat of that name or number."""


class DeviceError(UsageError):
    """A device that this machine does not have."""


class ImageError(MllamaError):
    """Bytes that cannot be read as an image."""


class CheckpointError(MllamaError):
    """A model folder that is incomplete or damaged."""


class TemplateError(MllamaError):
    """A chat template that is missing or refuses the conversation."""


class ContextLengthError(MllamaError):
    """A conversation longer than the model can hold."""


class MemoryShortageError(MllamaError):
    """The model does not fit this machine."""


class DownloadError(MllamaError):
    """A download from the hub or a web server failed."""


class QuantizationError(MllamaError):
    """A quantized model that could not be written."""


class ChatStoreError(MllamaError):
    """Saved chats that cannot be read or written."""


class CaptionError(MllamaError):
    """Captions that cannot be written."""


class EngineError(MllamaError):
    """A running engine that does not start, does not answer, or has ended."""

    is_absent = False
    """Whether none was listening, or it ended before it said anything, so that another may be asked."""


class BusyError(MllamaError):
    """A server that takes no request now."""


class QueueFullError(BusyError):
    """Too many requests are waiting."""


class ShuttingDownError(BusyError):
    """The server is ending."""


class RemovalError(MllamaError):
    """A model that must not or could not be deleted."""


def unusable_proxy(error: Exception) -> DownloadError:
    """Return what a web client means that cannot be made: a SOCKS proxy without socksio, or a malformed proxy."""
    if isinstance(error, ImportError):
        return DownloadError(
            "the proxy setting cannot be used: SOCKS needs the socksio package",
            "Run `pip install socksio`, or unset ALL_PROXY.",
        )
    # The client's own text may quote a part of the proxy's password.
    return DownloadError(
        "the proxy setting cannot be used: it is not a valid address", "Check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY."
    )
