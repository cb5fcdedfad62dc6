"""What this run's figures mean for 33 M cells and a node of 8 H100: measured rate times size, marked as projection."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.__main__ import RESULTS, latest_claims
from benchmarks.common import report

ATLAS_CELLS = 33_000_000
NEEDED_CELLS_PER_S = 8 * 4_000
CORES = 2  # what the streaming figure was taken with


def main() -> None:
    """Report the projections whose measurements are there."""
    claims = latest_claims(RESULTS / "data.jsonl")
    if stream := claims.get("stream_scgpt"):
        per_core = stream["value"] / CORES
        report("cells_per_core", value=per_core, settings={"cores": CORES})
        report("cores_for_8_gpus", value=NEEDED_CELLS_PER_S / per_core, settings={"cells_per_s": NEEDED_CELLS_PER_S})
    if store := claims.get("store_bytes"):
        report("bytes_33m", value=store["value"] * ATLAS_CELLS / 1e9, settings={"bytes_per_cell": store["value"]})
    if ingest := claims.get("ingest_annbatch"):
        hours = ATLAS_CELLS / ingest["value"] / 3600
        report("hours_33m", value=hours, settings={"cells_per_s": ingest["value"]}, note="measured rate x cells")


if __name__ == "__main__":
    main()
