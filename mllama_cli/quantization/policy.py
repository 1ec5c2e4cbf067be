"""Choose the scheme of each linear layer from the user's options and the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import suggest
from mllama_cli.quantization.config_groups import VISION_MODULES
from mllama_cli.quantization.rounding import Method
from mllama_cli.quantization.schemes import PER_CHANNEL_8, Scheme
from mllama_cli.quantization.sensitivity import Measure, sensitive_linears


@dataclass(frozen=True)
class QuantizeOptions:
    """The ``scheme`` of the language model; ``keep`` and ``bits_for`` (4, 8 or 16) are exceptions by pattern.

    A shell pattern (``lm_head``, ``layers.0.*``, ``*.cross_attn.*``) is matched with the names of linear layers and
    their ends. Only patterns that begin with ``vision_model`` or ``multi_modal_projector`` match the vision tower.
    """

    scheme: Scheme
    method: Method = "search"
    keep: tuple[str, ...] = ()
    bits_for: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class LayerSchemes:
    """The ``schemes`` of quantized linear layers, the names of those ``kept``, and notes for the user."""

    schemes: Mapping[str, Scheme]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def choose_schemes(
    linears: Mapping[str, int], config: MllamaTextConfig, options: QuantizeOptions, measure: Measure
) -> LayerSchemes:
    """Return the schemes of all linear layers, given by name with their number of inputs.

    Raises UsageError, with similar names, for a pattern that matches none.
    """
    exceptions: dict[str, int] = {}
    for pattern, bits in (*options.bits_for, *((pattern, 16) for pattern in options.keep)):
        exceptions.update(dict.fromkeys(_fitting(pattern, linears), bits))
    # A tied output layer is the embedding, which is not quantized.
    language = [
        name for name in linears if not _in_vision(name) and not (name == "lm_head" and config.tie_word_embeddings)
    ]
    high = sensitive_linears(language, config, measure) if options.scheme.bits == 4 else set()
    wanted: dict[str, Scheme] = {name: PER_CHANNEL_8 if name in high else options.scheme for name in language}
    for name, bits in exceptions.items():
        if bits == 16:
            wanted.pop(name, None)
        elif name == "lm_head" and config.tie_word_embeddings:
            raise UsageError("lm_head is tied to the embedding in this model and stays as it is")
        else:
            wanted[name] = options.scheme if bits == options.scheme.bits else Scheme(bits, 0 if bits == 8 else 128)
    schemes = {name: scheme.fitted(linears[name]) for name, scheme in wanted.items()}
    if not schemes:
        raise UsageError("With these patterns nothing is left to quantize", "Keep fewer layers.")
    return LayerSchemes(
        schemes, tuple(name for name in linears if name not in schemes), _notes(wanted, schemes, linears)
    )


def short(name: str) -> str:
    """Return a module's name as users write it: ``layers.3.mlp.down_proj``, ``lm_head``, ``vision_model. ...``."""
    for prefix in ("model.language_model.", "model."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _in_vision(name: str) -> bool:
    return short(name).startswith(VISION_MODULES)


def _fitting(pattern: str, linears: Mapping[str, int]) -> list[str]:
    wanted = short(canonical(pattern))
    vision = wanted.startswith(VISION_MODULES)
    fitting = [
        name
        for name in linears
        if _in_vision(name) == vision
        and (fnmatchcase(short(name), wanted) or (not vision and fnmatchcase(short(name), f"*.{wanted}")))
    ]
    if not fitting:
        names = [short(name) for name in linears]
        ends = {name.rpartition(".")[2] for name in names}
        raise UsageError(
            f"No linear layer fits the pattern {pattern!r}",
            suggest(wanted, [*ends, *names], count=3).rstrip()
            or "Examples: lm_head, down_proj, layers.0.*, *.cross_attn.*",
        )
    return fitting


def _notes(wanted: Mapping[str, Scheme], got: Mapping[str, Scheme], linears: Mapping[str, int]) -> tuple[str, ...]:
    """Return a note for each kind of matrix that its requested groups do not divide."""
    changed: dict[tuple[int, int, int], int] = {}
    for name, scheme in got.items():
        if scheme != wanted[name]:
            key = (wanted[name].group_size, linears[name], scheme.group_size)
            changed[key] = changed.get(key, 0) + 1
    return tuple(
        f"Groups of {size} do not divide {inputs} inputs: {count} matrices get "
        + (f"groups of {instead}" if instead else "one scale per channel")
        for (size, inputs, instead), count in changed.items()
    )
