"""A run's own step on one GPU, DeepSpeed included, without Ray: ``python benchmarks/gpu_engine.py``.

What ``workers: {use_gpu: true, precision: bf16}`` does at each step: bf16 weights with an fp32 master, gradients added
up in fp32, clipping, AdamW, micro-batches by the token budget. Synthetic cells of 1,200 tokens, made before the clock
starts. One JSON line for each objective and ZeRO stage: cells/s, and the share of the GPU's bf16 peak by the operations
that the objective needs. ``gpu_train.py`` is the same work in plain torch with autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
sys.path.insert(0, str(ROOT / "platform"))  # cytoray need not be installed

import torch

from benchmarks.gpu_step import GOALS, PEAK_FLOPS, wait_for
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training import engine as engines
from cytoray.training.calibration import random_batch
from cytoray.training.config import GenerativeConfig, PretrainConfig, ShapeConfig, TrainConfig, WorkersConfig
from cytoray.training.objectives import ObjectiveModule, build_pretraining_objective
from cytoray.training.steps import StepRunner, build_host_group

WARM_UP_STEPS = 3


def main() -> None:
    """Measure every case."""
    options = _options()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    for second_pass in (False, True):
        for stage in options.stages:
            print(json.dumps(_measure(options, stage, second_pass=second_pass)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=256, help="cells per step")
    parser.add_argument("--micro-cells", type=int, default=64, help="cells per micro-batch")
    parser.add_argument("--length", type=int, default=1200, help="tokens per cell")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6, help="steps timed")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    return parser.parse_args()


def _measure(options: argparse.Namespace, stage: int, *, second_pass: bool) -> dict[str, Any]:
    """Steps a second of one engine."""
    config = _build_config(options, stage, second_pass=second_pass)
    vocabulary = GeneVocabulary.load_default()
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0).model_copy(update={"generative": True})
    objective = build_pretraining_objective(config.objective, pad_id=vocabulary.pad_id)
    torch.manual_seed(0)
    engine = engines.build_engine(ObjectiveModule(ScGPT(model, pad_id=vocabulary.pad_id), objective), config, 1)
    runner = StepRunner(engine, config, model, objective, build_host_group(60))
    batch = random_batch(config, options.length, ratio=0.5, step=0, num_cells=options.cells)
    plan = runner.plan(batch)
    for _ in range(WARM_UP_STEPS):
        runner.take(batch, plan)
    wait_for(engine.device)
    started = time.perf_counter()
    for _ in range(options.steps):
        runner.take(batch, plan)
    wait_for(engine.device)
    seconds = (time.perf_counter() - started) / options.steps
    on_gpu = engine.device.type == "cuda"
    name = torch.cuda.get_device_name(engine.device) if on_gpu else "CPU"
    peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)
    engine.destroy()
    return {
        "benchmark": "gpu_engine", "device": name, "torch": torch.__version__, "stage": stage,
        "second_pass": second_pass, "precision": options.precision, "micro_batches": plan.num_parts,
        "cells_per_s": round(options.cells / seconds, 1),
        "mfu": None if peak is None else round(plan.amounts.flops / seconds / peak, 4),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
        "goal_cells_per_s": GOALS["two_pass" if second_pass else "one_pass"],
    }  # fmt: skip


def _build_config(options: argparse.Namespace, stage: int, *, second_pass: bool) -> PretrainConfig:
    shape = ShapeConfig(
        width=options.width, num_heads=8, feedforward_width=options.width, num_layers=options.layers, dropout=0.0
    )
    micro_tokens = options.micro_cells * options.length
    return PretrainConfig(
        store="nowhere",
        run="run",
        corpus="cells",
        model=shape,
        objective=GenerativeConfig() if second_pass else GenerativeConfig(second_pass_after=None),
        tokenizer=TokenizerConfig(max_length=options.length),
        train=TrainConfig(num_steps=1000, cells_per_step=options.cells, micro_batch_tokens=micro_tokens),
        workers=WorkersConfig(
            num_workers=1, use_gpu=torch.cuda.is_available(), zero_stage=stage, precision=options.precision
        ),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )


if __name__ == "__main__":
    main()
