"""The plan of one stage: cells and bytes, processes, memory, time, and cost on each machine of a price table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cytoray.cluster import FEW_CELLS
from cytoray.config import Config
from cytoray.corpus.config import IngestConfig
from cytoray.errors import CorpusError, StorageError
from cytoray.operations.planning.prices import Cost, PriceTable, cost_on_cpus, cost_on_gpus
from cytoray.training.config import PretrainConfig, RunConfig

NOT_ESTIMATED = "not estimated for this stage"
UNCOMPRESSED_BYTES = 7.0  # per entry of a file, from which on it is not compressed


RAY_START_S = 4.0  # for a job to connect to its cluster, and for its first tasks


@dataclass(frozen=True)
class StagePlan:
    """Figures of a stage; None where they are not known before it runs."""

    stage: str
    how: str  # how time and memory were found
    num_cells: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    num_processes: int = 1
    num_gpus: int = 0
    memory_bytes: int | None = None  # of each process
    seconds: float | None = None
    costs: tuple[Cost, ...] = ()
    currency: str = ""
    prices: str = ""  # date and source of the table
    assumptions: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Format the plan as lines of text."""
        yield f"stage        {self.stage}"
        if self.num_cells is not None:
            yield f"cells        {self.num_cells:,}"
        for name, value in (("read", self.bytes_read), ("write", self.bytes_written)):
            if value is not None:
                yield f"{name:<13}{value / 1e6:,.1f} MB"
        gpus = f", {self.num_gpus} GPUs" if self.num_gpus else ""
        yield f"processes    {self.num_processes}{gpus}"
        if self.memory_bytes is not None:
            yield f"memory       {self.memory_bytes / 1e9:,.2f} GB per process"
        if self.seconds is not None:
            yield f"time         {self.seconds:,.0f} s ({self.seconds / 3600:,.3f} h)"
        yield f"how          {self.how}"
        for number, cost in enumerate(self.costs):
            yield f"{'' if number else 'cost':<13}{cost.describe(self.currency)}"
        if self.prices:
            yield f"prices       {self.prices}"
        for number, assumption in enumerate(self.assumptions):
            yield f"{'' if number else 'assumed':<13}{assumption}"


def plan_stage(config: Config, *, prices: PriceTable | None) -> StagePlan:
    """Plan a stage: an ingest by its listing and headers, a training by steps that are measured on this machine.

    Reads no cells of the user; takes about half a minute. Raises CorpusError for sources that cannot be used.
    """
    table = {} if prices is None else {"currency": prices.currency, "prices": f"{prices.as_of}: {prices.source}"}
    if isinstance(config, IngestConfig):
        return _plan_ingest(config, prices, table)
    if isinstance(config, PretrainConfig):
        return _plan_pretraining(config, prices, table)
    stage = str(getattr(config, "kind", ""))
    if isinstance(config, RunConfig):
        cells = config.train.num_steps * config.train.cells_per_step
        workers = config.workers
        return StagePlan(
            stage,
            f"time and memory are {NOT_ESTIMATED}: they depend on the initial model",
            num_cells=cells,
            num_processes=workers.most,
            num_gpus=workers.most if workers.use_gpu else 0,
        )
    return StagePlan(stage, NOT_ESTIMATED)


def _plan_ingest(config: IngestConfig, prices: PriceTable | None, table: dict[str, Any]) -> StagePlan:
    """Plan an ingest from listings and headers, with rates that are measured here on synthetic cells."""
    from cytoray.operations.planning.ingest_rate import IngestOrder, measure_rate

    cells, entries, bytes_read = count_entries(config)
    if cells == 0:
        return StagePlan("ingest", "nothing to read", num_cells=0, bytes_read=0, bytes_written=0, seconds=0.0, **table)
    compression: Literal["none", "gzip"] = "none" if bytes_read / max(1, entries) >= UNCOMPRESSED_BYTES else "gzip"
    rate = measure_rate(IngestOrder(genes_per_cell=entries / cells, compression=compression))
    is_small = cells <= FEW_CELLS  # which is done in the process of the job
    tasks = 1 if is_small else config.read_concurrency
    seconds = rate.start_s + rate.fixed_s + entries / rate.entries_per_s / tasks + (0.0 if is_small else RAY_START_S)
    costs = (
        ()
        if prices is None
        else cost_on_cpus(prices, seconds=seconds, cpus=tasks, memory_bytes=tasks * rate.memory_bytes)
    )
    return StagePlan(
        "ingest",
        f"measured: {rate.num_cells:,} synthetic cells of {entries / cells:,.0f} genes, one process",
        num_cells=cells,
        bytes_read=bytes_read,
        bytes_written=round(rate.bytes_per_entry * entries),
        num_processes=tasks,
        memory_bytes=rate.memory_bytes,
        seconds=seconds,
        costs=tuple(costs),
        assumptions=("the store is as fast as this machine's disk", "concurrent tasks do not hinder each other"),
        **table,
    )


def count_entries(config: IngestConfig) -> tuple[int, int, int]:
    """Return cells, non-zero counts and bytes of the sources, by listing and headers only."""
    from cytoray.corpus.ingesting.planning import plan_ingest

    found = [planned.description for planned in plan_ingest(config).sources]
    known = [each.num_bytes // 2 if each.num_entries is None else each.num_entries for each in found]
    return sum(each.num_cells for each in found), sum(known), sum(each.num_bytes for each in found)


def _plan_pretraining(config: PretrainConfig, prices: PriceTable | None, table: dict[str, Any]) -> StagePlan:
    """Plan a pretraining: measured here for CPUs, projected for each kind of GPU in the table."""
    from cytoray.corpus.manifest import load_manifest
    from cytoray.training.hardware import PEAK_FLOPS
    from cytoray.training.plan import Hardware, plan_pretraining

    try:
        manifest = load_manifest(config.store, config.corpus)
    except (CorpusError, StorageError):
        manifest = None
    workers = config.workers
    if not workers.use_gpu:
        made = plan_pretraining(config, Hardware(), manifest=manifest)
        seconds = made.seconds + (made.estimate.start_s or 0.0)
        memory = made.estimate.memory_bytes or made.state_bytes[workers.zero_stage] + made.activation_bytes
        cpus = workers.most * workers.threads_per_worker
        costs = (
            []
            if prices is None
            else list(cost_on_cpus(prices, seconds=seconds, cpus=cpus, memory_bytes=workers.most * memory))
        )
        return StagePlan(
            "pretrain",
            made.estimate.how,
            num_cells=made.num_cells,
            num_processes=workers.most,
            memory_bytes=memory,
            seconds=seconds,
            costs=tuple(costs),
            assumptions=made.assumptions,
            **table,
        )
    instances = [] if prices is None else [each for each in prices.instances if each.gpu.upper() in PEAK_FLOPS]
    plans = {
        each.name: plan_pretraining(config, Hardware(workers.most, each.gpu.upper()), manifest=manifest)
        for each in instances
    }
    if not plans:
        return StagePlan(
            "pretrain", "no known GPU in the price table", num_processes=workers.most, num_gpus=workers.most, **table
        )
    first = next(iter(plans.values()))
    return StagePlan(
        "pretrain",
        first.estimate.how,
        num_cells=first.num_cells,
        num_processes=workers.most,
        num_gpus=workers.most,
        memory_bytes=first.state_bytes[workers.zero_stage] + first.activation_bytes,
        seconds=first.seconds,
        costs=tuple(cost_on_gpus(each, seconds=plans[each.name].seconds, num_gpus=workers.most) for each in instances),
        assumptions=first.assumptions,
        **table,
    )
