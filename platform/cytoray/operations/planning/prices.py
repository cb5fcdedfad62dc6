"""What machines cost per hour: a small dated table that users edit, and the cost of some work on each machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from cytoray.config import Config, load_config

PRICES = Path("configs/prices.yaml")
GIB = 2**30


class InstanceConfig(Config):
    """A kind of machine."""

    name: str = Field(min_length=1, description="Its name at the provider.")
    vcpus: int = Field(gt=0, description="Logical CPUs.")
    memory_gib: float = Field(gt=0, description="Memory in GiB.")
    hourly: float = Field(gt=0, description="Price per hour.")
    gpus: int = Field(0, ge=0, description="Number of GPUs.")
    gpu: str = Field("", description="Kind of GPU, such as H100.")

    @model_validator(mode="after")
    def _gpus_have_a_kind(self) -> Self:
        if bool(self.gpus) != bool(self.gpu):
            raise ValueError("gpus and gpu belong together")
        return self


class PriceTable(Config):
    """Prices of some kinds of machines at some time."""

    as_of: str = Field(pattern=r"^20\d\d-(0[1-9]|1[0-2])(-\d\d)?$", description="When they were looked up: YYYY-MM.")
    source: str = Field(min_length=1, description="Where they come from.")
    currency: str = Field("USD", min_length=1, description="Currency.")
    instances: tuple[InstanceConfig, ...] = Field(min_length=1, description="The machines.")


@dataclass(frozen=True)
class Cost:
    """Some work on machines of one kind."""

    instance: str
    nodes: int
    hours: float  # of the work, on all nodes at once
    amount: float  # in the currency of the table

    def describe(self, currency: str) -> str:
        """Format it as a line of text."""
        nodes = f"{self.nodes} x {self.instance}"
        return f"{self.amount:,.2f} {currency} on {nodes} for {self.hours:,.2f} h"


def load_prices(path: Path | None = None) -> PriceTable | None:
    """Read a table; None if none is named and the default file is missing."""
    if path is None and not PRICES.is_file():
        return None
    return load_config(PriceTable, PRICES if path is None else path)


def cost_on_cpus(table: PriceTable, *, seconds: float, cpus: float, memory_bytes: float) -> Iterator[Cost]:
    """Yield the cost of work that takes ``cpus`` and memory for ``seconds``, on each kind of machine without GPUs."""
    for each in table.instances:
        if not each.gpus:
            nodes = max(1, math.ceil(cpus / each.vcpus), math.ceil(memory_bytes / (each.memory_gib * GIB)))
            yield _cost(each, nodes, seconds)


def cost_on_gpus(instance: InstanceConfig, *, seconds: float, num_gpus: int) -> Cost:
    """Return the cost of work on ``num_gpus`` GPUs for ``seconds``."""
    return _cost(instance, math.ceil(num_gpus / instance.gpus), seconds)


def _cost(instance: InstanceConfig, nodes: int, seconds: float) -> Cost:
    hours = seconds / 3600
    return Cost(instance.name, nodes, hours, nodes * hours * instance.hourly)
