"""`mllama import` as a person runs it, on files that the gguf package wrote."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical
from mllama_cli.kernels.packed import dequantize
from mllama_cli.processing.chat_template import OUR_TEMPLATE
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import write_json, write_preprocessor, write_tokenizer
from tests.console import Result, run_here

pytest.importorskip("gguf")

from tests.gguf_models import GgufFixture, write_gguf, write_store

DRAWING = Path(__file__).parents[1] / "data" / "drawing.png"
NAME = "llama3.2-vision"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "home"


def mixed(name: str) -> str:
    """Return the formats of ollama's Q4_K_M, and more."""
    if "lm_head" in name or "v_proj" in name:
        return "Q6_K"
    if "embed" in name:
        return "Q8_0"
    return {"o_proj": "Q5_K", "up_proj": "Q4_0", "gate_proj": "BF16"}.get(name.split(".")[-2], "Q4_K")


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GgufFixture:
    return write_gguf(tmp_path_factory.mktemp("gguf") / str(request.param), request.param, mixed)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> GgufFixture:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model", 2, mixed)


def plain_twin(model: GgufFixture, folder: Path) -> Path:
    """Write the dense weights as an ordinary checkpoint, quantized ones in bfloat16, with an import's template."""
    folder.mkdir(parents=True)
    text = {name: t.bfloat16() for name, t in model.dense.items() if name.startswith("language") and t.dim() == 2}
    save_file({**model.dense, **text}, folder / "model.safetensors")
    write_json(folder / "config.json", model.config)
    write_tokenizer(folder, template=OUR_TEMPLATE.read_text())
    write_preprocessor(folder, model.config["vision_config"]["image_size"])
    return folder


def said_by(model: str) -> str:
    options = ("--device", "cpu", "--dtype", "float32", "--temperature", "0", "--max-tokens", "12")
    result = run_here("chat", "-m", model, *options, "--image", str(DRAWING), "What is this?")
    assert result.code == 0, result.err
    assert result.out.strip()
    return result.out


def assert_fails(result: Result, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do; no traceback; nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result.err
    assert len(result.error_lines) == 2, result.err
    for word in words:
        assert word in result.err


def test_ollamas_model_answers_as_its_dense_weights(model: GgufFixture, home: Path, tmp_path: Path) -> None:
    manifest = write_store(tmp_path / "ollama", model)
    before = {path: path.read_bytes() for path in (tmp_path / "ollama").rglob("*") if path.is_file()}
    result = run_here("import", f"ollama:{NAME}")
    assert (result.code, result.out) == (0, f"{home / 'models' / NAME}\n"), result.err
    assert "8-bit: relative squared error" in result.err
    twin = plain_twin(model, tmp_path / "plain")
    assert run_here("quantize", str(twin), "twin", "--bits", "8", "--method", "rtn").code == 0
    assert said_by(NAME) == said_by("twin")
    assert run_here("import", f"ollama:{NAME}", "--bits", "16").code == 0
    assert said_by(f"{NAME}-bf16") == said_by(str(twin))
    assert (home / "models" / NAME / "LICENSE").read_text().startswith("LLAMA 3.2")
    assert json.loads((home / "models" / NAME / "generation_config.json").read_text())["temperature"] == 0.5
    assert {path: path.read_bytes() for path in (tmp_path / "ollama").rglob("*") if path.is_file()} == before
    assert manifest.is_file()


def test_every_weight_is_what_the_gguf_package_decodes(model: GgufFixture, home: Path) -> None:
    projector = ("--projector", str(model.files[1])) if len(model.files) > 1 else ()
    assert run_here("import", str(model.files[0]), "dense", *projector, "--bits", "16").code == 0
    found = load_file(home / "models" / "dense" / "model.safetensors")
    assert found.keys() == model.dense.keys()
    for name, tensor in found.items():
        wanted = model.dense[name]
        if name.rpartition(".")[2] in ("gate", "gate_attn", "gate_ffn"):  # tanh and back
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-7)
        else:
            assert torch.equal(tensor, wanted.to(tensor.dtype)), name


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_matrices_come_from_the_dense_ones(newer: GgufFixture, home: Path, bits: int) -> None:
    assert run_here("import", str(newer.files[0]), "packed", "--bits", str(bits)).code == 0
    found = {canonical(n): t for n, t in load_file(home / "models" / "packed" / "model.safetensors").items()}
    name = "model.language_model.layers.2.mlp.down_proj"
    dense = newer.dense["language_model.model.layers.2.mlp.down_proj.weight"].bfloat16()
    wanted = quantize_matrix(dense, Scheme(bits, 128), "rtn" if bits == 8 else "search").weight
    assert torch.equal(found[f"{name}.weight_packed"], wanted.packed)
    assert torch.equal(found[f"{name}.weight_scale"], wanted.scale)
    off = (dequantize(wanted) - dense.float()).norm() / dense.float().norm()
    assert off < (0.01 if bits == 8 else 0.15)


def test_it_is_found_wherever_one_would_look(newer: GgufFixture, tmp_path: Path) -> None:
    write_store(tmp_path / "ollama", newer)
    write_store(tmp_path / "ollama", newer, "registry.ollama.ai/someone/my-vision/90b")
    listed = run_here("list")
    assert f"`mllama import ollama:{NAME}`" in listed.err
    assert "`mllama import ollama:someone/my-vision:90b`" in listed.err
    assert_fails(run_here("chat", "-m", NAME, "Hi"), 2, "ollama", f"mllama import ollama:{NAME}")
    assert_fails(run_here("chat", "-m", "someone/my-vision:90b", "Hi"), 2, "mllama import ollama:someone/my-vision:90b")
    assert_fails(run_here("chat", "-m", str(newer.files[0]), "Hi"), 2, f"mllama import {newer.files[0]}")
    assert_fails(run_here("show", str(newer.files[0].parent)), 1, f"mllama import {newer.files[0]}")
    assert run_here("import", f"ollama:{NAME}").code == 0
    assert f"ollama:{NAME}`" not in run_here("list").err


def test_an_import_is_shown_before_it_is_made(newer: GgufFixture, home: Path) -> None:
    result = run_here("import", str(newer.files[0]), "--dry-run")
    assert result.code == 0
    assert "8 bit, groups of 128" in result.out
    assert not (home / "models").exists()


def test_rows_of_cross_attention_are_compared_with_an_installed_model(home: Path, tmp_path: Path) -> None:
    unusual = write_gguf(tmp_path / "unusual", 2, interleaved=False)
    for name in ("assumed", "again"):  # an imported model is no witness
        assumed = run_here("import", str(unusual.files[0]), name, "--bits", "16")
        assert "read as interleaved (as ollama writes them" in assumed.err
    plain_twin(unusual, home / "models" / "original")
    seen = run_here("import", str(unusual.files[0]), "seen", "--bits", "16")
    assert "read as in order (seen from original)" in seen.err
    said = run_here("import", str(unusual.files[0]), "said", "--bits", "16", "--cross-attention", "plain")
    assert "read as in order (as given)" in said.err
    weights = [load_file(home / "models" / name / "model.safetensors") for name in ("seen", "said")]
    name = "language_model.model.layers.1.cross_attn.q_proj.weight"
    assert all(torch.equal(each[name], unusual.dense[name].bfloat16()) for each in weights)


def test_what_is_missing_is_said(model: GgufFixture, newer: GgufFixture, tmp_path: Path) -> None:
    if len(model.files) > 1:
        assert_fails(run_here("import", str(model.files[0])), 1, "lacks weights", "--projector FILE")
        assert_fails(run_here("import", str(model.files[1])), 1, "is a projector")
    assert_fails(run_here("import", "ollama:llama3.2-vision"), 2, "ollama has no model called 'llama3.2-vision'")
    write_store(tmp_path / "ollama", newer)
    assert_fails(run_here("import", "ollama:llama3.2-visoin"), 2, f"Did you mean {NAME}?")
    assert_fails(run_here("import", str(DRAWING)), 2, "is not a GGUF file")
    assert_fails(run_here("import", str(tmp_path)), 2, "has no consolidated.*.pth")
    assert_fails(run_here("import", "absent"), 2, "neither ollama:NAME nor a file")


def _digest(manifest: Path, digest: str) -> None:
    data = json.loads(manifest.read_text())
    data["layers"][0]["digest"] = digest
    manifest.write_text(json.dumps(data))


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a digest that is a path": (lambda m, b: _digest(m, "sha256:../../../etc/passwd"), "has the digest"),
    "a blob that is cut short": (lambda m, b: b.write_bytes(b.read_bytes()[:-1]), "is incomplete"),
    "a blob that is missing": (lambda m, b: b.unlink(), "is missing"),
    "a manifest that is no JSON": (lambda m, b: m.write_text("{"), "is not valid JSON"),
    "a manifest without layers": (lambda m, b: m.write_text("{}"), "names no files"),
    "layers that are numbers": (lambda m, b: m.write_text('{"layers": [1]}'), "names no files"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_store_is_said(newer: GgufFixture, tmp_path: Path, how: str) -> None:
    manifest = write_store(tmp_path / "ollama", newer)
    digest = json.loads(manifest.read_text())["layers"][0]["digest"]
    damage, words = DAMAGE[how]
    damage(manifest, tmp_path / "ollama" / "blobs" / digest.replace(":", "-"))
    assert_fails(run_here("import", f"ollama:{NAME}"), 1, words)
    assert run_here("list").code == 0
