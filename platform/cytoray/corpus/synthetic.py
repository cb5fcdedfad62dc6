"""Synthetic h5ad files of any size: sparse, seeded, with planted cell types and donors, written in bounded memory.

Counts are compound Poisson: a cell takes a Poisson number of bursts, each hits a gene by the weights of the cell's
condition and adds a log-series number of counts, so each count is negative binomial. How many bursts is solved so that
the number of expressed genes follows a log-normal law. Cells stand in runs of one type inside one donor, as in real
files, so that a reader that does not shuffle shows. Equal settings give equal files, however many cores write them.
"""

# C cells, G genes, T conditions (type x batch x perturbation), B points of the burst table

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata.io import write_elem
from isal import isal_zlib
from pydantic import Field

from cytoray import progress
from cytoray.config import Config
from cytoray.corpus.synthetic_kernels import MAX_GENES, AliasTables, DrawnCells, build_alias, draw_cells
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Float32, Int32, Int64
from cytoray.tokens.keys import combine
from cytoray.tokens.vocabulary import GeneVocabulary

BLOCK_CELLS = 512
CHUNK = 16_384  # elements of an HDF5 chunk: what h5py picks by itself for matrices of this size (64 KiB)
MEAN_RUN = 400  # cells of one type in a row
NON_CODING = re.compile(r"^(LINC|LOC|MIR|SNOR|SCARNA|RN[U57Y]|RP[LS]\d+P|IG[HKL]|TR[ABGD][VJCD]|OR\d)|-|P\d+$")
TISSUES = ("blood", "lung", "liver", "kidney", "heart")
Compression = Literal["fast", "gzip", "none"]
_DEFLATE: dict[Compression, Callable[[bytes], bytes]] = {
    "fast": lambda data: isal_zlib.compress(data, 2),
    "gzip": lambda data: zlib.compress(data, 4),  # the level of anndata's compression="gzip"
    "none": lambda data: data,
}


class SynthConfig(Config):
    """Settings of the files; equal settings give equal files."""

    num_cells: int = Field(10_000, ge=1, description="Number of cells over all files.")
    num_genes: int = Field(20_000, ge=50, le=30_000, description="Genes of every file: real symbols of the vocabulary.")
    mean_genes: float = Field(1_500, ge=1, le=6_000, description="Mean number of expressed genes per cell.")
    num_types: int = Field(40, ge=1, description="Cell types, each with its own weights of the genes.")
    num_donors: int = Field(48, ge=1, description="Donors; each has cells of one file only, one after another.")
    num_files: int = Field(8, ge=1, description="h5ad files.")
    num_batches: int = Field(1, ge=1, description="Experimental batches, each scaling every gene a little; one: none.")
    perturbed_genes: tuple[str, ...] = Field((), description="Genes knocked down in equal parts of the cells.")
    shuffled_genes: bool = Field(False, description="Columns in no order, instead of the vocabulary's.")
    seed: int = Field(0, ge=0, description="Seed of everything.")
    compression: Compression = Field("fast", description="fast: deflate by isal; gzip: as anndata does; or none.")


@dataclass(frozen=True)
class _World:
    """The parameters that all cells share."""

    genes: list[str]
    weights_TG: npt.NDArray[np.float64]
    alias: AliasTables
    bursts_B: npt.NDArray[np.float64]
    expressed_TB: npt.NDArray[np.float64]  # expected expressed genes after so many bursts


def synthesise(folder: Path, config: SynthConfig, *, advance: progress.Advance = progress.silent) -> list[Path]:
    """Write ``config.num_files`` files ``part-000.h5ad``, ... into ``folder``; ``advance`` counts cells written.

    Columns of obs: cell_type, donor, tissue, disease, is_primary_data, n_counts, and batch_label and perturbation if
    configured. Memory is a few blocks of 512 cells per core, whatever the number of cells. Raises CorpusError if
    ``perturbed_genes`` names a gene that is not among those drawn.
    """
    world = _build_world(config)
    folder.mkdir(parents=True, exist_ok=True)
    borders = np.linspace(0, config.num_cells, config.num_files + 1).astype(np.int64).tolist()
    parts = [
        _Part(folder / f"part-{number:03d}.h5ad", number, start, stop)
        for number, (start, stop) in enumerate(itertools.pairwise(borders))
    ]

    def write(part: _Part) -> Path:
        """Write one file."""
        _write_part(part, config, world, advance)
        return part.path

    with ThreadPoolExecutor(max_workers=min(config.num_files, os.cpu_count() or 1)) as pool:
        return list(pool.map(write, parts))  # the kernel and deflate run without the interpreter lock


def gene_names(num_genes: int) -> list[str]:
    """Return ``num_genes`` symbols of the default vocabulary in its order: coding genes, then others if needed.

    Their positions in the vocabulary decide how well the gaps between them compress; as in real files, they are not
    adjacent.
    """
    plain = [token for token in GeneVocabulary.load_default().tokens if re.fullmatch(r"[A-Z][A-Z0-9-]{1,9}", token)]
    coding = [token for token in plain if not NON_CODING.search(token)]
    if num_genes <= len(coding):
        return _spread(coding, num_genes)
    others = _spread([token for token in plain if NON_CODING.search(token)], num_genes - len(coding))
    wanted = {*coding, *others}
    return [token for token in plain if token in wanted]


def _spread(names: list[str], number: int) -> list[str]:
    """Pick ``number`` of the names, evenly spaced."""
    return [names[i] for i in np.linspace(0, len(names) - 1, number).astype(int)]


def _build_world(config: SynthConfig) -> _World:
    """Draw the gene weights of every condition, and tabulate expressed genes by number of bursts."""
    rng = np.random.default_rng(config.seed)
    genes = gene_names(config.num_genes)
    base_G = rng.lognormal(0, 2.0, config.num_genes)
    by_type = base_G * rng.lognormal(0, 0.8, (config.num_types, config.num_genes))
    by_batch = rng.lognormal(0, 0.25 if config.num_batches > 1 else 0.0, (config.num_batches, config.num_genes))
    weights = by_type[:, None, None, :] * by_batch[None, :, None, :]
    weights = weights * _perturbation_factors(genes, config, rng)[None, None]
    weights_TG = weights.reshape(-1, config.num_genes)
    weights_TG /= weights_TG.sum(axis=1, keepdims=True)
    bursts_B = np.geomspace(2, 200_000, 40)
    expressed_TB = np.stack([[-np.expm1(-bursts * row_G).sum() for bursts in bursts_B] for row_G in weights_TG])
    if config.shuffled_genes:
        order = rng.permutation(config.num_genes)
        genes, weights_TG = [genes[i] for i in order], weights_TG[:, order]
    return _World(genes, weights_TG, build_alias(weights_TG), bursts_B, expressed_TB)


def _perturbation_factors(genes: list[str], config: SynthConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return each gene's factor under control (row 0) and each knock-down: 0.1 for its target, 3 for 20 other genes."""
    factors = np.ones((1 + len(config.perturbed_genes), len(genes)))
    for row, gene in enumerate(config.perturbed_genes, start=1):
        if gene not in genes:
            raise CorpusError(
                f"Unknown gene {gene!r}: it is not among those drawn.",
                remedy=f"Name one of {', '.join(genes[:5])}, ...",
            )
        factors[row, rng.choice(len(genes), 20, replace=False)] = 3.0
        factors[row, genes.index(gene)] = 0.1
    return factors


@dataclass(frozen=True)
class _Layout:
    """Type, donor, batch, perturbation and number of expressed genes of each cell of a file, shape (C,) each."""

    types: Int64
    donors: Int64
    batches: Int64
    perturbations: Int64
    expressed: npt.NDArray[np.float64]

    def conditions(self, config: SynthConfig) -> Int64:
        """Return each cell's row in the weight table."""
        inner = self.batches * (1 + len(config.perturbed_genes)) + self.perturbations
        return self.types * config.num_batches * (1 + len(config.perturbed_genes)) + inner


def _lay_out(config: SynthConfig, number: int, num_cells: int) -> _Layout:
    """Draw runs of types inside consecutive donors."""
    rng = np.random.default_rng([config.seed, number])
    num_runs = 8 + 3 * num_cells // MEAN_RUN
    lengths = 1 + rng.geometric(1 / MEAN_RUN, num_runs)
    lengths[-1] += num_cells  # whatever was drawn, the runs fill the file
    types = np.repeat(rng.permutation(num_runs) % config.num_types, lengths)[:num_cells]
    donors_here = np.arange(config.num_donors)[number % config.num_donors :: config.num_files]
    donors = donors_here[np.arange(num_cells) * len(donors_here) // max(num_cells, 1)]
    sigma = 0.5
    expressed = rng.lognormal(np.log(config.mean_genes) - sigma**2 / 2, sigma, num_cells)
    return _Layout(
        types=types,
        donors=donors,
        batches=donors % config.num_batches,
        perturbations=rng.integers(0, 1 + len(config.perturbed_genes), num_cells),
        expressed=np.clip(expressed, min(200.0, config.mean_genes / 2), min(0.6 * config.num_genes, MAX_GENES / 1.25)),
    )


@dataclass(frozen=True)
class _Part:
    """One file: cells ``start`` to ``stop`` of the corpus."""

    path: Path
    number: int
    start: int
    stop: int


def _write_part(part: _Part, config: SynthConfig, world: _World, advance: progress.Advance) -> None:
    """Write one file, block by block."""
    layout = _lay_out(config, part.number, part.stop - part.start)
    totals = [np.empty(0, np.float32)]
    with h5py.File(part.path, "w") as file:
        matrix = _CsrWriter(file, config.compression)
        for block in _draw_blocks(part, config, world, layout):
            matrix.append(block)
            totals.append(np.add.reduceat(block.values, block.indptr[:-1]))
            advance(len(block.indptr) - 1, part.path.name)
        matrix.close(config.num_genes)
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", _obs(part, config, layout).assign(n_counts=np.concatenate(totals)))
        write_elem(file, "var", pd.DataFrame(index=pd.Index(world.genes, dtype=object)))
        for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            write_elem(file, name, {})


def _draw_blocks(part: _Part, config: SynthConfig, world: _World, layout: _Layout) -> Iterator[DrawnCells]:
    """Draw the cells of a part in blocks."""
    conditions = layout.conditions(config)
    bursts = np.empty(len(conditions))
    for condition in np.unique(conditions):
        mine = conditions == condition
        bursts[mine] = np.interp(layout.expressed[mine], world.expressed_TB[condition], world.bursts_B)
    keys = combine(config.seed, np.arange(part.start, part.stop, dtype=np.uint64))
    for start in range(0, len(conditions), BLOCK_CELLS):
        block = slice(start, start + BLOCK_CELLS)
        yield draw_cells(world.alias, conditions[block], bursts[block], keys[block])


def _obs(part: _Part, config: SynthConfig, layout: _Layout) -> pd.DataFrame:
    """Build the obs table of a part."""
    num_cells = part.stop - part.start
    names = pd.Index([f"cell-{number}" for number in range(part.start, part.stop)], dtype=object)
    obs = pd.DataFrame(index=names)
    obs["cell_type"] = _categories(layout.types, [f"type {number:02d}" for number in range(config.num_types)])
    obs["donor"] = _categories(layout.donors, [f"donor {number:02d}" for number in range(config.num_donors)])
    obs["tissue"] = _categories(np.full(num_cells, part.number % len(TISSUES)), list(TISSUES))
    obs["disease"] = _categories((layout.donors % 5 == 4).astype(np.int64), ["normal", "COVID-19"])
    obs["is_primary_data"] = layout.donors % 7 != 6
    if config.num_batches > 1:
        obs["batch_label"] = _categories(layout.batches, [f"batch {number}" for number in range(config.num_batches)])
    if config.perturbed_genes:
        obs["perturbation"] = _categories(layout.perturbations, ["control", *config.perturbed_genes])
    return obs


def _categories(codes: Int64, names: list[str]) -> pd.Categorical:
    """Convert codes to a categorical column of the categories that occur."""
    there = np.unique(codes)
    return pd.Categorical.from_codes(np.searchsorted(there, codes), pd.Index([names[code] for code in there]))


class _CsrWriter:
    """X of an h5ad file, grown block by block: whole compressed chunks are handed to HDF5 as they are."""

    def __init__(self, file: h5py.File, compression: Compression) -> None:
        """Create the datasets of ``X`` in ``file``."""
        self._group = file.create_group("X")
        self._deflate = _DEFLATE[compression]
        filters = {} if compression == "none" else {"compression": "gzip", "compression_opts": 4}
        for name, dtype in {"data": np.float32, "indices": np.int32}.items():
            self._group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(CHUNK,), **filters)
        self._waiting: dict[str, list[Float32 | Int32]] = {"data": [], "indices": []}
        self._indptr: list[Int64] = [np.zeros(1, np.int64)]

    def append(self, block: DrawnCells) -> None:
        """Add rows."""
        self._indptr.append(self._indptr[-1][-1] + block.indptr[1:])
        self._put("data", block.values)
        self._put("indices", block.gene_ids)

    def close(self, num_genes: int) -> None:
        """Write the remaining values, the row pointers and the encoding."""
        indptr = np.concatenate(self._indptr)
        for name in self._waiting:
            self._put(name, np.zeros(-int(indptr[-1]) % CHUNK, self._group[name].dtype))
            self._group[name].resize((int(indptr[-1]),))
        self._group.create_dataset("indptr", data=indptr)
        shape = np.array([len(indptr) - 1, num_genes])
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})

    def _put(self, name: str, part: Float32 | Int32) -> None:
        """Write whole chunks and keep the rest."""
        dataset, flat = self._group[name], np.concatenate([*self._waiting[name], part])
        start, whole = dataset.shape[0], len(flat) // CHUNK * CHUNK
        dataset.resize((start + whole,))
        for offset in range(0, whole, CHUNK):
            chunk = self._deflate(flat[offset : offset + CHUNK].tobytes())
            dataset.id.write_direct_chunk((start + offset,), chunk)
        self._waiting[name] = [flat[whole:]]
