"""Which models are on this machine, and where: names, places and the rule for the default."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.core.errors import CheckpointError, ModelNotFoundError
from mllama_cli.hub.catalog import MODEL_ALIASES, default_model, hub_address, installed, resolve
from mllama_cli.hub.inspect import inspect
from mllama_cli.hub.kinds import config_of, kind
from mllama_cli.hub.remove import plan_removal
from mllama_cli.system.paths import built_in_model
from tests.checkpoints import make_checkpoint

REPO = "meta-llama/Llama-3.2-11B-Vision-Instruct"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def in_cache(tmp_path: Path, commit: str, *, repo: str = REPO, main: bool = False) -> Path:
    folder = tmp_path / "hub" / ("models--" + repo.replace("/", "--"))
    if main:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return make_checkpoint(folder / "snapshots" / commit)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"HF_HUB_CACHE": "~/a"},
        {"HF_HUB_CACHE": "$WEIGHTS/a"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"},
        {"HF_HOME": "$WEIGHTS/b"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "~/c"},
    ],
    ids=str,
)
def test_the_cache_is_where_huggingface_hub_looks_for_it(env: dict[str, str]) -> None:
    code = (
        "from mllama_cli.hub.cache import hub_cache\n"
        "ours = str(hub_cache())\n"
        "from huggingface_hub import constants\n"
        "print(ours); print(constants.HF_HUB_CACHE)\n"
    )
    places = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    clean = {name: value for name, value in os.environ.items() if name not in places}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "WEIGHTS": "/weights", "HOME": "/home/someone", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = done.stdout.splitlines()
    assert ours == theirs


def test_listing_imports_nothing_heavy(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "home" / "models" / "mine")
    code = (
        "import sys\n"
        "from mllama_cli.hub.catalog import installed\n"
        "print([entry.name for entry in installed()])\n"
        "print([m for m in ('torch', 'huggingface_hub', 'httpx', 'numpy', 'safetensors') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['mine']", "[]"], "completion of model names would be slow"


def test_main_decides_between_commits_and_the_newest_one_where_there_is_no_main(tmp_path: Path) -> None:
    old = in_cache(tmp_path, "old")
    new = in_cache(tmp_path, "new")
    os.utime(old, (1, 1))
    assert resolve("11b") == new
    in_cache(tmp_path, "main1", main=True)
    os.utime(new)
    assert resolve("11b").name == "main1"
    assert [(entry.name, entry.revision) for entry in installed()] == [(REPO, "main1")]


def test_a_damaged_reference_does_not_hide_the_model(tmp_path: Path) -> None:
    folder = in_cache(tmp_path, "abc", main=True)
    (folder.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    assert resolve(REPO) == folder
    assert [entry.name for entry in installed()] == [REPO]


def test_the_only_model_is_the_default_and_half_ones_do_not_count(tmp_path: Path) -> None:
    assert (default_model().name, default_model().path) == ("sketch", built_in_model())
    half = in_cache(tmp_path, "abc")
    (half / "model.safetensors").unlink()
    mine = make_checkpoint(tmp_path / "home" / "models" / "mine")
    assert default_model().path == mine
    in_cache(tmp_path, "abc")
    with pytest.raises(ModelNotFoundError, match=f"mine, {REPO}"):
        default_model()


@pytest.mark.parametrize("name", ["", "..x", "~nobody-of-that-name/model", "a/b/c", "x" * 5000, "ä\n", "/", "."])
def test_names_of_no_model_are_an_error_and_no_crash(name: str) -> None:
    with pytest.raises((ModelNotFoundError, CheckpointError)) as caught:
        resolve(name)
    assert caught.value.hint


def test_a_slip_in_an_id_or_a_name_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as by_id:
        resolve(REPO.replace("Instruct", "Instrct"))
    assert f"Did you mean {REPO}?" in by_id.value.hint
    make_checkpoint(tmp_path / "home" / "models" / "sunflower")
    with pytest.raises(ModelNotFoundError) as by_name:
        resolve("Sunflowr")
    assert "Did you mean sunflower?" in by_name.value.hint


@pytest.mark.parametrize(
    ("name", "alias"),
    [("llama3.2-vision", "11b"), ("Llama3.2-Vision:11b", "11b"), ("ollama:llama3.2-vision:90b", "90b")],
)
def test_a_name_of_the_ollama_library_is_known(name: str, alias: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert caught.value.hint.startswith(f"Did you mean {alias}?")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (REPO.partition("/")[2], REPO),
        (REPO.partition("/")[2].lower(), REPO),
        (REPO.lower(), REPO),
        ("Sunflower", "sunflower"),
        ("someone/sunflower", "sunflower"),
        ("Me/Bird", "me/bird"),
        ("bird", "me/bird"),
        ("other/Bird", "me/bird"),
    ],
)
def test_another_case_or_owner_is_guessed(tmp_path: Path, name: str, meant: str) -> None:
    make_checkpoint(tmp_path / "home" / "models" / "sunflower")
    in_cache(tmp_path, "abc", repo="me/bird")
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert f"Did you mean {meant}" in caught.value.hint
    if meant != REPO:
        with pytest.raises(ModelNotFoundError) as kept:
            plan_removal(name)
        assert f"Did you mean {meant}" in kept.value.hint


@pytest.mark.parametrize("name", [*MODEL_ALIASES.values(), "unsloth/Llama-3.2-11B-Vision-Instruct"])
def test_a_right_id_that_is_not_here_has_no_other_meaning(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert caught.value.hint.startswith(f"Get it with `mllama download {name}`")


def test_an_alias_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("90b-base")
    assert "`mllama download 90b-base`" in caught.value.hint


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"a")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve("notes.txt")
    (tmp_path / "my weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="is a GGUF file") as caught:
        resolve("my weights.gguf")
    assert "mllama import 'my weights.gguf'" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "revision"),
    [
        ("https://huggingface.co/{}", None),
        ("http://huggingface.co/{}/", None),
        ("https://www.huggingface.co/{}?library=transformers", None),
        ("HTTPS://HuggingFace.co/{}#uses", None),
        ("huggingface.co/{}", None),
        ("hf.co/{}", None),
        ("https://hf.co/{}.git", None),
        ("hf://{}", None),
        (" https://huggingface.co/{}\n", None),
        ("https://huggingface.co/{}/discussions/3", None),
        ("https://huggingface.co/{}/tree/main", "main"),
        ("hf.co/{}/tree/v2/", "v2"),
        ("https://huggingface.co/{}/tree/refs%2Fpr%2F1", "refs/pr/1"),
        ("https://huggingface.co/{}/blob/v2/config.json?download=true", "v2"),
        ("https://huggingface.co/{}/resolve/v2/sub/model.safetensors", "v2"),
    ],
)
def test_a_web_address_is_a_name(tmp_path: Path, address: str, revision: str | None) -> None:
    address = address.format(REPO)
    assert hub_address(address) == (REPO, revision)
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        resolve(address)
    main = in_cache(tmp_path, "a" * 40, main=True)
    if revision in (None, "main"):
        assert resolve(address) == main
    else:
        with pytest.raises(ModelNotFoundError, match=f"in revision {revision}"):
            resolve(address)
        other = in_cache(tmp_path, "b" * 40)
        file = main.parents[1] / "refs" / revision
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("b" * 40)
        assert resolve(address) == other
    assert plan_removal(address).name == REPO


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/datasets/owner/name",
        "https://huggingface.co/spaces/owner/name",
        "https://huggingface.co/owner",
        "https://huggingface.co/",
        "https://huggingface.co.example.com/owner/name",
        "https://example.com/owner/name",
        "https://huggingface.co/owner/name/../../x",
    ],
)
def test_other_addresses_are_no_models(address: str) -> None:
    assert hub_address(address) == (None, None)
    with pytest.raises(ModelNotFoundError):
        resolve(address)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_json_that_is_nested_too_deeply_counts_as_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"a":' * 100_000)
    assert config_of(tmp_path) == {}
    assert kind(tmp_path) == "base"


def test_a_layer_with_thousands_of_digits_is_only_a_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    weight = {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({f"model.language_model.layers.{'9' * 5000}.w": weight}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert inspect(folder).parameters["text"] == 2


@pytest.mark.parametrize(
    ("declared", "said"),
    [({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantized to 4 bits"),
     ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized to 8 bits"),
     ({"quant_method": "gptq", "bits": 4}, "quantized to 4 bits"), ({"bits": 10**9}, "quantized"), ("x", "quantized")],
)  # fmt: skip
def test_a_kind_names_the_bits_that_config_json_says(declared: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "quantization_config": declared}))
    assert kind(tmp_path) == f"base, {said}"
