"""Read cells from an uploaded h5ad file: a sandboxed process opens it, and the rules for files name its genes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError, RequestError
from cytoray.serving import confinement
from cytoray.serving.config import Limits
from cytoray.serving.payloads.json_cells import malformed
from cytoray.serving.payloads.matrices import Matrix
from cytoray.serving.payloads.parsed import MATRIX_PLACES, check_amount, check_num_cells
from cytoray.serving.payloads.stopping import NEVER, Stop

OPTIONS = ("matrix", "gene_names")  # in the query of the URL, as arguments of the client
MEMORY_BYTES, CPU_S, WALL_S = 320 * 2**20, 20, 30  # of the process, beside its libraries
AT_ONCE = 2  # such processes; the service has as many threads for them, so that other requests do not wait
_POLL_S = 0.02
_DTYPES = ("|i1", "|u1", *(f"<{kind}{size}" for kind in "iuf" for size in (2, 4, 8)))  # that it may hand over
_REMEDY = "Write it with adata.write_h5ad(path, compression='gzip'), and name the matrix with the option matrix."


def read_matrix(body: bytes, options: Mapping[str, str], *, limits: Limits, stop: Stop = NEVER) -> Matrix:
    """Return the arrays of a file: ``X``, or ``raw.X`` if the option ``matrix`` says so, of all cells and genes.

    ``gene_names`` is "index" or a column of var, as for the client. RequestError for a file that is refused, that
    kills the process, or that takes longer than the limits allow.
    """
    asked = limits_of_reader(limits, matrix=options.get("matrix", "X"))
    with _scratch() as source, _scratch() as target:
        stop.check()
        source.write(body)
        source.flush()
        status = _run(source.fileno(), target.fileno(), asked, stop)
        target.seek(0)
        written = target.read(os.fstat(target.fileno()).st_size)
    return matrix_of(status, written, gene_names=options.get("gene_names", "index"))


def limits_of_reader(limits: Limits, *, matrix: str) -> dict[str, Any]:
    """Return what the sandbox is asked, ``matrix`` being "X" or "raw.X", and within which limits."""
    if matrix not in ("X", "raw.X"):
        raise malformed("/matrix: Input should be X or raw.X.", "/matrix")
    return {
        "matrix": matrix,
        "max_cells": limits.max_cells,
        "max_genes": limits.max_genes,
        "max_nonzeros": limits.max_nonzeros,
        "memory_bytes": MEMORY_BYTES,
        "output_bytes": limits.max_decoded_bytes,
        "cpu_s": CPU_S,
        "wall_s": WALL_S,
        "confinement": str(confinement.__file__),
    }


def matrix_of(status: int, written: bytes, *, gene_names: str) -> Matrix:
    """Return the arrays that the sandbox has ``written`` before it ended with ``status``; raises as ``read_matrix``."""
    if status != 0 or len(written) < 8:
        raise _refusal("reading it takes more memory or time than allowed, or crashes the reader")
    head, arrays = _unpack(written)
    if "refused" in head:
        raise _refused(str(head["refused"]), str(head.get("remedy", _REMEDY)))
    return _named(head, arrays, gene_names=gene_names)


@contextlib.contextmanager
def _scratch() -> Iterator[IO[bytes]]:
    """Open a file without a name, in memory if the system can."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("cytoray-h5ad"), "w+b") as file:
            yield file
    else:
        with tempfile.TemporaryFile() as file:
            yield file


def _run(source: int, target: int, asked: dict[str, Any], stop: Stop) -> int:
    """Run the sandbox until it ends; it is killed when its time is over or the request has ended."""
    script = Path(__file__).with_name("h5ad_sandbox.py")  # imported, it would load h5py here
    arguments = [str(source), str(target), json.dumps(asked)]
    process = subprocess.Popen(
        [sys.executable, "-I", str(script), *arguments],
        pass_fds=(source, target),
        env=confinement.ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + WALL_S
        while process.poll() is None and time.monotonic() < deadline:
            stop.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        process.kill()
        status = process.wait()
    return status


def _unpack(written: bytes) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """Return the texts and arrays that the sandbox wrote; it may have been taken over, so nothing is believed."""
    try:
        start = 8 + int.from_bytes(written[:8], "little")
        head = json.loads(written[8:start])
        arrays = []
        for kind, count in head["arrays"]:
            if kind not in _DTYPES or not 0 <= int(count) <= len(written):
                raise ValueError(kind)
            dtype = np.dtype(kind)
            arrays.append(np.frombuffer(written, dtype, int(count), start))
            start += int(count) * dtype.itemsize
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise _refusal("it cannot be read") from error
    return head, arrays


def _named(head: dict[str, Any], arrays: list[npt.NDArray[Any]], *, gene_names: str) -> Matrix:
    """Return the matrix with names, ids and genomes of genes by the rules for files."""
    import pandas as pd

    from cytoray.corpus.config import SourceConfig
    from cytoray.corpus.readers import genes as rules

    try:
        index, columns, cells = _texts(head["genes"]), head["columns"], _texts(head["cells"])
        var = pd.DataFrame(
            {str(name): _texts(texts) for name, texts in columns.items()}, index=pd.Index(index, dtype=object)
        )
        indptr, indices, data = arrays
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise _refusal("it cannot be read") from error
    try:
        source = SourceConfig(uri="memory://upload", gene_column=None if gene_names == "index" else gene_names)
        names = rules.gene_names(var, source)
        ensembl_ids = rules.ensembl_ids(var, names, source)
    except CorpusError as error:
        raise malformed(f"/gene_names: var has no column {gene_names!r}.", "/gene_names") from error
    unique = len(set(cells)) == len(cells)  # obs_names need not be; then cells are known by their position
    return Matrix(names, indptr, indices, data, ensembl_ids, rules.gene_genomes(var), cells if unique else None)


def _texts(texts: Any) -> list[str]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("not texts")
    return texts


def _refused(reason: str, remedy: str) -> RequestError:
    """Build the error for the reason that the sandbox gives."""
    if reason.startswith("too_large:"):
        _, what, seen, limit = reason.rsplit(":", 3) if reason.count(":") == 3 else ("", "entries", "1", "0")
        if what == "obs names":
            check_num_cells(int(seen), limit=int(limit), places=MATRIX_PLACES)
        check_amount(what, seen=int(seen), limit=int(limit))
    return _refusal(reason, remedy)


def _refusal(reason: str, remedy: str = _REMEDY) -> RequestError:
    return RequestError(f"The h5ad file is not read: {reason}.", remedy=remedy, code="malformed_payload", pointer="")
