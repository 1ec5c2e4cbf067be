"""A pass and decode steps over several ranks, each a process; ``python -m tests.engine.cuda.ranks RANK COUNT FILE``."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.triton_here import DEVICE, aligned  # isort: skip  # before anything that uses Triton

from mllama_cli.engine.cuda.graphs import DecodeGraphs
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import Network, forward
from mllama_cli.engine.parallel.cut import cut_network
from mllama_cli.engine.parallel.exchange import connect
from mllama_cli.engine.parallel.group import Group
from mllama_cli.engine.parallel.plan import Share
from mllama_cli.engine.sampling import GREEDY
from mllama_cli.model.cache import KVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from tests.checkpoints import config_dict, random_network
from tests.engine.cuda.replays import replay_on_cpu

TEXT = {
    "num_hidden_layers": 3, "cross_attention_layers": [1], "intermediate_size": 64, "hidden_size": 128,
    "num_attention_heads": 4,
}  # fmt: skip


def share_of(whole: MllamaForConditionalGeneration, share: Share) -> Network:
    """Return a rank's network with its part of a whole one's weights."""
    network = empty_network(whole.config)
    kept = cut_network(network, share)
    for name, parameter in whole.named_parameters():
        owner, _, attribute = name.rpartition(".")
        value = parameter[kept[owner]].contiguous() if owner in kept else parameter
        network.get_submodule(owner).register_parameter(attribute, nn.Parameter(value, requires_grad=False))
    return network


def main(rank: int, count: int, file: Path) -> float:
    """Return the relative error of a pass and two steps over all ranks, by what the whole network computes."""
    share = Share(rank, count)
    whole = random_network(config_dict(text=TEXT), seed=5).to(DEVICE)
    assert isinstance(whole, MllamaForConditionalGeneration)
    network = share_of(whole, share)
    connect(network, Group.meet(file, share, DEVICE))
    prompt, text = torch.arange(1, 20, device=DEVICE)[None], network.language_model.config
    exact, own = KVCache(whole.language_model.config, device=DEVICE), KVCache(text, device=DEVICE)
    logits = forward(whole, prompt, exact, None, [[]])
    torch.testing.assert_close(forward(network, prompt, own, None, [[]]), logits, atol=1e-5, rtol=1e-5)

    replay_on_cpu(pytest.MonkeyPatch())
    more = torch.arange(30, 36, device=DEVICE)[None]
    logits = forward(whole, more, exact, None, [[]])
    passes = CapturedPasses(network, torch.float32, DEVICE)
    errors = [apart(passes.run([Piece(more[0].tolist(), own, None, [])]), logits)]

    graphs = DecodeGraphs(network, 1, torch.float32, DEVICE)
    state: State = graphs.state
    own.keys, own.values = ([aligned(t, state.self_attn.base) for t in kind] for kind in (own.keys, own.values))
    state.self_attn.set(0, own.keys, own.values)
    state.logits.copy_(logits if rank == 0 else torch.zeros_like(logits))
    state.positions.fill_(exact.lengths[0] - 1)
    graphs._run(None, GREEDY)  # only rank 0 has the prompt's logits, and chooses
    step = DecodeStep(network, state, with_images=False)
    for _ in range(2):
        token = int(logits.argmax())
        assert int(state.tokens) == token
        logits = forward(whole, torch.tensor([[token]], device=DEVICE), exact, None, [[]])
        graphs._run(step, GREEDY)
        errors.append(apart(state.logits, logits))
    return max(errors)


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


if __name__ == "__main__":
    with torch.inference_mode():
        sys.stdout.write(f"{main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))}\n")
