"""Run transformers on the same weights, with its two differences from Meta's reference corrected.

A: since 4.56 it collects the output of the intermediate layers; Meta takes their input. Lower the indices by one.
B: text before the first image token attends to every vision token; Meta lets it see none. Zero those rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllama_cli.engine.forward import Network


def transformers_model(config: dict[str, Any], network: Network, dtype: torch.dtype = torch.float32) -> Any:
    """Return transformers' model with our network's weights and transformers' eager attention."""
    from transformers import MllamaConfig, MllamaForCausalLM, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    own = {k: v for k, v in config.items() if k != "torch_dtype"}
    if "vision_config" in config:
        vision = dict(own["vision_config"])
        vision["intermediate_layers_indices"] = [i - 1 for i in vision["intermediate_layers_indices"]]
        peer_config: Any = MllamaConfig(**{**own, "vision_config": vision})
        kind: Any = MllamaForConditionalGeneration
    else:
        peer_config, kind = MllamaTextConfig(**own), MllamaForCausalLM
    peer_config._attn_implementation = "eager"
    peer = kind(peer_config).eval().requires_grad_(False)
    peer.load_state_dict(network.state_dict(), strict=True)
    return peer.to(dtype)


def peer_inputs(
    rows: Sequence[Sequence[int]], images: Sequence[Sequence[tuple[Tensor, int]]], image_token: int, max_tiles: int
) -> dict[str, Tensor]:
    """Return transformers' forward arguments for unpadded or right-padded rows of ids and their (tiles, ratio id)."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    ids = torch.tensor(rows)
    result = {"input_ids": ids}
    most = max(map(len, images), default=0)
    if not most:
        return result
    shape = next(pixels for row in images for pixels, _ in row).shape
    pixel_values = torch.zeros(len(rows), most, max_tiles, *shape[1:])
    ratio_ids = torch.zeros(len(rows), most, dtype=torch.long)
    tile_mask = torch.zeros(len(rows), most, max_tiles, dtype=torch.long)
    tile_mask[:, :, 0] = 1
    for row, row_images in enumerate(images):
        for index, (pixels, id_) in enumerate(row_images):
            pixel_values[row, index, : len(pixels)] = pixels
            ratio_ids[row, index] = id_
            tile_mask[row, index, : len(pixels)] = 1
    dense = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(list(row), image_token) for row in rows],
        [[len(pixels) for pixels, _ in row] for row in images],
        max_tiles,
        ids.shape[1],
    )
    return {
        **result,
        "pixel_values": pixel_values,
        "aspect_ratio_ids": ratio_ids,
        "aspect_ratio_mask": tile_mask,
        "cross_attention_mask": torch.tensor(dense),
    }


def blind_rows_see_nothing(peer: Any, rows: Sequence[Sequence[int]], image_token: int) -> list[Any]:
    """Correct difference B for prefills of ``rows``; return the hooks' handles."""
    seen = torch.tensor([[image_token in row[: i + 1] for i in range(len(row))] for row in rows])

    def zero(module: Any, arguments: Any, output: Any) -> Any:
        hidden, *rest = output
        if hidden.shape[1] != seen.shape[1]:
            return output  # a decoded token sees what the last prompt row saw
        return (hidden * seen[..., None].to(hidden), *rest)

    return [module.register_forward_hook(zero) for name, module in peer.named_modules() if name.endswith(".cross_attn")]


def peer_logits(
    peer: Any,
    rows: Sequence[Sequence[int]],
    images: Sequence[Sequence[tuple[Tensor, int]]],
    image_token: int,
    max_tiles: int = 4,
) -> Tensor:
    """Return transformers' logits [B, L, vocabulary], with A and B corrected."""
    inputs = peer_inputs(rows, images, image_token, max_tiles)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(peer.dtype)
    handles = blind_rows_see_nothing(peer, rows, image_token)
    try:
        with torch.inference_mode():
            logits: Tensor = peer(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits


def peer_greedy(
    peer: Any,
    row: Sequence[int],
    images: Sequence[tuple[Tensor, int]],
    image_token: int,
    count: int,
    eos: Sequence[int] = (),
) -> list[int]:
    """Return the greedy continuation by transformers' own generate with its cache."""
    inputs = peer_inputs([row], [images], image_token, 4)
    handles = blind_rows_see_nothing(peer, [row], image_token)
    try:
        with torch.inference_mode():
            out = peer.generate(
                **inputs,
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=list(eos) or None,
                pad_token_id=0,
                temperature=None,
                top_p=None,
            )
    finally:
        for handle in handles:
            handle.remove()
    return [int(token) for token in out[0, len(row) :]]
