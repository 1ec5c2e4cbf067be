"""The whole model: vision tower, projector, language model. Attributes are named as save_pretrained's keys are."""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import CheckpointError
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.image_kv import LayerKV
from mllama_cli.model.layers import Linear, result_of
from mllama_cli.model.text import MllamaForCausalLM, MllamaTextModel
from mllama_cli.model.visibility import CrossView, image_spans
from mllama_cli.model.vision import MllamaVisionModel


class MllamaModel(nn.Module):
    """Vision tower, projector and language model without its output layer."""

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        if config.vision_config is None:
            raise CheckpointError("This is a text-only configuration: it has no vision tower", "Use MllamaForCausalLM.")
        self.config = config
        self.vision_model = MllamaVisionModel(config.vision_config)
        self.language_model = MllamaTextModel(config.text_config)
        self.multi_modal_projector = Linear(
            config.vision_config.vision_output_dim, config.text_config.hidden_size, bias=True
        )

    def encode_image(self, pixel_values: Tensor, aspect_ratio_id: int) -> list[LayerKV]:
        """Encode tiles [tiles, 3, T, T] to keys and values [1, kv_heads, tokens, D] for each cross-attention layer."""
        return result_of(self.encode_image_steps(pixel_values, aspect_ratio_id))

    def encode_image_steps(self, pixel_values: Tensor, aspect_ratio_id: int) -> Generator[int, None, list[LayerKV]]:
        """Do as ``encode_image`` and yield how many layers of the vision tower are done."""
        weight = self.vision_model.patch_embedding.weight
        pixels = pixel_values.to(weight.device, weight.dtype, non_blocking=True)
        return (yield from self.encode_tiles_steps(pixels, torch.full((1,), aspect_ratio_id, device=weight.device)))

    def encode_tiles_steps(self, pixel_values: Tensor, aspect_ratio_ids: Tensor) -> Generator[int, None, list[LayerKV]]:
        """Do as ``encode_image_steps`` with tensors on the device: pixels in the model's dtype, the ratio's id [1]."""
        states = yield from self.states_steps(pixel_values, aspect_ratio_ids)
        return self.language_model.cross_keys_values(states)

    def states_steps(self, pixel_values: Tensor, aspect_ratio_ids: Tensor) -> Generator[int, None, Tensor]:
        """Encode tiles as ``encode_tiles_steps`` does, up to the cross-attention states [1, tokens, hidden]."""
        features = yield from self.vision_model.steps(pixel_values[None], aspect_ratio_ids)
        tokens: Tensor = self.multi_modal_projector(features)
        return tokens.flatten(1, 2)


class MllamaForConditionalGeneration(nn.Module):
    """Images and text in, logits out."""

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MllamaModel(config)
        self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

    @property
    def language_model(self) -> MllamaTextModel:
        return self.model.language_model

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Sequence[Tensor] = (),
        aspect_ratio_ids: Sequence[int] = (),
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Return logits [B, L, vocab_size] of token ids [B, L], or [B, 1, vocab_size] with ``last_only``.

        ``pixel_values`` are the images' tiles [tiles, 3, T, T] in the order of the image tokens, conversation after
        conversation. Shorter conversations of a batch are padded at the end with any id but the image token's.
        """
        rows: list[list[int]] = input_ids.tolist()
        spans = [image_spans(row, self.config.image_token_index) for row in rows]
        if sum(map(len, spans)) != len(pixel_values) or len(pixel_values) != len(aspect_ratio_ids):
            raise ValueError(
                f"{sum(map(len, spans))} image tokens, {len(pixel_values)} images and {len(aspect_ratio_ids)} "
                "aspect ratio ids do not belong together"
            )
        images = iter([self.model.encode_image(p, i) for p, i in zip(pixel_values, aspect_ratio_ids, strict=True)])
        cross = CrossKVCache.from_images([[next(images) for _ in row] for row in spans])
        view = None
        if cross is not None:
            view = CrossView.build(spans, cross.image_tokens, [0] * len(rows), input_ids.shape[1], input_ids.device)
        hidden = self.model.language_model(input_ids, None, cross, view)
        result: Tensor = self.lm_head(hidden[:, -1:] if last_only else hidden)
        return result


def empty_network(config: MllamaConfig) -> MllamaForConditionalGeneration | MllamaForCausalLM:
    """Return the network of a config on the meta device; text-only where it has no vision."""
    with torch.device("meta"):
        network = (
            MllamaForConditionalGeneration(config) if config.vision_config else MllamaForCausalLM(config.text_config)
        )
    return network.eval()
