"""Training steps of the 12 x 512 model on one GPU, kernel by kernel: ``python benchmarks/gpu_step.py``.

Needs torch and numpy only, and this checkout. bf16 autocast over fp32 weights, fused Adam, packed cells of 1,200 tokens
half of which are unknown; one pass, and two passes as the original trains. prints one JSON line per kernel: cells/s,
tokens/s and the share of the GPU's bf16 peak by the operations that the objective needs (attention by its rule,
real tokens only). ``--device cpu --layers 2 --width 64 --length 128 --cells 2`` shows that it runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "platform")  # cytoray need not be installed; its model room needs torch alone

import numpy as np
import torch
from torch import Tensor

from cytoray.model.flops import generative_flops
from cytoray.model.losses import expression_loss
from cytoray.model.transformer import ScGPT

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16
GOALS = {"one_pass": 1760, "two_pass": 880}  # cells/s on one H100


@dataclass
class Packed:
    """What the model reads of a packed minibatch."""

    gene_ids: Tensor
    values: Tensor
    lengths: tuple[int, ...]
    batch_labels: None = None
    modalities: None = None
    perturbations: None = None

    def packed(self) -> Packed:
        """Itself."""
        return self


@dataclass
class PackedGenerative:
    """What the model reads of a packed generative minibatch."""

    known: Packed
    unknown_gene_ids: Tensor
    unknown_targets: Tensor
    unknown_lengths: tuple[int, ...]

    def packed(self) -> PackedGenerative:
        """Itself."""
        return self


def main() -> None:
    """Measure every kernel that the device has."""
    options = _options()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kernels = ["varlen", "flex", "sdpa"] if device.type == "cuda" else ["cell", "sdpa"]
    for kernel in kernels:
        for objective in ("one_pass", "two_pass"):
            record = {"kernel": kernel, "objective": objective, "device": name, "torch": torch.__version__}
            record |= {"compiled": options.compile, "cells": options.cells, "length": options.length}
            try:
                record |= _measure(options, device, kernel, second_pass=objective == "two_pass", name=name)
            except (RuntimeError, NotImplementedError) as error:  # a kernel that this build or GPU lacks
                record["error"] = str(error).splitlines()[0][:300]
            record["goal_cells_per_s"] = GOALS[objective]
            print(json.dumps(record), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cells", type=int, default=64, help="cells per step")
    parser.add_argument("--length", type=int, default=1200, help="tokens per cell")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=60_697)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile each layer's feed-forward half")
    return parser.parse_args()


def _measure(
    options: argparse.Namespace, device: torch.device, kernel: str, *, second_pass: bool, name: str
) -> dict[str, Any]:
    """Median of the steps' times, and what follows from it."""
    torch.manual_seed(0)
    config = build_config(options, kernel)
    model = ScGPT(config, pad_id=options.vocabulary - 1).to(device).train()
    if options.compile:
        for layer in model.transformer_encoder.layers:
            layer.compile(dynamic=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    batch = _batch(options, device)
    warm_up = 3 if device.type == "cuda" else 1
    times = [_step(model, optimizer, batch, device, second_pass=second_pass) for _ in range(warm_up + options.steps)]
    seconds = float(np.median(times[warm_up:]))
    needed = 3 * generative_flops(config, batch.known.lengths, batch.unknown_lengths).total
    needed *= 2 if second_pass else 1
    peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)
    return {
        "cells_per_s": round(options.cells / seconds, 1),
        "tokens_per_s": round(options.cells * options.length / seconds),
        "step_ms": round(1e3 * seconds, 2),
        "mfu": None if peak is None else round(needed / seconds / peak, 4),
        "memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 1) if device.type == "cuda" else None,
    }


def _step(
    model: ScGPT, optimizer: torch.optim.Optimizer, batch: Any, device: torch.device, *, second_pass: bool
) -> float:
    """Seconds of one step, the device's queue emptied before and after."""
    wait_for(device)
    started = time.perf_counter()
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16):
        first = model.forward_generative(batch)
        predictions = [first.expression, first.cell_conditioned]
        if second_pass:
            second = model.forward_generative(batch, cell_embedding_BD=first.cells_BD.detach())
            predictions.append(second.expression)
    counted = torch.ones_like(batch.unknown_targets, dtype=torch.bool)
    losses = [expression_loss(value.float(), batch.unknown_targets, counted_BL=counted).mean for value in predictions]
    torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_config(options: argparse.Namespace, kernel: str) -> Any:
    """The fields of ModelConfig, which itself needs pydantic."""
    return SimpleNamespace(
        vocabulary_size=options.vocabulary,
        width=options.width,
        num_heads=8,
        feedforward_width=options.width,
        num_layers=options.layers,
        dropout=0.2,
        attention_dropout=0.0,
        attention_backend=kernel,
        value_style="continuous",
        num_value_bins=0,
        token_norm="none",
        norm_counts_padding=False,
        num_batch_labels=0,
        decoders_see_batch=False,
        batch_discriminator=False,
        num_modalities=0,
        num_perturbation_flags=0,
        expression_decoder="value",
        adaptive_bias=False,
        zero_probability=False,
        cell_conditioned_decoder="inner product",
        generative=True,
        num_labels=0,
        cell_embedding="cls",
        pooling_counts_padding=False,
        unknown_out_proj=False,
        condition_width=options.width,
    )


def _batch(options: argparse.Namespace, device: torch.device) -> PackedGenerative:
    """Full cells, half of their genes unknown."""
    unknown = (options.length - 1) // 2
    known, cells = options.length - unknown, options.cells
    generator = torch.Generator().manual_seed(1)

    def genes(count: int) -> Tensor:
        return torch.randint(0, options.vocabulary - 3, (count,), generator=generator).to(device)

    def bins(count: int) -> Tensor:
        return torch.randint(1, 51, (count,), generator=generator).float().to(device)

    shown = Packed(genes(cells * known), bins(cells * known), (known,) * cells)
    hidden = cells * unknown
    return PackedGenerative(shown, genes(hidden), bins(hidden), (unknown,) * cells)


if __name__ == "__main__":
    main()
