"""Training's step loop on one GPU, without Ray and DeepSpeed: ``python benchmarks/gpu_train.py``.

Needs torch and numpy only, and this checkout. bf16 autocast over fp32 weights, fused AdamW, micro-batches whose
gradients add up, clipping; every step has other synthetic cells of 1,200 tokens, made on the host and copied while the
GPU works, as a run's are. One JSON line for each objective (with the second pass, and without) and micro-batch size:
cells/s, real tokens/s, and the share of the GPU's bf16 peak by the operations that the objective needs (attention by
its rule, real tokens only). Shares of unknown genes go round 0.25, 0.5 and 0.75, as a run draws them.
``--device cpu --cells 4 --layers 2 --width 64 --steps 2`` shows that it runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
sys.path.insert(0, str(ROOT / "platform"))  # cytoray need not be installed; its model room needs torch alone

import torch
from torch import Tensor

from benchmarks.gpu_step import GOALS, PEAK_FLOPS, Packed, PackedGenerative, build_config, wait_for
from cytoray.model.flops import generative_flops
from cytoray.model.losses import expression_loss
from cytoray.model.transformer import ScGPT

RATIOS = (0.25, 0.5, 0.75)
KERNELS = ("auto", "varlen", "flex", "sdpa", "cell")


@dataclass(frozen=True)
class Measured:
    """One objective at one micro-batch size."""

    second_pass: bool
    micro_cells: int


def main() -> None:
    """Measure both objectives at every micro-batch size."""
    options = _options()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sizes = sorted({min(size, options.cells) for size in options.micro_cells})
    for case in (Measured(second_pass, size) for second_pass in (False, True) for size in sizes):
        record = {"second_pass": case.second_pass, "micro_cells": case.micro_cells, "kernel": options.kernel}
        record |= {"device": name, "torch": torch.__version__, "cells": options.cells, "length": options.length}
        try:
            record |= _measure(options, device, case, name)
        except torch.OutOfMemoryError:  # the largest micro-batches may not fit
            record["error"] = "out of memory"
        record["goal_cells_per_s"] = GOALS["two_pass" if case.second_pass else "one_pass"]
        print(json.dumps(record), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cells", type=int, default=256, help="cells per step")
    parser.add_argument("--micro-cells", type=int, nargs="+", default=[16, 32, 64, 128], help="cells per micro-batch")
    parser.add_argument("--length", type=int, default=1200, help="tokens per cell")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=60_697)
    parser.add_argument("--steps", type=int, default=9, help="steps timed; a multiple of three has all shares alike")
    parser.add_argument("--kernel", choices=KERNELS, default="auto", help="auto is what a run takes")
    return parser.parse_args()


def _measure(options: argparse.Namespace, device: torch.device, case: Measured, name: str) -> dict[str, Any]:
    """Wall time of all steps after those that warm up, one for each share, and what follows from it."""
    torch.manual_seed(0)
    config = build_config(options, options.kernel)
    model = ScGPT(config, pad_id=options.vocabulary - 1).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(len(RATIOS)):
        _step(model, optimizer, _cells(options, case, step), case)
    wait_for(device)
    started, loss = time.perf_counter(), torch.zeros((), device=device)
    for step in range(options.steps):
        loss = _step(model, optimizer, _cells(options, case, step), case)
    wait_for(device)
    seconds = (time.perf_counter() - started) / options.steps
    assert torch.isfinite(loss), "the loop does not train"
    needed = sum(_needed(config, options, case, step) for step in range(options.steps)) / options.steps
    peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)
    return {
        "cells_per_s": round(options.cells / seconds, 1),
        "tokens_per_s": round(options.cells * options.length / seconds),
        "step_ms": round(1e3 * seconds, 2),
        "needed_tflops_per_s": round(needed / seconds / 1e12, 3),
        "mfu": None if peak is None else round(needed / seconds / peak, 4),
        "memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 1) if device.type == "cuda" else None,
    }


def _needed(config: Any, options: argparse.Namespace, case: Measured, step: int) -> int:
    """Operations that a step's objective needs: one or two passes, and their way back."""
    unknown = [_num_unknown(options, step)] * options.cells
    known = [options.length - number for number in unknown]
    alone = SimpleNamespace(**{**vars(config), "cell_conditioned_decoder": "none"})
    passes = (config, alone) if case.second_pass else (config,)
    return 3 * sum(generative_flops(shape, known, unknown).total for shape in passes)


def _num_unknown(options: argparse.Namespace, step: int) -> int:
    return int((options.length - 1) * RATIOS[step % len(RATIOS)])


def _step(
    model: ScGPT, optimizer: torch.optim.Optimizer, micro_batches: list[PackedGenerative], case: Measured
) -> Tensor:
    """One optimiser step over micro-batches; its loss stays on the device, so that nothing waits."""
    device = next(model.parameters()).device
    num_terms = sum(sum(part.unknown_lengths) for part in micro_batches)
    total = torch.zeros((), device=device)
    for host in micro_batches:
        part = _to(host, device)
        with torch.autocast(device.type, torch.bfloat16):
            first = model.forward_generative(part)  # type: ignore[arg-type]
            predictions = [first.expression, first.cell_conditioned]
            if case.second_pass:
                again = model.forward_generative(part, cell_embedding_BD=first.cells_BD.detach())  # type: ignore[arg-type]
                predictions.append(again.expression)
        counted = torch.ones_like(part.unknown_targets, dtype=torch.bool)
        losses = [
            expression_loss(value.float(), part.unknown_targets, counted_BL=counted).total
            for value in predictions
            if value is not None
        ]
        loss = torch.stack(losses).sum() / num_terms
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _to(host: PackedGenerative, device: torch.device) -> PackedGenerative:
    """The micro-batch on the device, copied while that works on what came before."""

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    known = replace(host.known, gene_ids=move(host.known.gene_ids), values=move(host.known.values))
    return PackedGenerative(known, move(host.unknown_gene_ids), move(host.unknown_targets), host.unknown_lengths)


def _cells(options: argparse.Namespace, case: Measured, step: int) -> list[PackedGenerative]:
    """The step's full cells on the host, in micro-batches."""
    generator = torch.Generator().manual_seed(step)
    unknown = _num_unknown(options, step)
    micro_batches = []
    for start in range(0, options.cells, case.micro_cells):
        cells = min(case.micro_cells, options.cells - start)
        num_known, num_unknown = cells * (options.length - unknown), cells * unknown
        ids = torch.randint(0, options.vocabulary - 3, (num_known + num_unknown,), generator=generator)
        bins = torch.randint(1, 51, (num_known + num_unknown,), generator=generator).float()
        shown = Packed(ids[:num_known], bins[:num_known], (options.length - unknown,) * cells)
        micro_batches.append(PackedGenerative(shown, ids[num_known:], bins[num_known:], (unknown,) * cells))
    return micro_batches


if __name__ == "__main__":
    main()
