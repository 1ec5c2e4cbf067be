"""What rank 0 has in place of parts of the engine: each tells the other ranks to do the same with their parts."""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor, nn

from mllama_cli.engine.parallel.exchange import VocabularyOfRanks, connect
from mllama_cli.engine.parallel.team import Team
from mllama_cli.model.cache import CrossCache, CrossKVCache, KVCache
from mllama_cli.model.image_kv import Float8KV, ImageKV, LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM, MllamaTextModel, SelfAttentionContext
from mllama_cli.model.visibility import CrossView


class LeadingTextModel(MllamaTextModel):
    """The language model on rank 0."""

    def __init__(self, own: MllamaTextModel, team: Team) -> None:
        nn.Module.__init__(self)
        self.config, self.embed_tokens, self.layers, self.norm = own.config, own.embed_tokens, own.layers, own.norm
        self._frequencies: Tensor | None = None
        self._own, self._team = (own,), team  # in a tuple: as an attribute it would be a module with the same weights
        self.train(own.training)

    def cross_keys_values(self, states: Tensor) -> list[LayerKV]:
        team, number = self._team, self._team.names.new()
        states = states.contiguous()
        with team.together("cross_keys_values", number, tuple(states.shape)):
            team.group.broadcast(states)
            layers = self._own[0].cross_keys_values(states)
        team.names.add_layers(number, layers)
        return layers

    def steps(
        self, input_ids: Tensor, cache: KVCache | None, cross: CrossCache | None, view: CrossView | None
    ) -> Generator[None, None, Tensor]:
        steps = self._own[0].steps(input_ids, cache, cross, view)
        return (yield from self._team.generate(steps, "steps", input_ids, cache, cross, view))

    def run_steps(
        self,
        input_ids: Tensor,
        context: SelfAttentionContext,
        cross: CrossCache | None = None,
        view: CrossView | None = None,
    ) -> Generator[None, None, Tensor]:
        steps = self._own[0].run_steps(input_ids, context, cross, view)
        given = (input_ids, context.positions, context.cache, context.mask, cross, view)
        return (yield from self._team.generate(steps, "run_steps", *given))


class LeadingVocabulary(VocabularyOfRanks):
    """The exchange of the output layer on rank 0, which alone knows what it is computed for."""

    def __init__(self, team: Team, size: int) -> None:
        super().__init__(team.group, size)
        self._team = team

    def __call__(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._team.inside:
            return super().__call__(product, x)
        x = x.contiguous()
        with self._team.together("logits", tuple(x.shape)):
            self.group.broadcast(x)
            return super().__call__(product, x)


class LeadingCache(KVCache):
    """A self KV cache on rank 0, whose twins take part in copying."""

    def __init__(self, team: Team, *arguments: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(team.config, *arguments, dtype=dtype, device=device)
        self._team = team

    def copy_from(self, source: KVCache, row: int, length: int, *, to_row: int = 0) -> None:
        with self._team.together("copy", self, source, row, length, to_row):
            super().copy_from(source, row, length, to_row=to_row)


def join_images(team: Team, batch: Sequence[Sequence[ImageKV]]) -> CrossKVCache | None:
    """Do as ``CrossKVCache.from_images`` on all ranks."""
    if [len(images) for images in batch] == [1] or not any(batch):
        return CrossKVCache.from_images(batch)  # the image's own tensors
    number = team.names.new()
    with team.together("join", number, batch):
        joined = CrossKVCache.from_images(batch)
    assert joined is not None
    team.names.add_layers(number, joined.layers)
    return joined


def round_images(team: Team, layers: Sequence[LayerKV]) -> Float8KV:
    """Do as ``Float8KV.of`` on all ranks."""
    number = team.names.new()
    with team.together("round", number, layers):
        rounded = Float8KV.of(layers)
    team.names.add_layers(number, rounded)
    return rounded


def share_out(network: MllamaForConditionalGeneration | MllamaForCausalLM, team: Team) -> None:
    """Let what runs a network that is cut, on rank 0, run it on all ranks."""
    connect(network, team.group)
    leading = LeadingTextModel(network.language_model, team)
    if isinstance(network, MllamaForConditionalGeneration):
        network.model.language_model = leading
    else:
        network.model = leading
    network.lm_head.exchange = LeadingVocabulary(team, leading.config.vocab_size)
    team.leads = True
