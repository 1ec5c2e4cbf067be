"""`mllama download` with the real huggingface_hub client against a hub on this machine."""

import errno
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mllama_cli.hub.transfer import partial_file
from tests.console import SCRIPT, Result, run_here, run_script
from tests.hub_server import Fault, Hub, Repo, etag, serving

NO_PROCESS = 2**30
"""Larger than any process id."""

NAME = "someone/Pictures-11B"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WANTED = {
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.json", "LICENSE.txt", "USE_POLICY.md", "README.md",
    "model.safetensors.index.json", *SHARDS,
}  # fmt: skip
UNWANTED = {
    ".gitattributes", "original/consolidated.pth", "original/tokenizer.model", "original/params.json",
    "pytorch_model.bin", "model.gguf", "consolidated.safetensors", "onnx/config.json",
}  # fmt: skip


def checkpoint_files() -> dict[str, bytes]:
    """Files as a release has them. The weights are noise: a download does not read them."""
    noise = random.Random(0)
    files = {name: f"{name}\n".encode() for name in sorted(WANTED | UNWANTED)}
    files |= {name: noise.randbytes(3_000_000) for name in SHARDS}
    files["config.json"] = json.dumps({"model_type": "mllama"}).encode()
    weight_map = {f"layer.{n}": name for n, name in enumerate(SHARDS)}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


@dataclass
class User:
    """Someone with a cache of their own and a hub."""

    hub: Hub
    cache: Path
    env: dict[str, str]

    def run(self, *arguments: str, **env: str) -> Result:
        return run_script("download", *arguments, env={**self.env, **env}, timeout=60)

    @property
    def repo(self) -> Path:
        return self.cache / ("models--" + NAME.replace("/", "--"))

    @property
    def snapshot(self) -> Path:
        return self.repo / "snapshots" / self.hub.repos[NAME].commit

    def leave_partial(self, name: str, content: bytes, *, pid: int) -> Path:
        """What a process of this machine left of a file."""
        blob = self.repo / "blobs" / etag(name, self.hub.repos[NAME].files[name])
        blob.unlink(missing_ok=True)
        partial = partial_file(blob, pid)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        return partial

    def has_whole_model(self) -> bool:
        files = self.hub.repos[NAME].files
        return all((self.snapshot / name).read_bytes() == files[name] for name in WANTED)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    cache = tmp_path / "cache"
    with serving({NAME: Repo(checkpoint_files())}) as hub:
        env = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(cache), "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
            "MLLAMA_HOME": str(tmp_path / "mllama"),
        }  # fmt: skip
        yield User(hub, cache, env)


def assert_fails(result: Result, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do; no traceback; nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = [line for line in result.error_lines if not line.startswith("Downloading ")]
    assert len(lines) == 2, result.err
    assert lines[0].startswith("mllama: ")
    for word in words:
        assert word in result.err


def test_whole_download_fetches_what_is_needed_and_nothing_else(user: User) -> None:
    result = user.run(NAME)
    assert (result.code, result.out) == (0, f"{user.snapshot}\n"), result.err
    assert {str(f.relative_to(user.snapshot)) for f in user.snapshot.rglob("*")} == WANTED
    assert user.has_whole_model()
    assert user.hub.fetched() == WANTED
    assert (user.repo / "refs" / "main").read_text() == "a" * 40
    assert not list(user.repo.rglob("*.incomplete"))
    assert "\x1b" not in result.err


def test_second_run_fetches_no_byte_again(user: User) -> None:
    first = user.run(NAME)
    user.hub.requests.clear()
    second = run_script("pull", NAME, env=user.env)
    assert (second.code, second.out, second.err) == (0, first.out, "")
    assert user.hub.fetched() == set()


def test_a_new_commit_takes_over_the_bytes_that_did_not_change(user: User) -> None:
    user.run(NAME)
    repo = user.hub.repos[NAME]
    repo.commit = "b" * 40
    repo.files["README.md"] = b"A better text."
    user.hub.requests.clear()
    result = user.run(NAME)
    assert result.out == f"{user.snapshot}\n"
    assert user.has_whole_model()
    assert not set(SHARDS) & user.hub.fetched()


def test_broken_connection_is_taken_up_where_it_broke(user: User) -> None:
    user.hub.fault = Fault(after=1_500_000, times=2)
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert len(ranges) == 2
    assert all(int(given.removeprefix("bytes=").rstrip("-")) > 1_000_000 for given in ranges)


def test_ctrl_c_keeps_what_came_and_the_next_run_goes_on(user: User) -> None:
    user.hub.fault = Fault(after=2_000_000, times=2, then="trickle")
    with subprocess.Popen(
        [SCRIPT, "download", NAME],
        env={**os.environ, **user.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(200):
            if sum(f.stat().st_size for f in user.cache.rglob("*.incomplete")) > 3_000_000:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert not (user.repo / "refs" / "main").exists()  # no half model under the name of a whole one
    user.hub.requests.clear()
    shown = user.run(NAME, "--dry-run")
    assert "already cached" in shown.out
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert len(ranges) == 2
    assert all(int(given.removeprefix("bytes=").rstrip("-")) > 1_000_000 for given in ranges)


def test_damaged_bytes_are_thrown_away(user: User) -> None:
    """The checksum reveals a partial file of other content, and the next run downloads it again."""
    user.run(NAME)
    (user.snapshot / SHARDS[0]).unlink()
    user.leave_partial(SHARDS[0], bytes(1_000_000), pid=NO_PROCESS)
    assert_fails(user.run(NAME), 1, "checksum mismatch; the partial file was deleted", "same command again")
    assert user.run(NAME).code == 0
    assert user.has_whole_model()


def test_a_partial_file_of_a_process_at_work_is_left_alone(user: User) -> None:
    """As where the lock does not hold: each process has a file of its own, and neither writes into the other's."""
    data = user.hub.repos[NAME].files[SHARDS[0]]
    theirs = user.leave_partial(SHARDS[0], data[:1_000_000], pid=os.getpid())
    with theirs.open("ab") as still_writing:
        result = user.run(NAME)
        still_writing.write(b"more")
    assert result.code == 0, result.err
    assert user.has_whole_model()
    assert not any("range" in r.headers for r in user.hub.requests if r.path.startswith("/cdn/"))
    assert not list(user.repo.rglob("*.incomplete")), "of no use any more"


def test_an_old_partial_file_is_resumed_no_matter_who_wrote_it(user: User) -> None:
    left = user.leave_partial(SHARDS[0], user.hub.repos[NAME].files[SHARDS[0]][:1_000_000], pid=os.getpid())
    an_hour_ago = time.time() - 3600
    os.utime(left, (an_hour_ago, an_hour_ago))
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert ranges == ["bytes=1000000-"]


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


@pytest.mark.parametrize("tells_404", [True, False])
def test_unknown_model_names_the_nearest_alias(user: User, tells_404: bool) -> None:
    user.hub.tells_404 = tells_404
    result = user.run("meta-llama/Llama-3.2-11B-Vision-Instrct")
    assert_fails(result, 2, "has no model meta-llama/Llama-3.2-11B-Vision-Instrct", "Did you mean 11b ")


def test_names_that_are_no_hub_ids(user: User) -> None:
    assert_fails(user.run(), 2, "No model given", "11b", "90b-base", "meta-llama/Llama-3.2-90B-Vision")
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


@pytest.fixture
def here(user: User, monkeypatch: pytest.MonkeyPatch) -> User:
    """The command in this process: for what only a patch can bring about."""
    from huggingface_hub import constants

    for name, value in user.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", user.hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", user.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", user.hub.url)
    return user


def test_too_small_a_disk_is_said_before_anything_is_fetched(here: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.hub.plan.free_space", lambda folder: 5_000_000)
    assert_fails(run_here("download", NAME), 1, "has 5.0 MB free", "needs 6.0 MB more", "HF_HOME")
    assert not set(SHARDS) & here.hub.fetched()


def test_disk_that_fills_up_on_the_way(here: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, start: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mllama_cli.hub.transfer.Transfer._stream", full)
    assert_fails(run_here("download", NAME), 1, "disk is full", "kept")


def test_endless_files_are_taken_up_to_their_size(user: User) -> None:
    user.hub.repos[NAME].files["LICENSE.txt"] = b""
    user.hub.endless = True
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()


@pytest.mark.parametrize("token", ["hf_secret".encode("utf-16"), b"\xe9" * 20])
def test_a_token_file_that_is_not_text_is_named(user: User, tmp_path: Path, token: bytes) -> None:
    file = tmp_path / "home" / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(token)
    assert_fails(user.run(NAME), 1, f"token file {file} is not UTF-8 text", "hf auth login")
