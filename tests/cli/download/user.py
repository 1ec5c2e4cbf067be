"""Someone who downloads a model from a hub on this machine."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.hub.transfer import partial_file
from tests.console import Result, run_script
from tests.hub_server import Hub, etag

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


def assert_fails(result: Result, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do; no traceback; nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = [line for line in result.error_lines if not line.startswith("Downloading ")]
    assert len(lines) == 2, result.err
    assert lines[0].startswith("mllama: ")
    for word in words:
        assert word in result.err
