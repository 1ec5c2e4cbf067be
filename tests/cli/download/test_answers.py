"""What `mllama download` says: dry runs, offline, tokens, unknown models, and hubs in trouble."""

import socket
from pathlib import Path

import pytest

from tests.cli.download.user import NAME, SHARDS, WANTED, User, assert_fails, checkpoint_files
from tests.gguf_models import write_gguf, write_store
from tests.hub_server import Repo


def test_dry_run_lists_files_and_fetches_nothing(user: User) -> None:
    result = user.run(NAME, "--dry-run")
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines() if line]
    assert {line[0] for line in lines[1 : len(WANTED) + 1]} == WANTED
    assert ["model-00001-of-00002.safetensors", "3.0", "MB", "no"] in lines
    assert ["total", "6.0", "MB"] in lines
    assert ["already", "cached", "0", "B"] in lines
    assert any(line[:2] == ["free", "disk"] for line in lines)
    assert not user.cache.exists()
    assert not set(SHARDS) & user.hub.fetched()


def test_dry_run_knows_what_is_cached(user: User) -> None:
    user.run(NAME)
    lines = [line.split() for line in user.run(NAME, "--dry-run").out.splitlines()]
    assert ["model-00001-of-00002.safetensors", "3.0", "MB", "yes"] in lines
    assert ["to", "download", "0", "B"] in lines


@pytest.mark.parametrize("how", ["option", "variable"])
def test_offline_finds_a_whole_model_without_a_request(user: User, how: str) -> None:
    user.run(NAME)
    user.hub.requests.clear()
    result = user.run(NAME, "--offline") if how == "option" else user.run(NAME, HF_HUB_OFFLINE="1")
    assert (result.code, result.out, result.err) == (0, f"{user.snapshot}\n", "")
    assert user.hub.requests == []


def test_offline_says_that_a_model_is_absent_or_not_whole(user: User) -> None:
    assert_fails(user.run(NAME, "--offline"), 2, "is not in the cache", "--offline")
    user.run(NAME)
    (user.snapshot / SHARDS[1]).unlink()
    assert_fails(user.run(NAME, "--offline"), 1, "only in part")
    assert_fails(user.run(NAME, "--offline", "--revision", "v2"), 2, "'v2'")


def test_token_goes_to_the_hub_and_not_to_the_content_network(user: User) -> None:
    user.hub.repos[NAME].token = "hf_secret"
    assert_fails(user.run(NAME, HF_TOKEN="hf_stale"), 1, "refuses your token", "hf auth login")
    user.hub.requests.clear()
    result = user.run(NAME, HF_TOKEN="hf_secret")
    assert result.code == 0, result.err
    assert {r.headers.get("authorization") for r in user.hub.requests if NAME in r.path} == {"Bearer hf_secret"}
    assert {r.headers.get("authorization") for r in user.hub.requests if "/cdn/" in r.path} == {None}
    assert "hf_secret" not in result.out + result.err


def test_private_model_asks_for_a_login_and_blames_no_token(user: User) -> None:
    user.hub.repos[NAME].token = "hf_secret"
    result = user.run(NAME)
    assert_fails(result, 1, "needs a login (401)", "hf auth login", "HF_TOKEN")
    assert "refuses your token" not in result.err


def test_token_with_a_character_that_no_header_can_hold(user: User) -> None:
    assert_fails(user.run(NAME, HF_TOKEN="hf_tök"), 1, "character that no token has", "HF_TOKEN")


def test_gated_model_says_where_to_ask_and_how_to_log_in(user: User) -> None:
    user.hub.repos[NAME].gated = True
    page = f"{user.hub.url}/{NAME}"
    assert_fails(user.run(NAME), 1, "(401)", page, "hf auth login", "HF_TOKEN")
    assert_fails(user.run(NAME, HF_TOKEN="hf_mine"), 1, "(403)", "no access", page)
    assert not user.cache.exists()


def test_a_gated_release_names_what_needs_no_request(user: User, tmp_path: Path) -> None:
    user.hub.repos["meta-llama/Llama-3.2-11B-Vision-Instruct"] = Repo(checkpoint_files(), gated=True)
    for token in ("", "hf_mine"):
        result = user.run("11b", HF_TOKEN=token, OLLAMA_MODELS=str(tmp_path / "ollama"))
        assert_fails(result, 1, "`mllama download 11b-open` has the same weights", "11b-fp8 and 11b-nf4 are smaller")
        assert "ollama" not in result.err
    pytest.importorskip("gguf")
    write_store(tmp_path / "ollama", write_gguf(tmp_path / "gguf", 2))
    result = user.run("11b", OLLAMA_MODELS=str(tmp_path / "ollama"))
    assert_fails(result, 1, "`mllama import ollama:llama3.2-vision`")


def test_dry_run_compares_the_variants(user: User) -> None:
    files = checkpoint_files()
    user.hub.repos["unsloth/Llama-3.2-11B-Vision-Instruct"] = Repo(files)
    small = {**files, "model.safetensors.index.json": files["model.safetensors.index.json"], SHARDS[1]: b"x" * 500_000}
    user.hub.repos["RedHatAI/Llama-3.2-11B-Vision-Instruct-FP8-dynamic"] = Repo(small)
    user.hub.repos["meta-llama/Llama-3.2-11B-Vision-Instruct"] = Repo(files, gated=True)
    result = user.run("11b-open", "--dry-run")
    assert result.code == 0, result.err
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.startswith("11b")}
    assert rows["11b"][:5] == ["6.0", "MB", "to", "be", "requested"]
    assert rows["11b-open"][:3] == ["6.0", "MB", "open"]
    assert rows["11b-fp8"][:3] == ["3.5", "MB", "open"]
    assert rows["11b-nf4"][:2] == ["?", "open"]
    assert "11b-base" not in rows


@pytest.mark.parametrize("tells_404", [True, False])
def test_unknown_model_names_the_nearest_alias(user: User, tells_404: bool) -> None:
    user.hub.tells_404 = tells_404
    result = user.run("meta-llama/Llama-3.2-11B-Vision-Instrct")
    assert_fails(result, 2, "has no model meta-llama/Llama-3.2-11B-Vision-Instrct", "Did you mean 11b ")


def test_names_that_are_no_hub_ids(user: User) -> None:
    assert_fails(user.run(), 2, "No model given", "11b", "90b-base", "11b-nf4", "--dry-run")
    assert_fails(user.run("11"), 2, "'11'", "Did you mean 11b?")
    assert_fails(user.run("someone/a..b"), 2, "is not a Hub id")


def test_unknown_revision(user: User) -> None:
    assert_fails(user.run(NAME, "--revision", "v9"), 2, "no revision 'v9'")


def test_branch_by_name(user: User) -> None:
    user.hub.repos[NAME].branches = ("main", "refs/pr/1")
    result = user.run(NAME, "--revision", "refs/pr/1")
    assert result.code == 0, result.err
    assert (user.repo / "refs" / "refs/pr/1").read_text() == "a" * 40
    assert user.run(NAME, "--revision", "refs/pr/1", "--offline").out == result.out


def test_other_kinds_of_model_are_refused_before_their_weights(user: User) -> None:
    files = user.hub.repos[NAME].files
    files["config.json"] = b'{"model_type": "llava"}'
    assert_fails(user.run(NAME), 1, "not a Llama 3.2 Vision (mllama) model", "'llava'")
    del files["config.json"]
    assert_fails(user.run(NAME), 1, "no config.json")
    assert user.hub.fetched() == {"config.json"}
    assert not user.cache.exists()


def test_repository_without_safetensors(user: User) -> None:
    files = user.hub.repos[NAME].files
    for name in [name for name in files if "safetensors" in name]:
        del files[name]
    assert_fails(user.run(NAME), 1, "no weights in safetensors")


def test_repository_that_lacks_a_shard(user: User) -> None:
    del user.hub.repos[NAME].files[SHARDS[1]]
    assert_fails(user.run(NAME), 1, f"lacks {SHARDS[1]}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "config.json of someone/Pictures-11B is not valid JSON"),
        ("model.safetensors.index.json", b"<html>", "index.json of someone/Pictures-11B is not valid JSON"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["x"]}}', "names no weights"),
        ("model.safetensors.index.json", b"{}", "names no weights"),
    ],
)
def test_damaged_files_on_the_hub(user: User, name: str, content: bytes, words: str) -> None:
    user.hub.repos[NAME].files[name] = content
    assert_fails(user.run(NAME), 1, words)
    assert not user.cache.exists()


def test_endpoint_that_is_no_address(user: User) -> None:
    assert_fails(user.run(NAME, HF_ENDPOINT="hub.example"), 1, "'hub.example' is not a web address", "HF_ENDPOINT")


def test_nobody_listens(user: User) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_fails(user.run(NAME, HF_ENDPOINT=address), 1, f"{address} cannot be reached", "HF_ENDPOINT", "kept")


@pytest.mark.parametrize(("status", "words"), [(503, "Hub server error (503)"), (429, "Rate-limited by the Hub (429)")])
def test_a_hub_in_trouble(user: User, status: int, words: str) -> None:
    user.hub.status = status
    assert_fails(user.run(NAME), 1, words, "same command again")


def test_a_web_page_where_a_hub_should_be(user: User) -> None:
    user.hub.status = 200
    assert_fails(user.run(NAME), 1, "does not answer like a Hugging Face Hub")


@pytest.mark.parametrize("token", ["hf_secret".encode("utf-16"), b"\xe9" * 20])
def test_a_token_file_that_is_not_text_is_named(user: User, tmp_path: Path, token: bytes) -> None:
    file = tmp_path / "home" / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(token)
    assert_fails(user.run(NAME), 1, f"token file {file} is not UTF-8 text", "hf auth login")
