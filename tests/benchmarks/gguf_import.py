"""Time and memory of ``mllama import`` of a GGUF file in the 11B's shape, with random numbers in Q4_K and Q6_K.

    python -m tests.benchmarks.gguf_import FOLDER [--files ../shared/llama-3.2-11b-vision-instruct]

Writes 8 GB to FOLDER, once, and imports it into FOLDER/imported, which takes 12 GB more. The tokenizer is that of
``--files``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil

from mllama_cli.checkpoint.names import hub_name
from mllama_cli.core.config import MllamaConfig
from mllama_cli.model.mllama import empty_network
from tests.gguf_models import (
    TEXT_NAMES,
    encoded,
    renamed,
    rope_factors,
    text_entries,
    vision_entries,
    vision_tensors,
)

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1


def write(file: Path, files: Path) -> None:
    """Write all weights into one file, as ollama's newer converter does, a tensor at a time."""
    config: dict[str, Any] = json.loads((files / "config.json").read_text())
    kinds, random = gguf.GGMLQuantizationType, np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "mllama", use_temp_file=True)
    text_entries(writer, config["text_config"], files / "tokenizer.json")
    vision_entries(writer, config["vision_config"])
    for ours, parameter in empty_network(MllamaConfig.from_dict(config)).named_parameters():
        name, shape = hub_name(ours), tuple(parameter.shape)
        if name.startswith(("vision_model", "multi_modal")):
            wide = name.endswith("proj.weight") or (".fc" in name and len(shape) == 2)
            values = np.zeros(shape, np.float16 if wide else np.float32)
            for stored_name, stored in vision_tensors(name, values, 2):
                writer.add_tensor(stored_name, stored)
        elif len(shape) == 1:
            writer.add_tensor(renamed(name, TEXT_NAMES), np.ones(shape, np.float32))
        else:
            form = kinds.Q6_K if "lm_head" in name or "down_proj" in name else kinds.Q4_K
            stored = encoded(np.broadcast_to(np.float32(0), shape), form, random)
            writer.add_tensor(renamed(name, TEXT_NAMES), stored, raw_dtype=form)
    writer.add_tensor("rope_freqs.weight", rope_factors(config["text_config"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=Path, default=ROOT.parent / "shared" / "llama-3.2-11b-vision-instruct")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    file, target = given.folder / "model.gguf", given.folder / "imported"
    if not file.exists():
        partial = file.with_suffix(".partial")
        write(partial, given.files)
        partial.rename(file)
    shutil.rmtree(target, ignore_errors=True)
    start, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "mllama_cli", "import", str(file), str(target)])
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_full_info().uss)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    size = file.stat().st_size / 1e9
    print(f"{size:.1f} GB in {(time.perf_counter() - start) / 60:.1f} minutes, at most {peak / 1e9:.2f} GB of memory")


if __name__ == "__main__":
    main()
