"""Train the built-in model: ``python -m mllama_cli.sketch.training.train OUT``.

A run lasts ``--seconds`` and leaves in OUT its weights and what the next run needs to resume. The cosine schedule
follows the clock over ``--total-seconds``, since the budget is GPU time; a longer training is a sequence of runs with
the same total.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import hub_name
from mllama_cli.checkpoint.writer import write_checkpoint
from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.sketch.questions.samples import EVALUATION_SEEDS, TASKS
from mllama_cli.sketch.training import model_config
from mllama_cli.sketch.training.dataloader import DataLoader
from mllama_cli.sketch.training.dataset import render_shard
from mllama_cli.sketch.training.packing import assemble, pack_rows
from mllama_cli.sketch.training.trainer import Trainer, new_network, predict
from mllama_cli.sketch.training.vocabulary import write_vocabulary

STEPS_BEFORE_CAPTURE = 3
"""Steps before one is captured as a CUDA graph: the first has other shapes, and libraries initialise."""

STATE = ("rest", "exp_avg", "exp_avg_sq")


def write_settings(folder: Path, tile_size: int) -> None:
    """Write the remaining files of a checkpoint folder: preprocessor and generation config."""
    generation = {
        "bos_token_id": model_config.BOS,
        "do_sample": False,
        "eos_token_id": [model_config.END, model_config.EOM, model_config.EOT],
        "pad_token_id": model_config.PAD,
    }
    settings = ImageProcessorConfig(tile_size).to_dict()
    for name, content in (("preprocessor_config.json", settings), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def learning_rate(progress: float, steps: int, peak: float, warmup: int) -> float:
    """Return the rate: linear warm-up over ``warmup`` steps, then a cosine from ``peak`` to ``peak`` / 100."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (steps + 1) / warmup) * (0.01 + 0.99 * cosine)


@torch.no_grad()
def load_weights(network: MllamaForConditionalGeneration, folder: Path) -> None:
    """Fill the network with the weights of a checkpoint folder, which must have all of them."""
    stored = load_file(folder / "model.safetensors")
    for name, parameter in network.named_parameters():
        parameter.copy_(stored[hub_name(name)])


@torch.no_grad()
def accuracy_by_task(
    trainer: Trainer, arguments: argparse.Namespace, vocabulary: Path, tile: int, device: torch.device
) -> dict[str, tuple[float, int]]:
    """Return, by task, the share of held-out answers that greedy decoding gives exactly, and their number."""
    right: dict[int, list[bool]] = {}
    for first in range(0, arguments.evaluate, 64):
        shard = render_shard(
            EVALUATION_SEEDS + (1 << 20) + first,
            min(64, arguments.evaluate - first),
            vocabulary,
            tile_size=tile,
            forms=min(arguments.forms, 1),
            fonts_dir=arguments.fonts,
        )
        rows = pack_rows(shard, arguments.row_length)
        batch = assemble([(shard, torch.from_numpy(shard.tiles).to(device), rows)], device)
        prediction = predict(trainer.network, batch)
        wrong = batch.sample[:, 1:][prediction.answer & ~prediction.right].unique().tolist()
        for sample in np.unique(rows.sample[rows.sample >= 0]).tolist():
            right.setdefault(int(batch.task[sample]), []).append(sample not in wrong)
    return {TASKS[task]: (sum(hits) / len(hits), len(hits)) for task, hits in sorted(right.items())}


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one run and return its record: steps, seconds, losses, accuracy by task."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    # cuDNN's attention plans for each new shape, and every batch has a new one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = model_config.config(**json.loads(arguments.shape))
    record: dict[str, Any] = {"steps": 0, "seconds": 0.0, "next_seed": 0, "groups": 0, "log": []}
    if arguments.resume:
        record = json.loads((arguments.resume / "training.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = arguments.vocabulary or Path(scratch)
        if not (vocabulary / "tokenizer.json").is_file():
            write_vocabulary(vocabulary)
        tile = config["vision_config"]["image_size"]
        loader = DataLoader(
            vocabulary,
            first_seed=record["next_seed"],
            workers=arguments.workers,
            tile_size=tile,
            groups=arguments.shard_groups,
            group_size=arguments.questions_rendered,
            forms=arguments.forms,
            device=device,
            keep=arguments.keep,
            fonts_dir=arguments.fonts,
        )
        try:
            network = new_network(MllamaConfig.from_dict(config), device, arguments.seed)
            if arguments.start:
                load_weights(network, arguments.start)
            trainer = Trainer(network, torch.bfloat16 if device.type == "cuda" else torch.float32)
            if arguments.resume:
                state = {name: load_file(arguments.resume / f"{name}.safetensors") for name in STATE}
                state["weights"] = load_file(arguments.resume / "weights.safetensors")
                trainer.restore(state, record["steps"])
            loader.wait(arguments.shards)
            _loop(arguments, trainer, loader, record)
        finally:
            loader.close()
        record["next_seed"] = loader.next_seed
        record["groups"] += loader.rendered
        if arguments.evaluate:
            record["accuracy"] = accuracy_by_task(trainer, arguments, vocabulary, tile, device)
    state = trainer.state()
    for name in ("weights", *STATE):
        save_file({n: t.cpu().contiguous() for n, t in state[name].items()}, out / f"{name}.safetensors")
    (out / "training.json").write_text(json.dumps(record, indent=1))
    return record


def _loop(arguments: argparse.Namespace, trainer: Trainer, loader: DataLoader, record: dict[str, Any]) -> None:
    before, began, said = record["seconds"], time.monotonic(), 0.0
    losses: list[torch.Tensor] = []
    running: deque[torch.cuda.Event] = deque()
    first_step = record["steps"]
    while True:
        elapsed = time.monotonic() - began
        record["seconds"] = before + elapsed
        done = elapsed >= arguments.seconds or record["steps"] - first_step >= arguments.max_steps
        if losses and (done or elapsed - said >= 20):
            said = elapsed
            line = {
                "step": record["steps"],
                "seconds": round(record["seconds"], 1),
                "loss": round(float(torch.stack(losses).mean()), 4),
                "groups": record["groups"] + loader.rendered,
            }
            record["log"].append(line)
            sys.stderr.write(json.dumps(line) + "\n")
            losses.clear()
        if done:
            return
        rate = learning_rate(
            record["seconds"] / arguments.total_seconds, record["steps"], arguments.rate, arguments.warmup
        )
        batch = loader.batch(arguments.shards, arguments.row_length)
        if arguments.graph and record["steps"] - first_step == STEPS_BEFORE_CAPTURE:
            trainer.capture(batch)
        losses.append(trainer.step(batch, rate))
        record["steps"] += 1
        if batch.ids.is_cuda:
            # The next batch is prepared while a step runs; the clock lags at most two steps.
            event = torch.cuda.Event()
            event.record()
            running.append(event)
            if len(running) > 1:
                running.popleft().synchronize()


def export(state: Path, folder: Path, settings: dict[str, Any] | None = None) -> None:
    """Write the checkpoint folder of a finished training: weights in bfloat16, config, vocabulary and settings."""
    config = model_config.config(**(settings or {}))
    write_checkpoint(folder, load_file(state / "weights.safetensors"), config)
    if not (folder / "tokenizer.json").is_file():
        write_vocabulary(folder)
    write_settings(folder, config["vision_config"]["image_size"])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("out", type=Path, help="folder for the weights and the state of the training")
    add("--resume", type=Path, help="folder of the run to resume")
    add("--start", type=Path, metavar="FOLDER", help="checkpoint folder whose weights to start from")
    add("--export", type=Path, metavar="FOLDER", help="only write OUT's weights as a checkpoint folder, and stop")
    add("--vocabulary", type=Path, help="folder with the tokenizer (default: trained from scratch, always the same)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--graph", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help="capture the step")
    add("--seconds", type=float, default=540, help="how long this run trains")
    add("--total-seconds", type=float, default=540, help="how long all runs train together, for the schedule")
    add("--max-steps", type=int, default=10**9, help="maximum number of steps of this run")
    add("--rate", type=float, default=4e-3, help="peak learning rate")
    add("--warmup", type=int, default=300, help="steps of warm-up")
    add("--workers", type=int, default=13, help="rendering processes")
    add("--shards", type=int, default=4, help="shards in a batch")
    add("--shard-groups", type=int, default=48, help="groups of samples in a shard")
    add("--questions-rendered", type=int, default=10, help="questions about each image")
    add("--forms", type=int, default=0, help="questions about each image that are answered in JSON")
    add("--row-length", type=int, default=192, help="tokens in a row of a batch; longer samples are left out")
    add("--keep", type=int, default=6000, help="shards kept for reuse")
    add("--evaluate", type=int, default=0, metavar="GROUPS", help="held-out groups to measure at the end")
    add("--shape", default="{}", help="JSON that overrides sizes of the model (see model_config.config)")
    add("--fonts", help="folder of additional fonts for printed text")
    add("--seed", type=int, default=0)
    return result


def main() -> None:
    arguments = parser().parse_args()
    if arguments.export:
        export(arguments.out, arguments.export, json.loads(arguments.shape))
        return
    record = train(arguments)
    sys.stdout.write(json.dumps({key: record[key] for key in record if key != "log"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
