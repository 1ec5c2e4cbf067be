"""Operations together, of ranks that are threads of this process."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mllama_cli.engine.parallel.exchange import VocabularyOfRanks
from mllama_cli.engine.parallel.group import Group
from mllama_cli.engine.parallel.one_shot import MAX_ONE_SHOT_BYTES, OneShot, register_group
from mllama_cli.engine.parallel.plan import Share

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_operations_of_all_ranks(tmp_path: Path, count: int) -> None:
    def run(rank: int) -> tuple[list[float], list[float], list[float]]:
        group = Group.meet(tmp_path / "meeting", Share(rank, count), CPU)
        summed, given = torch.full((5,), 2.0**rank), torch.full((2,), float(rank))
        group.all_reduce(summed)
        group.broadcast(given)
        size = 4 * count - 1  # not as many for each
        own = torch.arange(size, dtype=torch.float32)[group.share.part(size)]
        logits = VocabularyOfRanks(group, size).gathered(own[None])
        return summed.tolist(), given.tolist(), logits[0].tolist()

    with ThreadPoolExecutor(count) as threads:
        for result in threads.map(run, range(count)):
            assert result == ([2.0**count - 1] * 5, [0.0, 0.0], [float(n) for n in range(4 * count - 1)])


def test_what_is_added_up_in_one_shot() -> None:
    assert OneShot.takes(torch.zeros(1, 8192, dtype=torch.bfloat16))
    assert OneShot.takes(torch.zeros(8, 4096))
    assert not OneShot.takes(torch.zeros(8, 4096, dtype=torch.float64))
    assert not OneShot.takes(torch.zeros(MAX_ONE_SHOT_BYTES // 4 + 4))
    assert not OneShot.takes(torch.zeros(3, dtype=torch.float16))  # no whole number of words


def test_torch_finds_a_group_by_its_name(tmp_path: Path) -> None:
    c10d = torch._C._distributed_c10d
    store = c10d.FileStore(str(tmp_path / "meeting"), 1)
    backend = c10d.ProcessGroupGloo(store, 0, 1)
    kept = register_group(backend, store, Share(), CPU, str(tmp_path))
    assert c10d._resolve_process_group(str(tmp_path)) is kept
