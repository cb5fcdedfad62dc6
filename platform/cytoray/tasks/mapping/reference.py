"""A reference: labelled cells that new ones are mapped among, as a folder of arrays, an index and a table, no pickle.

index.faiss  meta.parquet  arrays.safetensors  cells.safetensors  map.json (last: what the others' digests are)
"""

# R cells of the reference, S sampled ones, V genes of the vocabulary, K labels

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors
import safetensors.numpy
from scipy import sparse

from cytoray import failpoints, storage
from cytoray.errors import ConflictError, DigestError, ModelError, NotFoundError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.attaching import local_folder
from cytoray.tasks.mapping.index import NeighbourIndex, read_index, write_index
from cytoray.tasks.mapping.mapper import Mapper
from cytoray.tasks.mapping.packing import unpack_mapper
from cytoray.tasks.packing import pack

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
MAP, INDEX, META, ARRAYS, CELLS = "map.json", "index.faiss", "meta.parquet", "arrays.safetensors", "cells.safetensors"
FILES = (INDEX, META, ARRAYS, CELLS)
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Reference:
    """A mapper with its index, what is known of each reference cell, and a sample of their expression."""

    mapper: Mapper
    index: NeighbourIndex
    meta: pd.DataFrame  # (R) ref_id, label, batch, source, x, y
    sample: Expression  # (S, V), from which a mapper is fitted for a query with fewer genes
    rows: Int64  # (S,) of the sampled cells
    measured: npt.NDArray[np.bool_]  # (V,)
    about: Mapping[str, Any]  # of map.json: model, vocabulary, space, why, sources, settings
    digest: str = ""  # SHA-256 of map.json; set by saving and loading

    @cached_property
    def codes(self) -> Int64:
        """Codes (R,) of the cells' labels."""
        return np.searchsorted(np.asarray(self.mapper.labels, str), self.meta["label"].to_numpy(str)).astype(np.int64)

    @cached_property
    def plane(self) -> Float64:
        """Places (R, 2) on the map, which never change."""
        return self.meta[["x", "y"]].to_numpy(np.float64)

    @cached_property
    def has_map(self) -> bool:
        """Whether the map was computed when the reference was built."""
        return bool(self.plane.any())

    def check_model(self, weights: str, name: str) -> None:
        """Raise ModelError unless the model with this digest of its weights made the reference's embeddings."""
        check_maker(self.about, weights, name)


def check_maker(about: Mapping[str, Any], weights: str, name: str) -> None:
    """Raise ModelError unless the model with this digest of its weights made the embeddings of the reference ``about``.

    A reference that was built without a model fits any.
    """
    made_by = about["model"]
    if made_by is not None and made_by.get("weights") != weights:
        raise ModelError(
            f"The reference was built with {made_by['uri']} (weights {str(made_by.get('weights'))[:16]}), the query is "
            f"for {name} (weights {weights[:16]}).",
            remedy="Use the model of the reference, or build the reference again with this one.",
            expected=made_by.get("weights"),
            seen=weights,
        )


def save_reference(reference: Reference, uri: str) -> str:
    """Write a reference as a new folder or s3:// prefix, map.json last, and return its digest.

    Raises ConflictError if the place has a reference already.
    """
    if storage.exists(storage.join(uri, MAP)) or (not storage.is_remote(uri) and storage.local_path(uri).exists()):
        raise ConflictError(f"{uri} already exists.", remedy="Choose another folder; a reference is never overwritten.")
    if storage.is_remote(uri):
        with tempfile.TemporaryDirectory(prefix="cytoray-reference-") as scratch:
            digest = _write(reference, Path(scratch))
            storage.upload_folder(Path(scratch), uri, last=MAP)
        return digest
    folder = storage.local_path(uri)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    draft.mkdir(parents=True)
    try:
        digest = _write(reference, draft)
        failpoints.failpoint("reference.before_commit")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return digest


def load_reference(uri: str) -> Reference:
    """Load a reference after comparing every file with its digest.

    Raises NotFoundError if the place has none, DigestError for changed or missing files, ModelError for another format.
    """
    about, digest = read_about(uri)
    with local_folder(uri) as folder:
        for name, expected in about["files"].items():
            _check_file(folder / name, expected)
        return read_files({name: folder / name for name in FILES}, about, digest)


def read_about(uri: str) -> tuple[dict[str, Any], str]:
    """Return the content of map.json and its SHA-256."""
    data = storage.find_bytes(storage.join(uri, MAP))
    if data is None:
        raise NotFoundError(
            f"{uri} is not a reference: it has no {MAP}.",
            remedy="Check the path; a build that was interrupted leaves none, run it again.",
        )
    return parse_about(data, name=f"{uri}/{MAP}"), hashlib.sha256(data).hexdigest()


def parse_about(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse the content of a map.json; DigestError if it is not JSON, ModelError for another format."""
    try:
        about: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise DigestError(f"{name} is not JSON.", remedy="Build the reference again.") from error
    if about.get("format") != FORMAT or set(about.get("files", ())) != set(FILES):
        raise ModelError(
            f"{name} has format {about.get('format')}; this version of cytoray reads {FORMAT}.",
            remedy="Use the version that wrote the reference, or build it again.",
        )
    return about


def _write(reference: Reference, folder: Path) -> str:
    arrays: dict[str, Array] = {}
    mapper = pack(reference.mapper, arrays, "mapper")
    arrays["measured"] = reference.measured
    sample = reference.sample.values
    write_index(reference.index, folder / INDEX)
    reference.meta.to_parquet(folder / META, index=False)
    safetensors.numpy.save_file(arrays, folder / ARRAYS)
    stored = {"rows": reference.rows, "indptr": sample.indptr, "indices": sample.indices, "data": sample.data}
    safetensors.numpy.save_file({name: np.ascontiguousarray(one) for name, one in stored.items()}, folder / CELLS)
    about = {
        "format": FORMAT,
        **reference.about,
        "index": {"kind": reference.index.kind, "recall": reference.index.recall, "metric": "cosine"},
        "k": reference.mapper.num_neighbours,
        "label_counts": dict(zip(reference.mapper.labels, reference.mapper.counts.tolist(), strict=True)),
        "mapper": mapper,
        "files": {name: _hash(folder / name) for name in FILES},
    }
    data = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
    (folder / MAP).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_files(paths: Mapping[str, Path], about: dict[str, Any], digest: str) -> Reference:
    """Read a reference from its files by name, whose digests were compared; the index stays in its file."""
    try:
        arrays = safetensors.numpy.load_file(paths[ARRAYS])
        stored = safetensors.numpy.load_file(paths[CELLS])
    except safetensors.SafetensorError as error:
        raise ModelError(f"{paths[ARRAYS]}: {error}.", remedy="Build the reference again.") from error
    measured = arrays["measured"].astype(bool)
    shape = (len(stored["rows"]), len(measured))
    sample = sparse.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=shape)
    kind, recall = about["index"]["kind"], float(about["index"]["recall"])
    return Reference(
        unpack_mapper(about["mapper"], arrays),
        read_index(paths[INDEX], kind=kind, recall=recall),
        pd.read_parquet(paths[META]),
        Expression(sample),
        stored["rows"],
        measured,
        {key: about[key] for key in about.keys() - {"format", "index", "k", "label_counts", "mapper", "files"}},
        digest,
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, expected: str) -> None:
    seen = _hash(path) if path.is_file() else "nothing"
    if seen != expected:
        raise DigestError(
            f"{path.name} of the reference has SHA-256 {seen}, {MAP} lists {expected}.",
            remedy="The file was changed or damaged; copy the reference again, or build it again.",
            file=path.name,
        )
