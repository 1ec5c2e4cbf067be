"""Open a LoRA adapter: which weights of a model it changes, and how. What a tensor does is read off its name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mllama_cli.checkpoint.adapters.settings import AdapterSettings, read_settings
from mllama_cli.checkpoint.files import is_adapter
from mllama_cli.checkpoint.header import read_header
from mllama_cli.checkpoint.names import canonical
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.system.files import is_file, is_folder

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"

_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.(?P<end>weight|bias))?"
)
_WRAPPED = re.compile(r"\.(modules_to_save(\.default)?|base_layer)\.")
_READABLE = ("F32", "F16", "BF16")
_TABLES = ("lm_head.weight", "embed_tokens.weight")


@dataclass(frozen=True)
class LowRank:
    """``scale`` times B A is added to a matrix; with a ``magnitude`` (DoRA), each row then gets that length."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None

    @property
    def rank(self) -> int:
        return self.a.info.shape[0]


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight, in this order.

    It is replaced by ``whole``; ``low_rank`` or, for an embedding, the transposed ``embedding`` is added; so is
    ``added`` times ``scale``.
    """

    whole: StoredTensor | None = None
    low_rank: LowRank | None = None
    embedding: LowRank | None = None
    added: tuple[StoredTensor, float] | None = None

    @property
    def is_low_rank(self) -> bool:
        """Return whether it adds a product of low rank and does nothing else."""
        plain = self.low_rank is not None and self.low_rank.magnitude is None
        return plain and self.whole is None and self.embedding is None and self.added is None

    @property
    def stored(self) -> Iterator[StoredTensor]:
        """Yield the adapter's tensors that it uses."""
        for each in (self.low_rank, self.embedding):
            if each is not None:
                yield from (each.a, each.b)
                if each.magnitude is not None:
                    yield each.magnitude
        if self.whole is not None:
            yield self.whole
        if self.added is not None:
            yield self.added[0]

    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the weights that this fits; ``wanted`` where any does."""
        if self.whole is not None:
            return self.whole.info.shape
        if self.low_rank is not None:
            return (self.low_rank.b.info.shape[0], self.low_rank.a.info.shape[1])
        if self.embedding is not None:
            return (self.embedding.a.info.shape[1], self.embedding.b.info.shape[0])
        return self.added[0].info.shape if self.added is not None else wanted


@dataclass
class _Parts:
    """The tensors of one module."""

    lora: dict[str, StoredTensor] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)


class Adapter:
    """The adapter in a folder. Raise CheckpointError if there is none, it is damaged, or of a kind that is not read.

    ``changes`` are by the names of weights in the adapter's own layout.
    """

    def __init__(self, folder: Path) -> None:
        if not is_folder(folder) or not is_adapter(folder):
            what = "is not an adapter: it has no adapter_config.json" if is_folder(folder) else "is not a folder"
            raise CheckpointError(f"{folder} {what}", "Name the folder of a LoRA adapter that PEFT saved.")
        self.folder = folder
        self.settings: AdapterSettings = read_settings(folder)
        self.file = folder / WEIGHTS_FILE
        if not is_file(self.file):
            pickled = is_file(folder / _PICKLED_FILE)
            raise CheckpointError(
                f"{folder} has its weights in {_PICKLED_FILE}, which may run code and is not read"
                if pickled
                else f"{folder} has no {WEIGHTS_FILE}",
                "Save the adapter again with a recent PEFT: it writes safetensors." if pickled else COPY_AGAIN,
            )
        self.tensors = {name: StoredTensor(self.file, name, info) for name, info in read_header(self.file).items()}
        self.changes: dict[str, Change] = {}
        for module, parts in self._modules().items():
            self._add(module, parts)
        if not self.changes:
            raise CheckpointError(f"{self.file} changes no weights", COPY_AGAIN)
        self._require_readable()

    @property
    def ranks(self) -> list[int]:
        """Return the ranks that occur, ascending."""
        found = (each for change in self.changes.values() for each in (change.low_rank, change.embedding))
        return sorted({each.rank for each in found if each is not None})

    def _modules(self) -> dict[str, _Parts]:
        modules: dict[str, _Parts] = {}
        for key, stored in self.tensors.items():
            name = key.removeprefix("base_model.model.")
            if (found := _LORA.fullmatch(name)) is not None:
                part = "bias" if found["end"] == "bias" else found["part"]
                if part == "bias" and found["part"] != "B":
                    raise self._damaged(key, "belongs to nothing")
                modules.setdefault(found["module"], _Parts()).lora[part] = stored
                continue
            module, _, attribute = _WRAPPED.sub(".", name).rpartition(".")
            if ".base_layer." in name and attribute == "weight":
                continue  # the base's own embeddings, which PEFT adds unasked
            modules.setdefault(module, _Parts()).whole[attribute] = stored
        return modules

    def _add(self, module: str, parts: _Parts) -> None:
        changes = {attribute: Change(whole=stored) for attribute, stored in parts.whole.items()}
        lora = dict(parts.lora)
        bias, magnitude = lora.pop("bias", None), lora.pop("magnitude_vector", None)
        if parts.lora:
            kind = "embedding_" if "embedding_A" in lora or "embedding_B" in lora else ""
            if set(lora) != {f"{kind}A", f"{kind}B"}:
                raise self._damaged(module, f"has {', '.join(sorted(lora)) or 'neither A nor B'} of its LoRA alone")
            a, b = lora[f"{kind}A"], lora[f"{kind}B"]
            if len(a.info.shape) != 2 or len(b.info.shape) != 2 or not 0 < a.info.shape[0] == b.info.shape[1]:
                raise self._damaged(module, f"has A {list(a.info.shape)} and B {list(b.info.shape)}")
            outputs = b.info.shape[0]
            if self.settings.uses_dora != (magnitude is not None) or (magnitude is not None and kind):
                raise self._damaged(module, "has a DoRA magnitude that its config does not ask for, or lacks one")
            if magnitude is not None and magnitude.info.shape != (outputs,):
                raise self._damaged(module, f"has a magnitude of {list(magnitude.info.shape)} for {outputs} outputs")
            scale = self.settings.scale(module, a.info.shape[0])
            change = LowRank(a, b, scale, magnitude)
            whole = parts.whole.get("weight")
            changes["weight"] = Change(whole, embedding=change) if kind else Change(whole, change)
            if bias is not None:
                changes["bias"] = Change(parts.whole.get("bias"), added=(bias, scale))
        for attribute, each in changes.items():
            name = f"{module}.{attribute}" if module else attribute
            self.changes[name] = each

    def _require_readable(self) -> None:
        for change in self.changes.values():
            for stored in change.stored:
                if stored.info.dtype not in _READABLE:
                    raise self._damaged(stored.stored_name, f"is stored as {shown(stored.info.dtype)}")

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Change]:
        """Return the changes by our names of a model's weights, whose dense ``shapes`` are given.

        Tables may have more rows than the model's. Raises CheckpointError if any weight of the adapter fits none.
        """
        fitting, lost = {}, []
        for name, change in self.changes.items():
            ours = next((each for each in _candidates(name) if each in shapes), None)
            if ours is None:
                lost.append(name)
                continue
            wanted, own = shapes[ours], change.shape(shapes[ours])
            if own != wanted and not (ours.endswith(_TABLES) and own[1:] == wanted[1:] and own[0] > wanted[0]):
                raise CheckpointError(
                    f"{self.folder}: what it adds to {shown(name)[1:-1]} has shape {list(own)}, "
                    f"the model's has {list(wanted)}",
                    self._made_for(),
                )
            fitting[ours] = change
        if lost:
            raise CheckpointError(
                f"{self.folder}: {len(lost)} of the {len(self.changes)} weights that it changes are not in the model: "
                f"{', '.join(shown(name)[1:-1] for name in lost[:2])}{', ...' * (len(lost) > 2)}",
                self._made_for(),
            )
        return fitting

    def _made_for(self) -> str:
        base = self.settings.base
        return f"The adapter was made for {base}." if base else "The adapter was made for another model."

    def _damaged(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is not a sound adapter: {shown(name)[1:-1]} {why}", COPY_AGAIN)


def _candidates(name: str) -> Iterator[str]:
    """Yield our possible names of a weight: the layouts of checkpoints, and one of a text-only model in a whole one."""
    ours = canonical(name)
    yield ours
    if ours.startswith("model.language_model."):
        yield "model." + ours.removeprefix("model.language_model.")
    elif ours.startswith("model."):
        yield "model.language_model." + ours.removeprefix("model.")
