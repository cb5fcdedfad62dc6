"""Write docs/sizing.md from the constants of benchmarks/sizing.yaml and the prices of configs/prices.yaml.

``python scripts/sizing.py`` writes the page, ``--check`` fails if it differs from what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.ingest_requests import simulate
from cytoray.config import Config, load_config
from cytoray.training.hardware import PEAK_FLOPS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "sizing.md"
SIZES = (1_000_000, 10_000_000, 33_000_000, 100_000_000)
MEASURED_GPU = "H200"
CPU_INSTANCE, FEW_CORES = "m6i.4xlarge", "m6i.8xlarge"
GPU_INSTANCES = ("p5.48xlarge", "p4d.24xlarge")
GIB = 2**30


class Constant(Config):
    """A figure and where it comes from."""

    value: float | int
    source: str


class MeasuredOn(Config):
    """The machines of the measurements, named by class."""

    cpu: str
    gpu: str


class StorePrices(Config):
    """Prices of an object store."""

    gib_month: float
    get_1000: float
    put_1000: float


class Constants(Config):
    """Contents of benchmarks/sizing.yaml."""

    measured_on: MeasuredOn
    cell: dict[str, Constant]
    model: dict[str, Constant]
    cpu_rates: dict[str, Constant]
    gpu_rates: dict[str, Constant]
    assumed: dict[str, Constant]
    memory_gib: dict[str, Constant]
    store_prices: StorePrices


class Instance(Config):
    """An instance type; ``hourly`` is its price."""

    name: str
    hourly: float
    vcpus: int
    memory_gib: int
    gpus: int = 0
    gpu: str | None = None


class Prices(Config):
    """Contents of configs/prices.yaml."""

    as_of: str
    source: str
    currency: str
    instances: tuple[Instance, ...]

    def named(self, name: str) -> Instance:
        """Return an instance type."""
        return next(one for one in self.instances if one.name == name)


@dataclass(frozen=True)
class Work:
    """Time and price of a piece of work on one instance."""

    instance: str
    hours: float
    cost: float

    def row(self) -> list[str]:
        """Format for a table."""
        return [f"`{self.instance}`", hours(self.hours), money(self.cost)]


class Sizing:
    """All formulas of the page; sizes in cells, results in hours, bytes and the currency of the prices."""

    def __init__(self, constants: Constants, prices: Prices) -> None:
        self.constants, self.prices = constants, prices

    def on_cores(self, num_cells: float, rate: str, instance: str = CPU_INSTANCE) -> Work:
        """Divide work over all vCPUs of an instance, at the rate of a core here."""
        kind = self.prices.named(instance)
        per_s = self.constants.cpu_rates[rate].value * kind.vcpus * self.constants.assumed["scaling"].value
        return self._work(instance, num_cells / per_s / 3600)

    def pretrain(self, num_cells: float, rate: str, instance: str) -> Work:
        """Train for all epochs; the rate of another GPU than the measured one follows from its peak."""
        kind = self.prices.named(instance)
        assert kind.gpu is not None, "an instance with GPUs"
        share = PEAK_FLOPS[kind.gpu] / PEAK_FLOPS[MEASURED_GPU]
        assumed = self.constants.assumed
        per_s = self.constants.gpu_rates[rate].value * share * kind.gpus * assumed["scaling"].value
        return self._work(instance, num_cells * assumed["epochs"].value / per_s / 3600)

    def embed_on_gpus(self, num_cells: float, instance: str) -> Work:
        """Embed once, from operations and the assumed share of the peak."""
        kind = self.prices.named(instance)
        assert kind.gpu is not None, "an instance with GPUs"
        flops = PEAK_FLOPS[kind.gpu] * self.constants.assumed["forward_mfu"].value * kind.gpus
        seconds = num_cells * self.constants.model["forward_flops"].value / flops
        return self._work(instance, seconds / 3600 / self.constants.assumed["scaling"].value)

    def requests(self, num_cells: int) -> tuple[int, int, float]:
        """Return the requests of an ingest that read and that write, and their price."""
        counted, prices = simulate(num_cells), self.constants.store_prices
        gets, puts = counted["gets"], counted["puts"]
        return gets, puts, gets / 1000 * prices.get_1000 + puts / 1000 * prices.put_1000

    def _work(self, instance: str, needed: float) -> Work:
        return Work(instance, needed, needed * self.prices.named(instance).hourly)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table, the first column to the left, the others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Format with three digits: 33 M, 1,234, 2.24."""
    for limit, unit in ((1e9, " G"), (1e6, " M")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Format bytes as GB or TB."""
    return f"{num_bytes / 1e12:.2f} TB" if num_bytes >= 1e12 else f"{num_bytes / 1e9:.3g} GB"


def hours(value: float) -> str:
    """Format hours, or minutes below one."""
    return f"{value * 60:.1f} min" if value < 1 else f"{value:,.1f} h"


def money(value: float) -> str:
    """Format a price in dollars."""
    return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def cells(num_cells: int) -> str:
    """Format a number of cells."""
    return f"{num_cells // 1_000_000} M"


def constants_tables(constants: Constants) -> Iterator[str]:
    """Yield the tables of constants with their sources."""
    titles = {
        "cell": "A cell",
        "model": "The model",
        "cpu_rates": "Cells per second and core",
        "gpu_rates": "Cells per second and GPU",
        "memory_gib": "Memory, GiB",
        "assumed": "Assumed, not measured",
    }
    for name, title in titles.items():
        rows = [(key.replace("_", " "), number(one.value), one.source) for key, one in getattr(constants, name).items()]
        yield (
            f"### {title}\n\n"
            + "".join(f"| {' | '.join(line)} |\n" for line in [("", "value", "from"), ("---", "---:", "---"), *rows])
            + "\n"
        )


def corpus_table(sizing: Sizing) -> str:
    """Storage and ingest by size."""
    cell, prices = sizing.constants.cell, sizing.constants.store_prices
    rows = []
    for num_cells in SIZES:
        stored = num_cells * cell["corpus_bytes"].value
        work = sizing.on_cores(num_cells, "ingest")
        gets, puts, cost = sizing.requests(num_cells)
        rows.append(
            [
                cells(num_cells),
                size(num_cells * cell["raw_bytes"].value),
                size(stored),
                money(stored / GIB * prices.gib_month),
                *work.row()[1:],
                f"{gets:,}",
                f"{puts:,}",
                money(cost),
            ]
        )
    head = ["cells", "raw", "corpus", "a month", "ingest", "cost", "reads", "writes", "cost of both"]
    return table(head, rows)


def gpu_table(sizing: Sizing, rate: str) -> str:
    """Hours and cost of pretraining by size and instance."""
    rows = [
        [cells(num_cells), *(f"{hours(work.hours)}, {money(work.cost)}" for work in works)]
        for num_cells in SIZES
        for works in [[sizing.pretrain(num_cells, rate, instance) for instance in GPU_INSTANCES]]
    ]
    names = [f"`{name}`, {_gpus(sizing, name)}" for name in GPU_INSTANCES]
    return table(["cells", *names], rows)


def _gpus(sizing: Sizing, name: str) -> str:
    kind = sizing.prices.named(name)
    return f"{kind.gpus} {kind.gpu}"


def embed_table(sizing: Sizing) -> str:
    """Hours and cost of embedding or annotating every cell once."""
    rows = []
    for num_cells in SIZES:
        on_cpu = sizing.on_cores(num_cells, "embed", FEW_CORES)
        on_gpu = [sizing.embed_on_gpus(num_cells, name) for name in GPU_INSTANCES]
        rows.append([cells(num_cells), *(f"{hours(work.hours)}, {money(work.cost)}" for work in (on_cpu, *on_gpu))])
    names = [f"`{FEW_CORES}`", *(f"`{name}`, {_gpus(sizing, name)}" for name in GPU_INSTANCES)]
    return table(["cells", *names], rows)


def fit_table(sizing: Sizing) -> str:
    """Training without GPUs: which sizes are sensible."""
    few = (10_000, 100_000, 1_000_000)
    rows = [[f"{num_cells:,}", *sizing.on_cores(num_cells, "train", FEW_CORES).row()] for num_cells in few]
    return table(["cells, one epoch", "instance", "time", "cost"], rows)


def page() -> str:
    """Return the whole page."""
    constants = load_config(Constants, ROOT / "benchmarks" / "sizing.yaml")
    prices = load_config(Prices, ROOT / "configs" / "prices.yaml")
    sizing, model = Sizing(constants, prices), constants.model
    return TEXT.format(
        cpu=constants.measured_on.cpu,
        gpu=constants.measured_on.gpu,
        as_of=prices.as_of,
        source=prices.source,
        vcpus=prices.named(CPU_INSTANCE).vcpus,
        cpu_instance=CPU_INSTANCE,
        epochs=constants.assumed["epochs"].value,
        corpus=corpus_table(sizing),
        two=gpu_table(sizing, "train_two_passes"),
        one=gpu_table(sizing, "train_one_pass"),
        embed=embed_table(sizing),
        cpu_train=fit_table(sizing),
        checkpoint=size(model["parameters"].value * model["checkpoint_bytes"].value),
        bundle=size(model["parameters"].value * model["bundle_bytes"].value),
        constants="".join(constants_tables(constants)),
        instances=instances_table(prices),
    )


def instances_table(prices: Prices) -> str:
    """Instance types and their prices."""
    rows = [
        [
            f"`{one.name}`",
            str(one.vcpus),
            str(one.memory_gib),
            f"{one.gpus} {one.gpu}" if one.gpu else "",
            money(one.hourly),
        ]
        for one in prices.instances
    ]
    return table(["instance", "vCPUs", "memory, GiB", "GPUs", "an hour"], rows)


TEXT = (ROOT / "scripts" / "sizing_page.md").read_text(encoding="utf-8")


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="Fail if the page differs from what would be written.")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/sizing.md differs from its constants: run python scripts/sizing.py")


if __name__ == "__main__":
    main()
