"""Between the passes of a large ingest: one group of partitions out of many spills becomes runs, cut by partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.ingesting.read_pass import partition_of, spill_schema
from cytoray.corpus.ingesting.shuffle import SectionIndex
from cytoray.corpus.ingesting.spill import CELL_ID, read_table, split_by, write_sections


class RunRecord(Config):
    """A run, or some content hashes cut by bucket; its presence means that the object is complete."""

    name: str
    sections: SectionIndex


def write_run(item: dict[str, Any], *, plan: IngestPlan, round_id: str) -> dict[str, Any]:
    """Gather one group out of some spills and cut it by partition, unless that was done before."""
    group = int(item["group"])
    name = f"run-{round_id}-{group:03d}-{int(item['number']):05d}"
    done = storage.find_bytes(storage.join(plan.staging, f"{name}.json"))
    if done is not None:
        return {"group": group, "record": done.decode()}
    table = read_table(plan.staging, item, spill_schema(plan))
    members = plan.groups.members(group)
    places = partition_of(plan, table.column(CELL_ID).to_numpy()).astype(np.int64) - members.start
    sections = split_by(table, places, len(members))
    del table
    return {"group": group, "record": save_run(plan, name, sections)}


def save_run(plan: IngestPlan, name: str, sections: list[pa.Buffer]) -> str:
    """Write sections to the staging area, then their record, which is returned as JSON."""
    uri = storage.join(plan.staging, name)
    record = RunRecord(name=name, sections=write_sections(uri, sections)).model_dump_json()
    storage.write_bytes(f"{uri}.json", record.encode())
    pa.default_memory_pool().release_unused()
    return record
