"""A shard, and one picture in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.shards.downloads import Download
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.text import shown

ShardForm = Literal["tar", "parquet"]
Content = bytes | Download | MllamaError


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of pictures. ``name`` is that of its output without the suffix; it may contain folders."""

    path: str
    name: str
    form: ShardForm


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is read of a shard.

    Attributes:
        image_column: the column of a parquet file, or the extension in a tar, that holds the pictures.
        key_column: the column of a parquet file that names them.
        texts: also read what prompts quote.
    """

    image_column: str | None = None
    key_column: str | None = None
    texts: bool = False


@dataclass(frozen=True, slots=True)
class ShardImage(ImageEntry):
    """A picture of a shard. ``path`` shows where it is; ``key`` is its name, which is unique in the shard.

    ``content`` are the file's bytes, its download in progress, or the reason why there is neither.
    """

    shard: Shard
    content: "Content" = field(repr=False)
    texts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """``txt`` and ``json`` of the sample, or the columns of a row as ``json``: what prompts quote."""

    @property
    def size(self) -> int:
        """The bytes that the picture holds in memory."""
        return len(self.content) if isinstance(self.content, bytes) else 0

    def read(self) -> ImagePart:
        """Return the picture's bytes. Raise the MllamaError that prevents it."""
        if isinstance(self.content, MllamaError):
            raise self.content
        if isinstance(self.content, Download):
            return self.content.result()
        if not self.content:
            raise ImageError(f"{self.path} is empty (0 bytes)", "Give a picture file with something in it.")
        return ImagePart(self.content, self.path)

    def variable(self, name: str) -> str:
        """Return what a prompt's {txt} or {json.field} stands for. Raise ImageError if the sample has no such field."""
        value: Any = self.texts
        for part in name.split("."):
            if isinstance(value, MllamaError):
                raise value
            if not isinstance(value, Mapping) or part not in value:
                raise ImageError(f"has no {name}, which the prompt quotes", _fields_hint(self.texts))
            value = value[part]
        if isinstance(value, MllamaError):
            raise value
        return "" if value is None else value if isinstance(value, str) else str(value)


def _fields_hint(texts: Mapping[str, Any]) -> str:
    fields = texts.get("json")
    names = ["txt"] if "txt" in texts else []
    names += [f"json.{name}" for name in fields] if isinstance(fields, Mapping) else []
    return f"It has {', '.join(names[:20])}." if names else f"It has no texts: {shown(list(texts))}."
