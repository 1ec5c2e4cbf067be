"""Which shards are named, and what their outputs are called."""

from pathlib import Path

import pytest

from mllama_cli.captioning.shards.paths import expand_braces, find_shards, part_of
from mllama_cli.core.errors import ImageNotFoundError, UsageError


def test_braces_are_expanded_as_a_shell_does() -> None:
    assert list(expand_braces("{000..002}.tar")) == ["000.tar", "001.tar", "002.tar"]
    assert list(expand_braces("{9..11}")) == ["9", "10", "11"]
    assert list(expand_braces("{a,b}/{1..2}.tar")) == ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]
    assert list(expand_braces("{x}.tar")) == ["{x}.tar"]
    with pytest.raises(UsageError, match="more than"):
        list(expand_braces("{0..99999999999}.tar"))


def test_folders_patterns_and_files_give_shards_in_natural_order(tmp_path: Path) -> None:
    for name in ("2.tar", "10.tar", "a.parquet", "b.tgz", ".hidden.tar", "notes.txt"):
        (tmp_path / name).touch()
    for paths in ([str(tmp_path)], [f"{tmp_path}/*", str(tmp_path / "2.tar")]):
        assert [shard.name for shard in find_shards(paths)] == ["2", "10", "a", "b"]
    assert [shard.form for shard in find_shards([str(tmp_path)])] == ["tar", "tar", "parquet", "tar"]


def test_outputs_of_shards_with_the_same_name_differ(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").touch()
    (tmp_path / "y" / "0.parquet").touch()
    names = [shard.name for shard in find_shards([f"{tmp_path}/x", f"{tmp_path}/y"])]
    assert sorted(names) == ["x/0", "y/0.parquet", "y/0.tar"]


def test_parts_are_disjoint_and_whole(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.tar").touch()
    shards = find_shards([str(tmp_path)])
    parts = [part_of(shards, index, 3) for index in (1, 2, 3)]
    assert sorted(shard.path for part in parts for shard in part) == sorted(shard.path for shard in shards)


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for path, error in (
        (str(tmp_path / "a.png"), UsageError),
        (str(tmp_path / "gone.tar"), ImageNotFoundError),
        (str(tmp_path / "*.tar"), ImageNotFoundError),
        (str(tmp_path), ImageNotFoundError),
        ("nope://x/a.tar", UsageError),
    ):
        with pytest.raises(error):
            find_shards([path])
