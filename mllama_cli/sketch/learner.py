"""The network in training: its first weights, its loss on a batch, its optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import CrossView
from mllama_cli.sketch.feed import PICTURES, Batch
from mllama_cli.sketch.masked_vision import masked_features


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


def vision_tokens(network: MllamaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """All pictures' projected tokens [pictures, 4 * tokens, hidden]; which of them are real [pictures, 4 * tokens]."""
    tower = network.model.vision_model
    dtype = tower.patch_embedding.weight.dtype
    settings = ImageProcessorConfig()
    mean, std = (torch.tensor(v, device=batch.tiles.device) for v in (settings.image_mean, settings.image_std))
    used = batch.tile_index >= 0
    pixels = (batch.tiles[batch.tile_index.clamp_min(0)].float() / 255 - mean) / std
    pixels = (pixels * used[:, :, None, None, None]).to(dtype).permute(0, 1, 4, 2, 3)
    features = masked_features(tower, pixels, batch.aspect_ratio_id, used)
    tokens = network.model.multi_modal_projector(features).flatten(1, 2)
    real = used[:, :, None].expand(-1, -1, tower.config.tokens_per_tile).flatten(1)
    return tokens, real


@dataclass(frozen=True)
class Prediction:
    """For every id of a batch but each row's first: its loss (0 where it is no answer's) and whether it is foreseen.

    Both [rows, length - 1], and so is ``answer``, which says where they count.
    """

    loss: Tensor
    right: Tensor
    answer: Tensor

    def mean(self) -> Tensor:
        return self.loss.sum() / self.answer.sum()


def predict(network: MllamaForConditionalGeneration, batch: Batch) -> Prediction:
    """Run a batch: one call of the vision tower, one of the language model over the packed rows."""
    text = network.language_model
    cross = view = None
    if len(batch.aspect_ratio_id):
        tokens, real = vision_tokens(network, batch)
        # A row's keys: those of its first and of its second picture. A token sees the newest picture before it (in the
        # chat template words stand between the pictures of a message).
        layers = []
        there = batch.pictures >= 0
        slots = batch.pictures.clamp_min(0)
        for keys, values in text.cross_keys_values(tokens):
            both = (torch.cat([t.index_select(0, slots[:, p]) for p in range(PICTURES)], dim=2) for t in (keys, values))
            layers.append((next(both), next(both)))
        seen = [
            (real[slots[:, p]] & there[:, p, None])[:, None, :] & (batch.newest == p)[:, :, None]
            for p in range(PICTURES)
        ]
        mask = torch.cat(seen, dim=-1)
        sees = batch.newest >= 0
        view = CrossView(mask=(mask | ~sees[..., None])[:, None], row_mask=sees[..., None].to(tokens.dtype))
        cross = CrossKVCache(layers, [[mask.shape[-1]]] * len(mask))
    rows = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    same = batch.sample[:, :, None] == batch.sample[:, None, :]
    causal = (same & (rows[:, None] >= rows))[:, None]
    hidden = text.run(batch.ids, text.context(batch.position, None, causal), cross, view)
    logits = network.lm_head(hidden[:, :-1]).float()
    target, answer = batch.ids[:, 1:], batch.answer[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten().clamp_max(logits.shape[-1] - 1), reduction="none")
    return Prediction(loss.view_as(target) * answer, logits.argmax(-1) == target, answer)


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
        loss = predict(self.network, batch).mean()
        loss.backward()
        wide, narrow = [], []
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            wide.append(master.grad)
            narrow.append(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        torch._foreach_copy_(wide, narrow)
        for parameter in self.parameters:
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
