"""Whatever is sent in any format is answered or refused by the catalogue, and takes no memory for good.

This is a sample; ``make fuzz`` runs FUZZ_REQUESTS mutations per parser, see ``tests/helpers/fuzz_service.py``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzz_bodies
import pytest
from fuzz_bodies import PARSERS, bodies_of, h5ad_files
from h5ad_forks import start_forks
from payload_fuzzer import fuzz, mutated, resident_bytes

from cytoray.errors import RequestError
from cytoray.serving import confinement
from cytoray.serving.payloads import h5ad_cells
from cytoray.serving.payloads.media import ARROW, JSON, NPZ

NUM_REQUESTS = 400
FLAT_BYTES = 64 * 2**20


@pytest.mark.parametrize("parser", PARSERS)
def test_mutations_are_answered_or_refused(parser: str) -> None:
    seeds, run = bodies_of(parser)
    fuzz(seeds, run, num=50, seed=1)
    before = resident_bytes()
    outcomes = fuzz(seeds, run, num=NUM_REQUESTS)
    assert outcomes.by_code["answered"] > 0
    assert outcomes.by_code.total() > outcomes.by_code["answered"]
    assert resident_bytes() - before < FLAT_BYTES


def test_mutated_h5ad_files_are_answered_or_refused(tmp_path: Path) -> None:
    fuzz(h5ad_files(tmp_path), fuzz_bodies.ask_h5ad, num=6)


def test_a_forked_reader_is_that_of_the_service(tmp_path: Path) -> None:
    """`make fuzz` reads h5ad files by forks, which have the limits of the service's processes."""
    body = h5ad_files(tmp_path)[0]
    asked = h5ad_cells.limits_of_reader(fuzz_bodies.LIMITS, matrix="X")
    with start_forks(asked, confinement.ENVIRONMENT) as forks:
        status, written = forks.read(body)
        matrix = h5ad_cells.matrix_of(status, written, gene_names="index")
        expected = h5ad_cells.read_matrix(body, {}, limits=fuzz_bodies.LIMITS)
        assert matrix.genes == expected.genes
        assert matrix.data.tolist() == expected.data.tolist()
        assert 0 < forks.peak_bytes < h5ad_cells.MEMORY_BYTES
    with start_forks(asked | {"memory_bytes": 2**12}, confinement.ENVIRONMENT) as forks:
        status, written = forks.read(body)
        with pytest.raises(RequestError, match="not read"):
            h5ad_cells.matrix_of(status, written, gene_names="index")


def test_failures_are_counted_and_can_be_repeated(tmp_path: Path) -> None:
    script = str(Path(fuzz_bodies.__file__).with_name("fuzz_service.py"))
    words = ["--parser", "message", "--start", "7", "--requests", "20"]
    command = [sys.executable, "-W", "ignore", script, *words]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(finished.stdout.splitlines()[-1])
    assert (found["start"], found["requests"], found["failures"]) == (7, 20, [])
    assert sum(found["codes"].values()) == 20


def test_no_mutation_is_a_500(http: Any) -> None:
    kinds = {JSON: "json", ARROW: "arrow", NPZ: "npz"}
    bodies = {kind: bodies_of(name)[0] for kind, name in kinds.items()}
    for number in range(30):
        rng = random.Random(number)
        kind = rng.choice(tuple(kinds))
        response = http.post("/v1/embed", content=mutated(bodies[kind][:1], rng), headers={"Content-Type": kind})
        assert response.status_code < 500, (number, response.text)
        assert response.status_code == 200 or response.json()["code"]
