"""A checkpoint's config.json, generation_config.json and preprocessor_config.json as frozen, checked data.

Every missing field takes the value of the released 11B instruct model. Unknown fields are ignored, so configs of other
transformers versions load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.core.parameter import between, declare, from_zero_to, one_of, one_to, parameters_of, positive
from mllama_cli.core.text import shown

Json = Mapping[str, Any]
Config = TypeVar("Config")

MODEL_TYPES = ("mllama", "mllama_text_model")
"""The model_type of the checkpoints that we run: whole models, and language models without the vision part."""

ASPECT_RATIOS: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
"""Tiles (high, wide) of each supported canvas, in the order of their aspect ratio ids, which start at 1."""

EXTRA_EMBEDDINGS = 8
"""Rows of embed_tokens after the vocabulary; the first is the image token's."""

# No model is as large as these; they keep a damaged config from exhausting memory or time.
MAX_LAYERS = 1000
MAX_WIDTH = 2**20
MAX_IDS = 2**24
MAX_TILES = 16
MAX_IMAGE_SIZE = 4096

DAMAGED = "The file may be damaged or made for another model."


def section(data: Json, name: str, where: str = "config.json") -> Json:
    """Return the object at ``name``; empty if it is missing or null. Raise CheckpointError for anything else."""
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {name} must be an object, not {shown(value)}", DAMAGED)
    return value


def checked(cls: type[Config], data: Json, where: str = "config.json", **given: Any) -> Config:
    """Return ``cls`` made from the entries of ``data`` that it declares as parameters; a null counts as missing.

    ``given`` are fields that are checked already. Raises CheckpointError, naming the entry, for a wrong type or range.
    """
    values = {}
    for name, parameter in parameters_of(cls).items():
        if name not in given and data.get(name) is not None:
            try:
                values[name] = parameter.converted(data[name], f"{where}: {name}")
            except UsageError as error:
                raise CheckpointError(error.message, DAMAGED) from error
    return cls(**values, **given)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(f"config.json: {message}", DAMAGED)


def _require_activation(data: Json, where: str, supported: Sequence[str]) -> None:
    found = data.get("hidden_act")
    _require(found in (None, *supported), f"{where}.hidden_act {shown(found)} is not supported ({supported[0]} is)")


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 frequency scaling. ``rope_type`` "default" means none."""

    rope_type: str = declare("llama3", "", *one_of(("llama3", "default")))
    factor: float = declare(8.0, "", *positive(MAX_WIDTH))
    low_freq_factor: float = declare(1.0, "", *positive(MAX_WIDTH))
    high_freq_factor: float = declare(4.0, "", *positive(MAX_WIDTH))
    original_max_position_embeddings: int = declare(8192, "", *one_to(MAX_IDS))

    @classmethod
    def from_dict(cls, data: Json) -> "RopeScaling":
        named = {**data, "rope_type": data.get("rope_type") or data.get("type")}
        scaling = checked(cls, named, "config.json: rope_scaling")
        _require(
            scaling.low_freq_factor < scaling.high_freq_factor,
            "the low_freq_factor of rope_scaling must be below its high_freq_factor",
        )
        return scaling


@dataclass(frozen=True)
class MllamaTextConfig:
    """The language model: self-attention layers with cross-attention layers at ``cross_attention_layers``."""

    vocab_size: int = declare(128256, "", *one_to(MAX_IDS))
    hidden_size: int = declare(4096, "", *one_to(MAX_WIDTH))
    intermediate_size: int = declare(14336, "", *one_to(MAX_WIDTH))
    num_hidden_layers: int = declare(40, "", *one_to(MAX_LAYERS))
    num_attention_heads: int = declare(32, "", *one_to(MAX_WIDTH))
    num_key_value_heads: int = declare(8, "", *one_to(MAX_WIDTH))
    cross_attention_layers: tuple[int, ...] = declare((3, 8, 13, 18, 23, 28, 33, 38), "", *from_zero_to(MAX_LAYERS))
    max_position_embeddings: int = declare(131072, "", *one_to(MAX_IDS))
    rms_norm_eps: float = declare(1e-5, "", *from_zero_to(1))
    rope_theta: float = declare(500000.0, "", *positive(1e12))
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = declare(False)
    bos_token_id: int = declare(128000, "", *from_zero_to(MAX_IDS))
    eos_token_id: tuple[int, ...] = declare((128001, 128008, 128009), "", *from_zero_to(MAX_IDS))
    pad_token_id: int = declare(128004, "", *from_zero_to(MAX_IDS))
    embedding_rows: int = 0
    """Rows of embed_tokens in the files, where they differ from vocab_size + EXTRA_EMBEDDINGS."""
    ranks: int = 1
    """Processes that share the heads and inner features: those given here are one's own (``shared_by``)."""

    @property
    def embeddings(self) -> int:
        """Return the number of rows of embed_tokens, which is that of the ids a prompt may hold."""
        return self.embedding_rows or self.vocab_size + EXTRA_EMBEDDINGS

    @property
    def head_dim(self) -> int:
        return self.hidden_size // (self.num_attention_heads * self.ranks)

    def shared_by(self, ranks: int) -> "MllamaTextConfig":
        """Return what each of ``ranks`` processes has: its heads and inner features, of the same width."""
        return replace(
            self,
            num_attention_heads=self.num_attention_heads // ranks,
            num_key_value_heads=self.num_key_value_heads // ranks,
            intermediate_size=self.intermediate_size // ranks,
            ranks=self.ranks * ranks,
        )

    @property
    def self_attention_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_hidden_layers) if i not in self.cross_attention_layers)

    @classmethod
    def from_dict(cls, data: Json, where: str = "text_config") -> "MllamaTextConfig":
        rope = section(data, "rope_parameters")
        scaling = section(data, "rope_scaling") or rope
        config = checked(
            cls,
            {**data, "rope_theta": rope.get("rope_theta", data.get("rope_theta"))},
            f"config.json: {where}" if where else "config.json",
            rope_scaling=RopeScaling.from_dict(scaling) if scaling else RopeScaling(),
        )
        _require_activation(data, where or "text_config", ("silu", "swish"))
        width, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        _require(width % (2 * heads) == 0, f"hidden_size {width} is not a multiple of {heads} heads of even width")
        _require(heads % kv == 0, f"{heads} attention heads are not a multiple of {kv} key/value heads")
        _require(
            all(i < config.num_hidden_layers for i in config.cross_attention_layers)
            and len(set(config.cross_attention_layers)) == len(config.cross_attention_layers),
            f"cross_attention_layers {shown(list(config.cross_attention_layers))} exceed {config.num_hidden_layers} "
            "layers, or one is named twice",
        )
        return config


@dataclass(frozen=True)
class MllamaVisionConfig:
    """The vision tower: local layers, then gated global layers, over at most ``max_num_tiles`` tiles of one image."""

    hidden_size: int = declare(1280, "", *one_to(MAX_WIDTH))
    intermediate_size: int = declare(5120, "", *one_to(MAX_WIDTH))
    num_hidden_layers: int = declare(32, "", *one_to(MAX_LAYERS))
    num_global_layers: int = declare(8, "", *from_zero_to(MAX_LAYERS))
    attention_heads: int = declare(16, "", *one_to(MAX_WIDTH))
    num_channels: int = declare(3, "", *one_of((3,)))
    image_size: int = declare(560, "", *one_to(MAX_IMAGE_SIZE))
    patch_size: int = declare(14, "", *one_to(MAX_IMAGE_SIZE))
    norm_eps: float = declare(1e-5, "", *from_zero_to(1))
    max_num_tiles: int = declare(4, "", *one_to(MAX_TILES))
    intermediate_layers_indices: tuple[int, ...] = declare((3, 7, 15, 23, 30), "", *from_zero_to(MAX_LAYERS))
    supported_aspect_ratios: tuple[tuple[int, int], ...] = ASPECT_RATIOS

    @property
    def tokens_per_tile(self) -> int:
        """Return the number of a tile's patches plus its class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def padded_tokens_per_tile(self) -> int:
        """Return the number of a tile's tokens inside the encoder: the next multiple of 8."""
        return -(-self.tokens_per_tile // 8) * 8

    @property
    def vision_output_dim(self) -> int:
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))

    def tiles(self, aspect_ratio_id: int) -> int:
        """Return the number of tiles of the canvas with this aspect ratio id."""
        high, wide = self.supported_aspect_ratios[aspect_ratio_id - 1]
        return high * wide

    @classmethod
    def from_dict(cls, data: Json) -> "MllamaVisionConfig":
        ratios = _aspect_ratios(data.get("supported_aspect_ratios"))
        config = checked(cls, data, "config.json: vision_config", supported_aspect_ratios=ratios)
        _require_activation(data, "vision_config", ("gelu",))
        _require(config.image_size % config.patch_size == 0, "image_size is not a multiple of patch_size")
        _require(config.hidden_size % config.attention_heads == 0, "vision hidden_size is not a multiple of its heads")
        _require(
            all(i < config.num_hidden_layers for i in config.intermediate_layers_indices)
            and list(config.intermediate_layers_indices) == sorted(set(config.intermediate_layers_indices)),
            "intermediate_layers_indices must be ascending and within the local layers",
        )
        _require(
            all(h * w <= config.max_num_tiles for h, w in config.supported_aspect_ratios),
            f"an aspect ratio has more than {config.max_num_tiles} tiles",
        )
        declared = data.get("vision_output_dim")
        _require(
            declared in (None, config.vision_output_dim),
            f"vision_output_dim {shown(declared)} is not {config.vision_output_dim} = "
            "hidden_size x (1 + intermediate layers)",
        )
        return config


@dataclass(frozen=True)
class MllamaConfig:
    """A whole model. ``vision_config`` is None for text-only checkpoints (MllamaForCausalLM)."""

    text_config: MllamaTextConfig = field(default_factory=MllamaTextConfig)
    vision_config: MllamaVisionConfig | None = field(default_factory=MllamaVisionConfig)
    image_token_index: int = declare(128256, "", *from_zero_to(MAX_IDS))
    dtype: str = "bfloat16"

    def shared_by(self, ranks: int) -> "MllamaConfig":
        """Return what each of ``ranks`` processes has of the language model, and the vision tower of the first."""
        return replace(self, text_config=self.text_config.shared_by(ranks))

    @classmethod
    def from_dict(cls, data: Json) -> "MllamaConfig":
        kind = data.get("model_type")
        if not isinstance(kind, str) or kind not in MODEL_TYPES:
            raise CheckpointError(
                f"config.json: model_type is {shown(kind)}, not 'mllama'",
                "mllama runs Llama 3.2 Vision checkpoints (11B and 90B) and their text-only parts.",
            )
        dtype = _dtype(data)
        if kind == "mllama_text_model":
            text = MllamaTextConfig.from_dict(data, "")
            return cls(text, None, text.vocab_size, dtype)
        text_data = section(data, "text_config")
        text = MllamaTextConfig.from_dict(text_data)
        image_token = data.get("image_token_index", data.get("image_token_id"))
        return checked(
            cls,
            {"image_token_index": text.vocab_size if image_token is None else image_token},
            text_config=text,
            vision_config=MllamaVisionConfig.from_dict(section(data, "vision_config")),
            dtype=dtype if "dtype" in data or "torch_dtype" in data else _dtype(text_data),
        )


def _dtype(data: Json) -> str:
    name = str(data.get("dtype") or data.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    _require(name in ("float32", "float16", "bfloat16"), f"dtype {shown(name)} is not float32, float16 or bfloat16")
    return name


def _aspect_ratios(value: Any) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ASPECT_RATIOS
    sides = range(1, MAX_TILES + 1)
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side in sides for side in pair)
        for pair in value
    ):
        raise CheckpointError(
            f"config.json: supported_aspect_ratios must be pairs of whole numbers, not {shown(value)}", DAMAGED
        )
    return tuple((high, wide) for high, wide in value)


@dataclass(frozen=True)
class GenerationConfig:
    """The checkpoint's own sampling defaults; a missing one turns that feature off."""

    do_sample: bool = declare(False)
    temperature: float = declare(1.0, "", *from_zero_to(1000))
    top_p: float = declare(1.0, "", *from_zero_to(1))
    top_k: int = declare(0, "", *from_zero_to(MAX_IDS))
    min_p: float = declare(0.0, "", *from_zero_to(1))
    repetition_penalty: float = declare(1.0, "", *positive(1000))
    eos_token_id: tuple[int, ...] = declare((), "", *from_zero_to(MAX_IDS))
    bos_token_id: int | None = declare(None, "", *from_zero_to(MAX_IDS))

    @classmethod
    def from_dict(cls, data: Json) -> "GenerationConfig":
        return checked(cls, data, "generation_config.json")


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json: tile side in pixels, maximum number of tiles, mean and standard deviation (RGB)."""

    tile_size: int = declare(560, "", *one_to(MAX_IMAGE_SIZE))
    max_image_tiles: int = declare(4, "", *one_to(MAX_TILES))
    image_mean: tuple[float, ...] = declare((0.48145466, 0.4578275, 0.40821073), "", *from_zero_to(1000))
    image_std: tuple[float, ...] = declare((0.26862954, 0.26130258, 0.27577711), "", *between(1e-6, 1000))
    rescale_factor: float = declare(1 / 255, "", *between(1e-6, 1000))

    @classmethod
    def from_dict(cls, data: Json, where: str = "preprocessor_config.json") -> "ImageProcessorConfig":
        """Return the config in ``data``, read from the file ``where``. Raise CheckpointError if it is invalid."""
        size = section(data, "size", where)
        height, width = size.get("height", 560), size.get("width", 560)
        if unknown := size.keys() - {"height", "width"}:
            raise CheckpointError(
                f"{where}: size has {shown(min(unknown))}; only height and width are supported", DAMAGED
            )
        if height != width:
            raise CheckpointError(f"{where}: tiles must be square, not {shown(height)} x {shown(width)}", DAMAGED)
        config = checked(cls, {**data, "tile_size": height}, where)
        for name in ("image_mean", "image_std"):
            if len(getattr(config, name)) != 3:
                raise CheckpointError(f"{where}: {name} must have three numbers", DAMAGED)
        return config

    def to_dict(self) -> Json:
        """Return the file's contents."""
        return {
            "image_processor_type": "MllamaImageProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "max_image_tiles": self.max_image_tiles,
            "resample": 2,
            "rescale_factor": self.rescale_factor,
            "size": {"height": self.tile_size, "width": self.tile_size},
        }
