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
`-- RemovalError               a model that must not or could not be deleted
"""

COPY_AGAIN = "Download or copy the file again."
"""The hint for a damaged model file."""


class MllamaError(Exception):
    """Base of the tree.

    Args:
        message: one line that says what is wrong, with the name of the file, model or option.
        hint: one line that says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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


class RemovalError(MllamaError):
    """A model that must not or could not be deleted."""
