"""The network in training: its first weights, its loss on a batch, its optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import CrossView
from mllama_cli.sketch.feed import Batch

TOKENS_AT_ONCE = 1 << 16
"""Text rows of one forward pass: bounds the memory of the cross-attention mask."""


def new_network(config: MllamaConfig, device: torch.device, seed: int = 0) -> MllamaForConditionalGeneration:
    """Random weights in float32; gates open, so that the language model looks at the picture from the first step."""
    torch.manual_seed(seed)
    network = MllamaForConditionalGeneration(config)
    assert config.vision_config is not None
    depth = {"vision": config.vision_config.num_hidden_layers + config.vision_config.num_global_layers}
    depth["text"] = config.text_config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gate") and "cross_attn" in name:
                parameter.fill_(1.0)
            elif name.endswith("positional_embedding.gate"):
                parameter.fill_(0.5)
            elif "embed" in name and "patch" not in name:
                parameter.normal_(0, 0.02 if "tokens" in name else 0.1)
            elif parameter.dim() >= 2:
                spread = 0.8 * parameter[0].numel() ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight", "fc2.weight")):
                    spread /= math.sqrt(2 * depth["vision" if "vision_model" in name else "text"])
                parameter.normal_(0, spread)
    network.to(device)
    pin_unused_tiles(network)
    return network


@torch.no_grad()
def pin_unused_tiles(network: MllamaForConditionalGeneration) -> None:
    """Zero the tables' rows of unused tiles: the vision tower's exact saving needs them equal."""
    vision = network.model.vision_model
    for table in (
        vision.pre_tile_positional_embedding.embedding.weight,
        vision.post_tile_positional_embedding.embedding.weight,
        vision.gated_positional_embedding.tile_embedding.weight,
    ):
        by_tile = table.view(len(table), vision.config.max_num_tiles, -1)
        by_tile[0] = 0
        for id_ in range(1, len(table)):
            by_tile[id_, vision.config.tiles(id_) :] = 0


def vision_tokens(network: MllamaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """All pictures' projected tokens [tokens, hidden], where each picture's begin, and how many they are."""
    weight = network.model.vision_model.patch_embedding.weight
    settings = ImageProcessorConfig()
    mean, std = (torch.tensor(v, device=weight.device) for v in (settings.image_mean, settings.image_std))
    config = network.model.vision_model.config
    begin = torch.zeros_like(batch.tile_start)
    pieces, offset = [], 0
    for count in range(1, config.max_num_tiles + 1):
        which = (batch.tile_count == count).nonzero()[:, 0]
        if not len(which):
            continue
        places = batch.tile_start[which, None] + torch.arange(count, device=which.device)
        pixels = ((batch.tiles[places].float() / 255 - mean) / std).to(weight.dtype).permute(0, 1, 4, 2, 3)
        features = network.model.vision_model(pixels, batch.aspect_ratio_id[which])
        pieces.append(network.model.multi_modal_projector(features).flatten(0, 2))
        each = count * config.tokens_per_tile
        begin[which] = offset + each * torch.arange(len(which), device=which.device)
        offset += each * len(which)
    if not pieces:
        return weight.new_zeros(1, network.config.text_config.hidden_size), begin, batch.tile_count
    return torch.cat(pieces), begin, batch.tile_count * config.tokens_per_tile


@dataclass(frozen=True)
class Prediction:
    """For every answer token of a batch: its loss, whether it is the likeliest, and its sample's row."""

    loss: Tensor
    right: Tensor
    row: Tensor


def predict(network: MllamaForConditionalGeneration, batch: Batch) -> Prediction:
    """Run a batch. Samples with equally many pictures go together, so that few keys are padding."""
    tokens, begin, counts = vision_tokens(network, batch)
    losses, rights, rows = [], [], []
    numbers = batch.image_count.cpu().numpy()
    for number in np.unique(np.maximum(numbers, 1)):
        members = np.flatnonzero(np.maximum(numbers, 1) == number)
        members = members[np.argsort(batch.length[members])]
        while len(members):
            size = max(1, TOKENS_AT_ONCE // int(batch.length[members[-1]]))
            part, members = members[-size:], members[:-size]
            loss, right, row = _predict_part(network, batch, part, int(number), tokens, begin, counts)
            losses.append(loss)
            rights.append(right)
            rows.append(row)
    return Prediction(torch.cat(losses), torch.cat(rights), torch.cat(rows))


def _predict_part(
    network: MllamaForConditionalGeneration,
    batch: Batch,
    members: np.ndarray,
    pictures: int,
    tokens: Tensor,
    begin: Tensor,
    counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = torch.from_numpy(members).to(batch.ids.device)
    ids = batch.ids[chosen, : int(batch.length[members].max())]
    answer = batch.answer[chosen, : ids.shape[1]]
    first, have = batch.image_first[chosen], batch.image_count[chosen]
    cross = view = None
    if len(begin):
        # The keys of a sample: its pictures' tokens one after the other, padded at the end.
        lengths = [torch.where(have > p, counts[(first + p).clamp_max(len(counts) - 1)], 0) for p in range(pictures)]
        ends = torch.stack(lengths).cumsum(0)
        place = torch.arange(int(ends[-1].max().clamp_min(1)), device=ids.device)[None]
        index = torch.zeros(len(ids), place.shape[1], dtype=torch.long, device=ids.device)
        owner = torch.full_like(index, -1)
        for p in range(pictures):
            start = ends[p] - lengths[p]
            inside = (place >= start[:, None]) & (place < ends[p][:, None])
            source = begin[(first + p).clamp_max(len(begin) - 1)] - start
            index = torch.where(inside, source[:, None] + place, index)
            owner = torch.where(inside, p, owner)
        # Words stand between the pictures of a message, so a row sees just the newest picture before it.
        newest = (ids == network.config.image_token_index).cumsum(1) - 1
        mask = (owner[:, None, :] == newest[:, :, None]) & (newest >= 0)[:, :, None]
        sees = mask.any(-1)
        view = CrossView(mask=(mask | ~sees[..., None])[:, None], row_mask=sees[..., None])
        layers = network.language_model.cross_keys_values(tokens[index])
        cross = CrossKVCache(layers, [[place.shape[1]]] * len(ids))
    hidden = network.language_model(ids, None, cross, view)
    # Row r predicts the id of row r + 1.
    scored = answer[:, 1:]
    logits = network.lm_head(hidden[:, :-1][scored]).float()
    target = ids[:, 1:][scored]
    loss = F.cross_entropy(logits, target, reduction="none")
    rows = chosen[:, None].expand_as(scored)[scored]
    return loss, logits.argmax(-1) == target, rows


class Learner:
    """The network in its computing format, a float32 master copy of it, and AdamW on that."""

    def __init__(self, network: MllamaForConditionalGeneration, dtype: torch.dtype, decay: float = 0.05) -> None:
        self.network = network
        self.names = [name for name, _ in network.named_parameters()]
        self.masters = [p.detach().clone().float() for p in network.parameters()]
        network.to(dtype)
        self.parameters: list[Tensor] = list(network.parameters())
        kept = [m for n, m in zip(self.names, self.masters, strict=True) if _decays(n, m)]
        free = [m for n, m in zip(self.names, self.masters, strict=True) if not _decays(n, m)]
        fused = self.masters[0].is_cuda
        self.optimizer = torch.optim.AdamW(
            [{"params": kept, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            eps=1e-8,
            fused=fused,
        )

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One step at learning rate ``rate``; returns the mean loss, still on the device."""
        loss = predict(self.network, batch).loss.mean()
        loss.backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else torch.zeros_like(master)
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
        pin_unused_tiles(self.network)
        return loss.detach()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a run needs to go on, all in bfloat16: weights, what rounding them left over, and both moments."""
        weights = {n: m.bfloat16() for n, m in zip(self.names, self.masters, strict=True)}
        rest = {n: (m - weights[n].float()).bfloat16() for n, m in zip(self.names, self.masters, strict=True)}
        moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, master in zip(self.names, self.masters, strict=True):
            for key, kept in moments.items():
                value = self.optimizer.state.get(master, {}).get(key)
                kept[name] = (value if value is not None else torch.zeros_like(master)).bfloat16()
        return {"weights": weights, "rest": rest, **moments}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Go on from ``state`` after ``steps`` steps."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(state["weights"][name].to(master.device).float() + state["rest"][name].to(master.device))
            self.optimizer.state[master] = {
                "step": torch.tensor(float(steps), device=master.device if master.is_cuda else "cpu"),
                "exp_avg": state["exp_avg"][name].to(master),
                "exp_avg_sq": state["exp_avg_sq"][name].to(master),
            }
        torch._foreach_copy_(self.parameters, self.masters)


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and "embed" not in name
