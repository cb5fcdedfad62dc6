"""Cells of the quickstart: labelled blood cells shipped with scanpy, or the user's own, split and stored."""

# C cells, G genes

from __future__ import annotations

import hashlib
import importlib.resources
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cytoray import storage
from cytoray.corpus.checking.checks import HELD_OUT_SHARE, map_source_genes
from cytoray.corpus.config import CheckConfig, SourceConfig
from cytoray.corpus.ingest import describe_source
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.finding import find_one
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.tokens.keys import Purpose, cell_id, combine, uniform
from cytoray.tokens.vocabulary import GeneVocabulary

EMBEDDED_LABEL_KEY = "bulk_labels"
VALIDATION_KEY = "cytoray_validation"  # column of obs: "yes" for training cells that only judge epochs and the blend
VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class SplitData:
    """Locations and sizes of the training and held-out cells, and a description of the file."""

    train_uri: str
    held_out_uri: str
    num_train: int
    num_held_out: int
    label_key: str
    description: str
    identity: str  # digest of the source's bytes, the label column and max_cells
    skipped: bool = False


def embedded_data() -> str:
    """Return ``pbmc68k_reduced``: 700 labelled human blood cells from the installed scanpy."""
    path = importlib.resources.files("scanpy.datasets") / "10x_pbmc68k_reduced.h5ad"
    return str(path)


def put_split_data(uri: str, label_key: str, *, prefix: str, max_cells: int) -> SplitData:
    """Split the cells of an h5ad into training and held-out cells, by label, and write both below ``prefix``.

    At most ``max_cells`` cells (a keyed sample) are used. An existing split of the same file is returned.
    Raises CorpusError if the file is not usable.
    """
    with open_source(find_one(SourceConfig(uri=uri))) as reader:
        description = reader.describe()
        matched = int((map_source_genes(reader, GeneVocabulary.load_default(), CheckConfig()).ids >= 0).sum())
        identity = hashlib.sha256(json.dumps([description.version, uri, label_key, max_cells]).encode()).hexdigest()[:8]
        record = storage.join(prefix, identity, "split.json")
        if storage.exists(record):
            return SplitData(**json.loads(storage.read_bytes(record)) | {"skipped": True})
        labels = reader.labels(label_key)
        keys = uniform(combine(int(Purpose.SPLIT), cell_id("quickstart", [str(name) for name in reader.obs.index])))
        train, held_out = split_rows(labels, keys, max_cells=max_cells)
        split = SplitData(
            train_uri=storage.join(prefix, identity, "train.h5ad"),
            held_out_uri=storage.join(prefix, identity, "held_out.h5ad"),
            num_train=len(train),
            num_held_out=len(held_out),
            label_key=label_key,
            description=describe_source(description, matched),
            identity=identity,
        )
        validation = _validation_rows(train, labels, keys)
        for rows, target in ((train, split.train_uri), (held_out, split.held_out_uri)):
            obs = reader.obs.iloc[rows][[label_key]].copy()
            obs[VALIDATION_KEY] = ["yes" if row else "no" for row in np.isin(rows, validation)]
            _write(reader, rows, obs, target)
    storage.write_bytes(record, json.dumps(asdict(split)).encode())
    return split


def split_rows(
    labels: list[str | None], keys: npt.NDArray[np.float64], *, max_cells: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose rows for training and held-out rows: a fifth of each label (at least one of two cells), by ``keys`` (C,).

    Cells without a label are used for training. Raises CorpusError if there are fewer than two distinct labels.
    """
    chosen = np.sort(np.argsort(keys, kind="stable")[:max_cells])
    held_out: list[int] = []
    names = pd.Series([labels[row] for row in chosen], index=chosen)
    for _, group in names.groupby(names):
        rows = group.index.to_numpy()
        count = max(1, round(HELD_OUT_SHARE * len(rows))) if len(rows) > 1 else 0
        held_out.extend(rows[np.argsort(keys[rows], kind="stable")[:count]])
    if names.nunique() < 2:
        raise CorpusError(
            f"The label column has {names.nunique()} distinct label(s); at least two are needed.",
            remedy="Choose another column with --label-key.",
        )
    return np.setdiff1d(chosen, held_out), np.sort(np.array(held_out, np.int64))


def _validation_rows(
    train: npt.NDArray[np.int64], labels: list[str | None], keys: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """A share of the training rows of each label, by ``keys``, none of a label with few."""
    found: list[int] = []
    names = pd.Series([labels[row] for row in train], index=train)
    for _, group in names.groupby(names):
        rows = group.index.to_numpy()
        found.extend(rows[np.argsort(keys[rows], kind="stable")[: round(VALIDATION_SHARE * len(rows))]])
    return np.array(found, np.int64)


def _write(reader: CellReader, rows: npt.NDArray[np.int64], obs: pd.DataFrame, uri: str) -> None:
    """Write some rows of the chosen matrix, with their ``obs``, as an h5ad in the store."""
    step = 4_096
    parts = []
    for start in range(0, len(reader.obs), step):
        mine = rows[(rows >= start) & (rows < start + step)]
        if len(mine):
            parts.append(reader.read_rows(start, min(start + step, len(reader.obs)))[mine - start])
    adata = anndata.AnnData(
        X=sparse.vstack(parts, format="csr"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(reader.gene_names, dtype=object)),
    )
    with tempfile.TemporaryDirectory(prefix="cytoray-split-") as scratch:
        path = Path(scratch) / "cells.h5ad"
        adata.write_h5ad(path)
        storage.write_bytes(uri, path.read_bytes())
