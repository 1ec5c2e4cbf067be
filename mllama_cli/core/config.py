"""A checkpoint's config.json, generation_config.json and preprocessor_config.json as frozen, checked data.

Every missing field takes the value of the released 11B instruct model. Unknown fields are ignored, so configs of other
transformers versions load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mllama_cli.core.errors import CheckpointError

Json = Mapping[str, Any]

MODEL_TYPES = ("mllama", "mllama_text_model")
"""The model_type of the checkpoints that we run: whole models, and language models without the vision part."""

ASPECT_RATIOS: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
"""Tiles (high, wide) of each supported canvas, in the order of their aspect ratio ids, which start at 1."""


def _known(cls: Any, data: Json) -> dict[str, Any]:
    """Return the entries of ``data`` that ``cls`` has fields for; a null counts as missing."""
    names = {f.name for f in fields(cls)}
    return {k: _frozen(v) for k, v in data.items() if k in names and v is not None}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(f"config.json: {message}", "The file may be damaged or made for another architecture.")


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 frequency scaling. ``rope_type`` "default" means none."""

    rope_type: str = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @classmethod
    def from_dict(cls, data: Json) -> "RopeScaling":
        scaling = cls(**_known(cls, {**data, "rope_type": data.get("rope_type") or data.get("type")}))
        _require(
            scaling.rope_type in ("llama3", "default"),
            f"rope scaling of type {scaling.rope_type!r} is not supported (llama3 and default are)",
        )
        return scaling


@dataclass(frozen=True)
class MllamaTextConfig:
    """The language model: self-attention layers with cross-attention layers at ``cross_attention_layers``."""

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = False
    bos_token_id: int = 128000
    eos_token_id: tuple[int, ...] = (128001, 128008, 128009)
    pad_token_id: int = 128004

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def self_attention_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_hidden_layers) if i not in self.cross_attention_layers)

    @classmethod
    def from_dict(cls, data: Json) -> "MllamaTextConfig":
        rope = data.get("rope_parameters") or {}
        scaling = data.get("rope_scaling") or rope
        converted = {
            "rope_theta": rope.get("rope_theta", data.get("rope_theta")),
            "rope_scaling": RopeScaling.from_dict(scaling) if scaling else None,
            "eos_token_id": _ids(data.get("eos_token_id")),
        }
        config = cls(**_known(cls, {**data, **converted}))
        width, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        _require(width % heads == 0, f"hidden_size {width} is not a multiple of {heads} heads")
        _require(heads % kv == 0, f"{heads} attention heads are not a multiple of {kv} key/value heads")
        _require(
            all(0 <= i < config.num_hidden_layers for i in config.cross_attention_layers),
            f"cross_attention_layers {list(config.cross_attention_layers)} exceed {config.num_hidden_layers} layers",
        )
        return config


@dataclass(frozen=True)
class MllamaVisionConfig:
    """The vision tower: local layers, then gated global layers, over at most ``max_num_tiles`` tiles of one image."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 560
    patch_size: int = 14
    norm_eps: float = 1e-5
    max_num_tiles: int = 4
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)
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
        config = cls(**_known(cls, data))
        _require(config.image_size % config.patch_size == 0, "image_size is not a multiple of patch_size")
        _require(config.hidden_size % config.attention_heads == 0, "vision hidden_size is not a multiple of its heads")
        _require(
            all(0 <= i < config.num_hidden_layers for i in config.intermediate_layers_indices)
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
            f"vision_output_dim {declared} is not {config.vision_output_dim} = hidden_size x (1 + intermediate layers)",
        )
        return config


@dataclass(frozen=True)
class MllamaConfig:
    """A whole model. ``vision_config`` is None for text-only checkpoints (MllamaForCausalLM)."""

    text_config: MllamaTextConfig = field(default_factory=MllamaTextConfig)
    vision_config: MllamaVisionConfig | None = field(default_factory=MllamaVisionConfig)
    image_token_index: int = 128256
    dtype: str = "bfloat16"

    @classmethod
    def from_dict(cls, data: Json) -> "MllamaConfig":
        kind = data.get("model_type")
        if kind not in MODEL_TYPES:
            raise CheckpointError(
                f"config.json: model_type is {kind!r}, not 'mllama'",
                "mllama runs Llama 3.2 Vision checkpoints (11B and 90B) and their text-only parts.",
            )
        dtype = _dtype(data)
        if kind == "mllama_text_model":
            text = MllamaTextConfig.from_dict(data)
            return cls(text, None, text.vocab_size, dtype)
        text_data = data.get("text_config") or {}
        text = MllamaTextConfig.from_dict(text_data)
        image_token = data.get("image_token_index", data.get("image_token_id"))
        return cls(
            text_config=text,
            vision_config=MllamaVisionConfig.from_dict(data.get("vision_config") or {}),
            image_token_index=text.vocab_size if image_token is None else int(image_token),
            dtype=dtype if "dtype" in data or "torch_dtype" in data else _dtype(text_data),
        )


def _dtype(data: Json) -> str:
    name = str(data.get("dtype") or data.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    _require(name in ("float32", "float16", "bfloat16"), f"dtype {name!r} is not float32, float16 or bfloat16")
    return name


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class GenerationConfig:
    """The checkpoint's own sampling defaults; a missing one turns that feature off."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_id: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @classmethod
    def from_dict(cls, data: Json) -> "GenerationConfig":
        return cls(**_known(cls, {**data, "eos_token_id": _ids(data.get("eos_token_id"))}))


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json: tile side in pixels, maximum number of tiles, mean and standard deviation (RGB)."""

    tile_size: int = 560
    max_image_tiles: int = 4
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise ValueError("image_mean and image_std must have three numbers each")
        for number in (*self.image_mean, *self.image_std, self.rescale_factor):
            if not isinstance(number, int | float):
                raise TypeError(f"{number!r} is not a number")
        if not all(self.image_std):
            raise ValueError("image_std must not be zero")
        if not isinstance(self.tile_size, int) or self.tile_size < 1:
            raise ValueError(f"the tile size must be a positive integer, not {self.tile_size!r}")
        if not isinstance(self.max_image_tiles, int) or self.max_image_tiles < 1:
            raise ValueError(f"max_image_tiles must be a positive integer, not {self.max_image_tiles!r}")

    @classmethod
    def from_dict(cls, data: Json) -> "ImageProcessorConfig":
        size = data.get("size") or {}
        height, width = size.get("height", 560), size.get("width", 560)
        if height != width:
            raise CheckpointError(f"preprocessor_config.json: tiles must be square, not {height} x {width}")
        return cls(**_known(cls, {**data, "tile_size": height}))
