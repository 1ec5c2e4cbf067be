"""The network in training: initial weights, the loss on a batch, the optimizer."""

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
from mllama_cli.sketch.training.muon import Muon
from mllama_cli.sketch.training.packing import PICTURES, Batch
from mllama_cli.sketch.training.position_init import fill_position_tables


def new_network(config: MllamaConfig, device: torch.device, seed: int = 0) -> MllamaForConditionalGeneration:
    """Return random float32 weights with open gates, so that the language model sees the image from the first step."""
    torch.manual_seed(seed)
    network = MllamaForConditionalGeneration(config)
    assert config.vision_config is not None
    depth = {"vision": config.vision_config.num_hidden_layers + config.vision_config.num_global_layers}
    depth["text"] = config.text_config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gate") and "cross_attn" in name:
                parameter.fill_(1.0)
            elif name.endswith("tile_positional_embedding.gate"):
                parameter.fill_(0.5)
            elif "embed" in name and "patch" not in name:
                parameter.normal_(0, 0.02 if "tokens" in name else 0.1)
            elif parameter.dim() >= 2:
                spread = 0.8 * parameter[0].numel() ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight", "fc2.weight")):
                    spread /= math.sqrt(2 * depth["vision" if "vision_model" in name else "text"])
                parameter.normal_(0, spread)
        # Halve the filters' response to flat colour, so that a bright background does not swamp the rest.
        filters = network.model.vision_model.patch_embedding.weight
        filters.sub_(0.5 * filters.mean(dim=(2, 3), keepdim=True))
        for name, mask in used_tiles(network).items():
            network.get_parameter(name).mul_(mask)
    fill_position_tables(network.model.vision_model)
    return network.to(device)


def used_tiles(network: MllamaForConditionalGeneration) -> dict[str, Tensor]:
    """Return a mask for each of the tower's tables by aspect ratio: 1 in rows of used tiles, 0 elsewhere.

    The vision tower computes one unused tile for all, which needs equal rows for them; training keeps those at zero.
    """
    vision = network.model.vision_model
    tables = {f"model.vision_model.{name}": weight for name, weight in vision.named_parameters() if _by_tile(name)}
    masks = {}
    for name, table in tables.items():
        mask = torch.ones_like(table, dtype=torch.float32)
        by_tile = mask.view(len(table), vision.config.max_num_tiles, -1)
        by_tile[0] = 0
        for id_ in range(1, len(table)):
            by_tile[id_, vision.config.tiles(id_) :] = 0
        masks[name] = mask
    return masks


def _by_tile(name: str) -> bool:
    return name.endswith(("tile_positional_embedding.embedding.weight", "tile_embedding.weight"))


def vision_tokens(network: MllamaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return all projected vision tokens [images, 4 * tokens, hidden] and which are real [images, 4 * tokens]."""
    tower, projector = network.model.vision_model, network.model.multi_modal_projector
    settings = ImageProcessorConfig()
    every = len(batch.tiles) * tower.config.tokens_per_tile
    all_tokens, all_real = [], []
    for tiles, ratio_ids in zip(batch.tiles, batch.aspect_ratio_id, strict=True):
        if not len(tiles):
            continue
        channels = (
            (tiles[..., channel].float() / 255 - mean) / std
            for channel, (mean, std) in enumerate(zip(settings.image_mean, settings.image_std, strict=True))
        )
        pixels = torch.stack(tuple(channels), dim=2).to(projector.weight.dtype)
        tokens = projector(tower(pixels, ratio_ids, equal_unused=True)).flatten(1, 2)
        all_tokens.append(F.pad(tokens, (0, 0, 0, every - tokens.shape[1])))
        real = torch.arange(every, device=tiles.device) < tokens.shape[1]
        all_real.append(real.expand(len(tiles), -1))
    return torch.cat(all_tokens), torch.cat(all_real)


@dataclass(frozen=True)
class Prediction:
    """Loss of each id but a row's first (0 outside answers), and whether it was predicted.

    Both are [rows, length - 1], and so is ``answer``, which marks the ids that count.
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
    if any(map(len, batch.tiles)):
        tokens, real = vision_tokens(network, batch)
        # A row's keys are those of its first and second image. A token sees the newest image before it, since the chat
        # template puts text between the images of a message.
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


class Trainer:
    """The network in its compute dtype, a float32 master copy of it, and the optimizers of that copy.

    Muon for the matrices between the layers, AdamW for tables, norms, gates and biases.

    On a GPU a step is captured once as a CUDA graph and replayed, since its thousands of small kernels take longer to
    launch than to run. All results of a step stay on the device.
    """

    def __init__(self, network: MllamaForConditionalGeneration, dtype: torch.dtype, decay: float = 0.05) -> None:
        self.network = network
        self.names = [name for name, _ in network.named_parameters()]
        self.masters = [p.detach().clone().float() for p in network.parameters()]
        used = used_tiles(network)
        self.pins = [(m, used[n]) for n, m in zip(self.names, self.masters, strict=True) if n in used]
        network.to(dtype)
        self.parameters: list[Tensor] = list(network.parameters())
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.matrices = {n for n, m in zip(self.names, self.masters, strict=True) if _is_matrix(n, m)}
        rest = [m for n, m in zip(self.names, self.masters, strict=True) if n not in self.matrices]
        on_gpu = self.masters[0].is_cuda
        self.rate = torch.zeros((), device=self.masters[0].device)
        self.optimizer = torch.optim.AdamW(
            rest, lr=self.rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, fused=on_gpu, capturable=on_gpu
        )
        named = zip(self.names, self.masters, strict=True)
        self.muon = Muon([m for n, m in named if n in self.matrices], self.rate, decay=decay)
        self._captured: tuple[torch.cuda.CUDAGraph, Batch, Tensor] | None = None
        self._publish()

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Run one step at learning rate ``rate``; return the mean loss, still on the device."""
        self.rate.fill_(rate)
        if self._captured is None:
            return self._step(batch)
        graph, inputs, loss = self._captured
        for mine, given in zip(inputs.tensors(), batch.tensors(), strict=True):
            mine.copy_(given)
        graph.replay()
        return loss.clone()

    def capture(self, batch: Batch) -> None:
        """Capture the step and replay it from now on, for batches shaped like ``batch``. Call it after some steps."""
        inputs = batch.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._step(inputs)
        self._captured = graph, inputs, loss

    def _step(self, batch: Batch) -> Tensor:
        loss = predict(self.network, batch).mean()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        wide = [m.grad for m in self.masters if m.grad is not None]
        narrow = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        torch._foreach_copy_(wide, narrow)
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.muon.step()
        self._publish()
        return loss.detach()

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy the master weights into the network."""
        for master, mask in self.pins:
            master.mul_(mask)
        torch._foreach_copy_(self.parameters, self.masters)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what a run needs to resume, in bfloat16: weights, their rounding residue, and the moments."""
        weights = {n: m.bfloat16() for n, m in zip(self.names, self.masters, strict=True)}
        rest = {n: (m - weights[n].float()).bfloat16() for n, m in zip(self.names, self.masters, strict=True)}
        moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, master in zip(self.names, self.masters, strict=True):
            if name in self.matrices:
                moments["exp_avg"][name] = self.muon.momentum_of(master).bfloat16()
                continue
            for key, kept in moments.items():
                value = self.optimizer.state.get(master, {}).get(key)
                kept[name] = (value if value is not None else torch.zeros_like(master)).bfloat16()
        return {"weights": weights, "rest": rest, **moments}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Resume from ``state`` after ``steps`` steps."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(state["weights"][name].to(master.device).float() + state["rest"][name].to(master.device))
            if name in self.matrices:
                self.muon.momentum_of(master).copy_(state["exp_avg"][name])
                continue
            self.optimizer.state[master] = {
                "step": torch.tensor(float(steps), device=master.device if master.is_cuda else "cpu"),
                "exp_avg": state["exp_avg"][name].to(master),
                "exp_avg_sq": state["exp_avg_sq"][name].to(master),
            }
        self._publish()


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and "embed" not in name and not name.startswith("lm_head")
