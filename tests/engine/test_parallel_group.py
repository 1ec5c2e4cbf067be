"""Operations together, of ranks that are threads of this process."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mllama_cli.engine.parallel.exchange import VocabularyOfRanks
from mllama_cli.engine.parallel.group import Group
from mllama_cli.engine.parallel.one_shot import fits
from mllama_cli.engine.parallel.peer_memory import PeerMemory
from mllama_cli.engine.parallel.plan import Share

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_operations_of_all_ranks(tmp_path: Path, count: int) -> None:
    def run(rank: int) -> tuple[list[float], list[float], list[bool]]:
        group = Group.meet(tmp_path / "meeting", Share(rank, count), CPU)
        summed, given = torch.full((5,), 2.0**rank), torch.full((2,), float(rank))
        group.all_reduce(summed)
        group.broadcast(given)
        gathered = []
        for size in (4 * count - 1, 4 * count):  # not as many for each, and as many
            both = torch.arange(2 * size, dtype=torch.float32).view(2, size)
            logits = VocabularyOfRanks(group, size).gathered(both[:, group.share.part(size)])
            gathered.append(torch.equal(logits, both))
        return summed.tolist(), given.tolist(), gathered

    with ThreadPoolExecutor(count) as threads:
        for result in threads.map(run, range(count)):
            assert result == ([2.0**count - 1] * 5, [0.0, 0.0], [True, True])


def test_what_fits_into_a_mailbox() -> None:
    assert fits(torch.zeros(1, dtype=torch.int32), 4096)
    assert fits(torch.zeros(1024), 4096)
    assert not fits(torch.zeros(1025), 4096)
    assert not fits(torch.zeros(3, dtype=torch.float16), 4096)  # no whole number of words
    assert not fits(torch.zeros(0), 4096)


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs may share their memory")
def test_ranks_that_cannot_share_memory_all_say_so(tmp_path: Path) -> None:
    def run(rank: int) -> float:
        group = Group.meet(tmp_path / "meeting", Share(rank, 2), CPU)
        with pytest.raises(RuntimeError, match="cuMemGetAddressRange_v2"):
            PeerMemory(torch.zeros(4), group.share, group.all_gather)
        total = torch.ones(1)
        group.all_reduce(total)  # and can go on together
        return total.item()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(run, range(2))) == [2, 2]
