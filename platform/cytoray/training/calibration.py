"""Measure how long a step of a run takes on this machine, with one local process per worker and no Ray.

Each process builds the run's engine, takes optimiser steps together with the others (on cells of the corpus if it can
be read) and copies a checkpoint. A long step is measured on some of its cells and on almost none, and scaled by the
operations that all of them need:  python -m cytoray.training.calibration ORDER.json RESULT.json  is one process.
"""

# B cells, K known and U unknown tokens of a cell, L tokens of a cell

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save as save_tensors

from cytoray.config import Config
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import TrainingError
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training import engine as engines
from cytoray.training.averaging import WeightAverage
from cytoray.training.config import PretrainConfig
from cytoray.training.hardware import memory_bytes
from cytoray.training.objectives import ObjectiveModule, build_pretraining_objective
from cytoray.training.slices import encode_slices
from cytoray.training.steps import StepPlan, StepRunner
from cytoray.training.validation import Validator

BUDGET_S = 8.0  # of timed steps
READ_BUDGET_S = 2.0
LONG_STEP_S = 4.0  # a longer step is measured on some of its cells
FEWEST_STEPS, MOST_STEPS = 3, 200
STEPS_READ, STEPS_A_RATIO = 24, 4  # read from the corpus, and kept for each unknown ratio
LIMIT_S = 900.0  # for all of it
NUM_GENES = 60_000  # ids below are genes; special tokens have higher ones
STDERR_LINES = 6


class Calibration(Config):
    """Measured times in seconds, until all workers have finished."""

    step_s: float  # optimiser step, averaged over the unknown ratios and the passes of the run
    read_s: float  # CPU time that reading takes from a step; 0 if spare cores do it
    checkpoint_s: float  # copying one and, without spare cores, encoding and hashing it
    validation_s: float  # one validation
    start_s: float  # from process start to the first step: imports, engine, first cells
    num_steps: int  # timed steps
    share: float  # share of a full step's operations in each of them
    memory_bytes: int = 0  # peak of one process: on its GPU, or resident

    def seconds_per_step(self, checkpoint_every: int) -> float:
        """Seconds per step of the run, including checkpoints and validations."""
        return self.step_s + self.read_s + (self.checkpoint_s + self.validation_s) / checkpoint_every


class _Order(Config):
    """The order that the processes read."""

    config: PretrainConfig
    genes_per_cell: float
    has_corpus: bool
    started: float  # wall-clock time


def calibrate(config: PretrainConfig, *, genes_per_cell: float, has_corpus: bool) -> Calibration:
    """Measure ``config`` with ``workers.most`` processes in about half a minute.

    Without a corpus the cells are random, with ``genes_per_cell`` genes. Raises TrainingError if a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="cytoray-calibration-") as name:
        folder = Path(name)
        order = _Order(config=config, genes_per_cell=genes_per_cell, has_corpus=has_corpus, started=time.time())
        (folder / "order.json").write_text(order.model_dump_json())
        _run_together(folder, config)
        return Calibration.model_validate_json((folder / "result.json").read_bytes())


def random_batch(config: PretrainConfig, tokens: int, *, ratio: float, step: int, num_cells: int = 1) -> StepBatch:
    """Make cells of ``tokens`` tokens with random genes and bins, ``ratio`` of the genes hidden in the run's style."""
    hidden = max(1, int((tokens - 1) * ratio))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, NUM_GENES, (num_cells, tokens)).astype(np.uint16)
    values = rng.integers(1, config.tokenizer.n_bins, ids.shape).astype(np.int16)
    known = tokens - hidden
    one_each = np.ones(num_cells, np.int32)
    fields: dict[str, Any]
    if config.objective.style == "masked":
        masked = values.copy()
        masked[:, known:] = int(config.tokenizer.mask_value)
        fields = {"gene_ids": ids, "values": values, "masked": masked, "lengths": one_each * tokens}
    else:
        fields = {"gene_ids": ids[:, :known], "values": values[:, :known], "lengths": one_each * known}
        fields |= {"unknown_gene_ids": ids[:, known:], "unknown_values": values[:, known:]}
        fields["unknown_lengths"] = one_each * hidden
    cell_ids, nothing = np.arange(num_cells, dtype=np.uint64), np.zeros(0, np.int32)
    return StepBatch(step, 0, 1, **fields, cell_ids=cell_ids, epochs=0 * one_each, labels=nothing)


def phases(config: PretrainConfig) -> tuple[tuple[int, float], ...]:
    """Return a step without and one with the second pass, each with its share of the run."""
    last, after = config.train.num_steps - 1, config.objective.second_pass_after
    share = 1 - (after or 0) / config.train.num_steps if config.objective.has_second_pass(last) else 0.0
    return (0, 1 - share), (last, share)


def _run_together(folder: Path, config: PretrainConfig) -> None:
    """Run all processes to the end; TrainingError with the last lines of one that fails."""
    processes: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + LIMIT_S
    try:
        environment = _environment(config)
        for rank in range(config.workers.most):
            processes.append(_start(folder, rank, environment))  # noqa: PERF401 - the started ones are killed if one fails
        running = True
        while running:
            codes = [process.poll() for process in processes]
            running = None in codes
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None or time.monotonic() > deadline:
                raise _failure(folder, failed or 0, codes[failed or 0])
            time.sleep(0.05 if running else 0)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(folder: Path, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start one process whose stderr goes to a file."""
    files = [str(folder / "order.json"), str(folder / "result.json")]
    command = [sys.executable, "-m", "cytoray.training.calibration", *files]
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with (folder / f"{rank}.err").open("wb") as errors:
        return subprocess.Popen(command, env=environment | own, stdout=subprocess.DEVNULL, stderr=errors)


def _environment(config: PretrainConfig) -> dict[str, str]:
    """The environment of the processes: rendezvous and device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(config.workers.most), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        world["GLOO_SOCKET_IFNAME"] = "lo"
    cpu = {} if config.workers.use_gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **world, **cpu}


def _failure(folder: Path, rank: int, code: int | None) -> TrainingError:
    """Describe a failed process by the end of its stderr; ``code`` is None if it timed out."""
    lines = (folder / f"{rank}.err").read_text(errors="replace").strip().splitlines()[-STDERR_LINES:]
    how = f"took longer than {LIMIT_S:.0f} s" if code is None else f"failed with exit code {code}"
    return TrainingError(
        f"Measuring a step of this run {how} in process {rank}:\n" + "\n".join(lines) + "\n",
        remedy="The run would probably fail likewise. Killed (-9) means too little memory: lower workers.num_workers "
        "or train.micro_batch_tokens. `--gpus NUMBERxKIND` plans without measuring.",
        rank=rank,
        exit_code=code,
    )


def main() -> None:
    """Run one process of the measurement; rank 0 writes the result."""
    order_path, result_path = (Path(argument) for argument in sys.argv[1:])
    order = _Order.model_validate_json(order_path.read_bytes())
    workers = order.config.workers
    torch.set_num_threads(workers.threads_per_worker)
    if workers.use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=workers.collective_timeout_s)
    dist.init_process_group("nccl" if workers.use_gpu else "gloo", timeout=timeout)
    found = _measure(order)
    if dist.get_rank() == 0:
        result_path.write_text(found.model_dump_json())
    dist.barrier()
    dist.destroy_process_group()


def _measure(order: _Order) -> Calibration:
    """Measure everything, in the order in which a run does it."""
    config = order.config
    rehearsal = _Rehearsal.build(config)
    batches, start_s, read_s = _find_batches(order)
    steps = rehearsal.time_steps(batches)
    is_full = config.workers.most * config.workers.threads_per_worker >= (os.cpu_count() or 1)
    copied_s, written_s = rehearsal.time_checkpoint()
    return Calibration(
        step_s=steps.seconds,
        read_s=read_s if is_full else 0.0,
        checkpoint_s=copied_s + (written_s if is_full else 0.0),
        validation_s=rehearsal.time_validation(batches[0]),
        start_s=start_s,
        num_steps=steps.number,
        share=steps.share,
        memory_bytes=memory_bytes(rehearsal.runner.engine.device),
    )


def _find_batches(order: _Order) -> tuple[list[StepBatch], float, float]:
    """Return this rank's share of some steps, seconds until the first was read, and seconds to read one.

    Unknown ratios alternate. The steps are from the end of the run, when the second pass is on if it ever is.
    """
    config, world_size = order.config, dist.get_world_size()
    if order.has_corpus:
        return _read_batches(order)
    tokens = round(min(order.genes_per_cell + 1, config.tokenizer.max_length))
    cells = config.train.cells_per_step // world_size
    ratios = config.objective.unknown_ratios
    step = config.train.num_steps - 1
    batches = [random_batch(config, tokens, ratio=ratio, step=step, num_cells=cells) for ratio in ratios]
    return batches, time.time() - order.started, 0.0


def _read_batches(order: _Order) -> tuple[list[StepBatch], float, float]:
    """Like ``_find_batches``, from the corpus; reading is timed over a whole window of steps."""
    from cytoray.corpus.stream import open_stream
    from cytoray.training.pretraining import stream_options
    from cytoray.training.validation import held_in

    config, last = order.config, order.config.train.num_steps - 1
    stream = open_stream(config.store, config.corpus, held_in(stream_options(config), config))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    stream.read_step(0, rank=rank, world_size=world_size)  # kernels are loaded
    start_s = time.time() - order.started
    first, stop = next(iter(stream.order.runs(0, config.train.num_steps)))
    ratios = stream.options.ratios_at(np.arange(first, stop))
    found: dict[float, list[StepBatch]] = {}
    number, started, cpu = 0, time.perf_counter(), time.process_time()
    for batch in stream.read_steps(first, stop, rank=rank, world_size=world_size, threads=0):
        same = found.setdefault(float(ratios[number]), [])
        if number < STEPS_READ and len(same) < STEPS_A_RATIO:
            same.append(replace(batch, step=last))
        number += 1
        if number >= STEPS_READ and time.perf_counter() - started > READ_BUDGET_S:
            break
    turns = itertools.zip_longest(*(found[ratio] for ratio in sorted(found)))
    batches = [batch for turn in turns for batch in turn if batch is not None]
    return batches, start_s, (time.process_time() - cpu) / number


@dataclass(frozen=True)
class _TimedSteps:
    """Mean seconds per step of the run, from ``number`` steps with a ``share`` of its operations."""

    seconds: float
    number: int
    share: float


@dataclass(frozen=True)
class _Rehearsal:
    """One rank of the run without Ray; all ranks must call every method."""

    config: PretrainConfig
    runner: StepRunner
    average: WeightAverage | None

    @staticmethod
    def build(config: PretrainConfig) -> _Rehearsal:
        """The run's engine with fresh weights."""
        from cytoray.training.pretraining import build_model

        pad_id, model = GeneVocabulary.load_default().pad_id, build_model(config)
        objective = build_pretraining_objective(config.objective, pad_id=pad_id)
        torch.manual_seed(config.train.seed)
        module = ObjectiveModule(ScGPT(model, pad_id=pad_id), objective)
        engine = engines.build_engine(module, config, dist.get_world_size())
        decay = config.train.ema_decay
        average = None if decay is None else WeightAverage(engine, decay=decay)
        return _Rehearsal(config, StepRunner(engine, config, model, objective), average)

    def time_steps(self, batches: list[StepBatch]) -> _TimedSteps:
        """Time whole steps, or micro-batches if steps take long."""
        idle_s = self._time_idle()
        wanted = self._mean_flops(batches)
        parts = self._num_parts(batches[0], idle_s, wanted)
        runner = self.runner
        if parts > 1:
            batches = [batch.split(parts)[parts // 2] for batch in batches]
            runner = self._alone()
        times = list(self._take_steps(runner, batches, fewest=FEWEST_STEPS if parts == 1 else 1))
        flops = sum(plan.amounts.flops for _, plan in times)
        rate = sum(seconds - idle_s for seconds, _ in times) / flops
        return _TimedSteps(idle_s + max(rate, 0.0) * wanted, len(times), min(1.0, flops / len(times) / wanted))

    def _take_steps(
        self, runner: StepRunner, batches: list[StepBatch], *, fewest: int
    ) -> Iterator[tuple[float, StepPlan]]:
        """Yield seconds of steps over ``batches`` until a rank has spent the budget; the first is a warm-up."""
        if fewest > 1:
            self._step(runner, batches[-1])
        started = time.perf_counter()
        for number, batch in enumerate(itertools.islice(itertools.cycle(batches), MOST_STEPS), start=1):
            seconds, plan = self._step(runner, batch, time.perf_counter() - started > BUDGET_S)
            yield seconds, plan
            if number >= fewest and any(plan.signals):
                return

    def _step(self, runner: StepRunner, batch: StepBatch, *signals: bool) -> tuple[float, StepPlan]:
        """Take one optimiser step; return its seconds."""
        started = time.perf_counter()
        plan = runner.plan(batch, *signals)
        runner.take(batch, plan)
        if self.average is not None:
            self.average.update()
        return time.perf_counter() - started, plan

    def _alone(self) -> StepRunner:
        """A runner whose steps have one micro-batch."""
        train = self.config.train.model_copy(update={"accumulation": 1, "cells_per_step": dist.get_world_size()})
        return replace(self.runner, config=self.config.model_copy(update={"train": train}))

    def _time_idle(self) -> float:
        """Seconds of a step with almost no tokens: gradient exchange and update."""
        tiny = random_batch(self.config, 3, ratio=0.5, step=self.config.train.num_steps - 1)
        times = [self._step(self._alone(), tiny)[0] for _ in range(4)]
        return float(np.median(times[1:]))

    def _mean_flops(self, batches: list[StepBatch]) -> float:
        """Operations of a step over all ranks, averaged over ``batches`` and over the passes of the run."""
        measure, model = self.runner.objective.measure, self.runner.model
        mine = [
            share * measure(model, replace(batch, step=step)).flops
            for batch in batches
            for step, share in phases(self.config)
        ]
        return self._over_ranks(sum(mine) / len(batches), dist.ReduceOp.SUM)

    def _num_parts(self, batch: StepBatch, idle_s: float, wanted: float) -> int:
        """How many parts to cut a step into so that one takes a few seconds; 1 if the whole step does."""
        middle = batch.split(batch.num_cells)[batch.num_cells // 2]
        seconds, plan = self._step(self._alone(), middle)
        estimate = self._over_ranks(
            idle_s + max(seconds - idle_s, 0.0) / plan.amounts.flops * wanted, dist.ReduceOp.MAX
        )
        if estimate <= LONG_STEP_S:
            return 1
        micro_batches = self.runner.plan(batch).num_parts  # a part must not be larger than one of them
        share = self.config.train.cells_per_step // dist.get_world_size()
        return min(share, max(micro_batches, int(estimate / LONG_STEP_S) + 1))

    def _over_ranks(self, value: float, operation: Any) -> float:
        """Reduce a number over all ranks."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.runner.engine.device)
        dist.all_reduce(tensor, op=operation)
        return float(tensor)

    def time_checkpoint(self) -> tuple[float, float]:
        """Seconds to copy a checkpoint, and to encode and hash it (which a thread does in the background)."""
        averages = None if self.average is None else self.average.weights()
        started = time.perf_counter()
        snapshot = engines.take_snapshot(self.runner.engine, averages=averages)
        copied = time.perf_counter()
        for data in (save_tensors(snapshot.weights), encode_slices(snapshot.slices)):
            hashlib.sha256(data).digest()
        if snapshot.averages is not None:
            hashlib.sha256(save_tensors(snapshot.averages)).digest()
        return copied - started, time.perf_counter() - copied

    def time_validation(self, batch: StepBatch) -> float:
        """Seconds of one validation, scaled from the cells of ``batch`` or of one part of it."""
        if self.config.validation is None:
            return 0.0
        share = self.config.train.cells_per_step // dist.get_world_size()
        parts = -(-share // 32)
        part, cells = batch.split(parts)[parts // 2], share // parts
        validator = Validator(part, self.runner.objective, cells * dist.get_world_size())
        started = time.perf_counter()
        with contextlib.nullcontext() if self.average is None else self.average.swapped_in():
            validator.judge(self.runner.engine)
        seconds = time.perf_counter() - started
        return seconds * self.config.validation.max_cells / (part.num_cells * dist.get_world_size())


if __name__ == "__main__":
    main()
