"""`mllama list`, `show` and `rm`."""

import json
import os
import re
from pathlib import Path

import pytest

from mllama_cli.hub.catalog import resolve
from mllama_cli.system.paths import built_in_model
from tests.checkpoints import TEMPLATE, make_checkpoint, text_only_config
from tests.console import Result, Stream, run_here


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def local(home: Path, name: str, **options: object) -> Path:
    return make_checkpoint(home / "models" / name, **options)  # type: ignore[arg-type]


def cached(tmp_path: Path, repo: str, revision: str = "abc123") -> Path:
    """A repository as the Hugging Face cache keeps it: blobs, and snapshots that link to them."""
    made = make_checkpoint(tmp_path / "made" / repo.replace("/", "-"))
    folder = tmp_path / "hub" / ("models--" + repo.replace("/", "--"))
    (folder / "blobs").mkdir(parents=True)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(made.iterdir())):
        blob = folder / "blobs" / f"{number:040d}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    return folder


def names(result: Result) -> list[str]:
    return [line.split()[0] for line in result.out.splitlines()[1:]]


def test_list_knows_local_and_downloaded_models(home: Path, tmp_path: Path) -> None:
    local(home, "mine")
    local(home, "talker", config=text_only_config())
    local(home, "base", template=None)
    cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision-Instruct")
    (tmp_path / "hub" / "models--other--thing" / "snapshots" / "x").mkdir(parents=True)
    result = run_here("list")
    assert result.code == 0
    assert names(result) == ["base", "mine", "talker", "meta-llama/Llama-3.2-11B-Vision-Instruct", "sketch"]
    kinds = {entry["name"]: entry["kind"] for entry in json.loads(run_here("ls", "--json").out)}
    assert kinds["mine"] == "instruct"
    assert kinds["base"] == "base"
    assert "text-only" in kinds["talker"]


def test_an_unfinished_download_is_listed_as_such_and_never_chosen(home: Path, tmp_path: Path) -> None:
    local(home, "mine")
    folder = cached(tmp_path, "someone/half")
    next(folder.glob("snapshots/*/model.safetensors")).unlink()
    assert "incomplete" in run_here("list").out
    assert run_here("chat", "--max-tokens", "1", "--device", "cpu", "Hi").code == 0, "mine is the only whole model"


def test_a_new_machine_has_the_built_in_model_and_says_how_to_get_another() -> None:
    result = run_here("list")
    assert (result.code, names(result)) == (0, ["sketch"])
    assert "mllama download 11b" in result.err
    (entry,) = json.loads(run_here("list", "--json").out)
    assert (entry["where"], entry["complete"]) == ("package", True)


def test_the_built_in_model_is_shown_and_stays() -> None:
    shown = run_here("show", "sketch")
    assert shown.code == 0
    assert "apache-2.0" in shown.out
    refused = run_here("rm", "sketch", "--yes")
    assert refused.code == 1
    assert "sketch is the built-in model" in refused.err
    assert run_here("show", "mllama-sketch").code == 0


def test_several_models_and_none_named_is_an_error_with_the_list(home: Path) -> None:
    local(home, "one")
    local(home, "two")
    result = run_here("chat", "Hi")
    assert result.code == 2
    assert "one, two" in result.err


def test_a_folder_that_happens_to_be_called_sketch_does_not_hide_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "sketch").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert resolve("sketch") == built_in_model()
    make_checkpoint(tmp_path / "here" / "sketch")
    assert resolve("sketch") == Path("sketch")


def test_a_folder_beats_a_local_model_beats_an_alias(home: Path, tmp_path: Path) -> None:
    cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision-Instruct")
    assert "snapshots/abc123" in run_here("show", "11b").out
    local(home, "11b")
    assert str(home / "models" / "11b") in run_here("show", "11b").out
    make_checkpoint(tmp_path / "11b")
    assert json.loads(run_here("show", "11b", "--json").out)["path"] == "11b"


def test_show_counts_parameters_and_memory(home: Path) -> None:
    folder = local(home, "mine", generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    record = json.loads(run_here("show", "mine", "--json").out)
    weights = (folder / "model.safetensors").stat().st_size
    assert record["parameters"]["total"] * 4 == pytest.approx(weights, rel=0.05)
    assert all(record["parameters"][part] > 0 for part in ("text", "cross-attention", "vision", "projector"))
    assert record["memory"]["bfloat16"] * 2 == record["memory"]["float32"]
    people = run_here("show", "mine").out
    for fact in (
        "5 layers (2 cross-attention)",
        "2048 tokens",
        "temperature 0.6, top-p 0.9",
        "56 x 56",
        "F32",
        "<|eot_id|> (262)",
    ):
        assert fact in people
    assert run_here("show", "mine", "--template").out.strip() == TEMPLATE.strip()


def test_show_of_the_released_11b_configs(shared: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file
    from torch import zeros

    folder = tmp_path / "11b"
    shutil.copytree(shared / "llama-3.2-11b-vision-instruct", folder)
    save_file({"language_model.lm_head.weight": zeros(2, 2)}, folder / "model.safetensors")
    out = run_here("show", str(folder)).out
    assert "40 layers (8 cross-attention), hidden 4096, 32 heads (8 key/value)" in out
    assert "131072 tokens" in out
    assert "4 tiles of 560 x 560 pixels" in out
    assert "LLAMA 3.2" in out


@pytest.mark.parametrize("command", ["show", "rm"])
def test_an_unknown_model_names_its_nearest(command: str, home: Path) -> None:
    local(home, "sunflower")
    result = run_here(command, "sunflowr", *(["-y"] if command == "rm" else []))
    assert result.code == 2
    assert "sunflow" in result.err


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    result = run_here("show", "photos")
    assert result.code == 1
    assert "config.json" in result.err


def test_rm_frees_the_blobs_of_the_hub_cache(tmp_path: Path) -> None:
    folder = cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision")
    result = run_here("rm", "11b-base", "--yes")
    assert result.code == 0
    assert not folder.exists()
    assert "freed" in result.err


def test_rm_deletes_nothing_unless_every_name_is_known(home: Path) -> None:
    folder = local(home, "mine")
    assert run_here("rm", "-y", "mine", "nonsense").code == 2
    assert folder.is_dir()


def test_rm_asks_and_needs_a_terminal_to_ask_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local(home, "mine")
    assert run_here("rm", "mine", stdin=b"y\n").code == 2
    assert folder.is_dir()
    for answer, left in ((b"n\n", True), (b"\n", True), (b"y\n", False)):
        monkeypatch.setattr(
            "tests.console.Stream", lambda data=b"", tty=False, a=answer: Stream(a if tty else data, tty=tty)
        )
        assert run_here("rm", "mine").code == 0
        assert folder.is_dir() == left


def test_rm_never_touches_a_folder_of_the_users(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "precious")
    for name in ("precious", str(folder), "..", "."):
        result = run_here("rm", "-y", name)
        assert result.code in (1, 2)
        assert (folder / "config.json").is_file()


def test_rm_leaves_models_of_other_programs_in_the_cache(tmp_path: Path) -> None:
    for repo, name, content in (
        ("google/bert", "config.json", b'{"model_type": "bert"}'),
        ("someone/other-GGUF", "model.gguf", b"GGUF"),
    ):
        snapshot = tmp_path / "hub" / ("models--" + repo.replace("/", "--")) / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / name).write_bytes(content)
        result = run_here("rm", "-y", repo)
        assert result.code == 1
        assert "not an mllama model" in result.err
        assert (snapshot / name).is_file()


def test_rm_deletes_the_beginning_of_a_download(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--someone--half"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "aa.incomplete").write_bytes(bytes(5_000))
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "LICENSE.txt").write_text("Free.")
    result = run_here("rm", "-y", "someone/half")
    assert result.code == 0
    assert "5.0 kB freed" in result.err
    assert not folder.exists()


def test_rm_means_the_model_that_show_means(home: Path, tmp_path: Path) -> None:
    """A folder comes before an alias, so `rm 11b` next to a folder 11b must not delete the downloaded model."""
    downloaded = cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision-Instruct")
    folder = make_checkpoint(tmp_path / "11b")
    result = run_here("rm", "-y", "11b")
    assert result.code == 1
    assert "another folder" in result.err
    assert downloaded.is_dir()
    assert folder.is_dir()


def test_rm_takes_the_path_that_download_and_show_print(home: Path, tmp_path: Path) -> None:
    folder = cached(tmp_path, "someone/model")
    mine = local(home, "mine")
    assert run_here("rm", "-y", str(folder / "snapshots" / "abc123"), str(mine)).code == 0
    assert not folder.exists()
    assert not mine.exists()


def test_rm_of_a_link_leaves_what_it_leads_to(home: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "elsewhere")
    local(home, "mine")
    link = home / "models" / "linked"
    link.symlink_to(folder)
    for name in ("linked", str(link)):
        assert run_here("rm", "-y", name).code == 0
        assert not link.is_symlink()
        assert (folder / "model.safetensors").is_file()
        link.symlink_to(folder)


def test_rm_of_one_model_by_two_names_deletes_it_once(tmp_path: Path) -> None:
    cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision")
    result = run_here("rm", "-y", "11b-base", "meta-llama/Llama-3.2-11B-Vision")
    assert result.code == 0
    assert result.err.count("Deleted") == 1


def test_rm_of_dots_within_our_place_deletes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local(home, "mine")
    monkeypatch.chdir(home / "models")
    for name in (".", "..", "mine/..", "../models", "./mine/../../models"):
        assert run_here("rm", "-y", name).code in (1, 2), name
        assert folder.is_dir(), name


def test_show_counts_each_weight_once(home: Path) -> None:
    """Releases have consolidated.safetensors next to the weights that are loaded, a copy of them."""
    folder = local(home, "mine")
    once = json.loads(run_here("show", "mine", "--json").out)
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert json.loads(run_here("show", "mine", "--json").out) == once


def test_show_does_not_count_half_a_model(home: Path) -> None:
    folder = local(home, "mine")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run_here("show", "mine")
    assert (result.code, result.out) == (1, "")
    assert "lacks 1 of 2 weight files: model-00002-of-00002.safetensors" in result.err
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    assert "names no weights" in run_here("show", "mine").err


def test_names_are_whole_on_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, "meta-llama/Llama-3.2-11B-Vision-Instruct")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for screen, name in (True, "11b"), (False, "meta-llama/Llama-3.2-11B-Vision-Instruct"):
        line = re.sub(r"\x1b\[\d*m", "", run_here("list", screen=screen).out).splitlines()[1]
        assert line.split()[0] == name
        assert "instruct" in line.split()
        assert len(line) <= 80
    monkeypatch.setenv("COLUMNS", "120")
    wide = re.sub(r"\x1b\[\d*m", "", run_here("list", screen=True).out)
    assert "11b meta-llama/Llama-3.2-11B-Vision-Instruct" in wide


def test_a_piped_table_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-very-long-owner-name/" + "model-" * 10
    cached(tmp_path, name)
    monkeypatch.setenv("COLUMNS", "40")
    line = run_here("list").out.splitlines()[1]
    assert line.split()[0] == name
    assert len(line.split()) == len(run_here("list").out.splitlines()[0].split()) + 1
