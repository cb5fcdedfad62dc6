"""Infer a network from cells: evidence for every pair of a factor and a target, block of targets by block.

    work = prepare_work(cells, candidates, options)
    evidence = collect(work, compute_blocks(work, pieces))

Memory: the cells, sparse, over the genes of the network; factors of at most ``max_pools`` pools; C x ``block_size``
values of a block; and T x G values per kind of evidence.
"""

# C cells, P pools, T transcription factors, G targets, B targets of a block

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.networks.cells import Float32, Float64, Int64, NetworkCells, pools_of
from cytoray.evaluation.networks.correlation import correlate
from cytoray.evaluation.networks.trees import Factors, TreeOptions
from cytoray.evaluation.variable_genes import most_variable, standardised_variances
from cytoray.tasks.networks.candidates import CORRELATION, POOLED, TREES, Candidates
from cytoray.tasks.networks.reading import NetworkData
from cytoray.tasks.pieces import Pieces

FEWEST_TARGETS, FEW_TARGETS = 2, 50
Block = dict[str, Float32]  # kind of evidence: (T, B)


@dataclass(frozen=True)
class WorkOptions:
    """How evidence is computed."""

    pool_size: int = 15
    max_pools: int = 5_000
    block_size: int = 100
    trees: TreeOptions = field(default_factory=TreeOptions)

    @property
    def seed(self) -> int:
        """Seed of the pools."""
        return self.trees.seed


@dataclass(frozen=True, eq=False)
class Work:
    """Input of the blocks of a group of cells; it travels to Ray's tasks as a whole."""

    cells: NetworkCells  # over the T factors, then the G targets
    pools: sparse.csr_matrix  # (P, C)
    tfs: tuple[str, ...]
    targets: tuple[str, ...]
    options: WorkOptions

    @property
    def num_blocks(self) -> int:
        """Number of blocks of targets."""
        return -(-len(self.targets) // self.options.block_size)

    @property
    def cost(self) -> float:
        """Values that trees look at, about."""
        return float(len(self.targets) * self.options.trees.num_trees * self.pools.shape[0] * len(self.tfs))

    def compute(self, number: int) -> Block:
        """Return the evidence for the targets of one block."""
        with threadpool_limits(1):
            return self._compute(number)

    def _compute(self, number: int) -> Block:
        size, num_tfs = self.options.block_size, len(self.tfs)
        names = self.targets[number * size : (number + 1) * size]
        columns = np.arange(num_tfs + number * size, num_tfs + number * size + len(names))
        tf_columns = np.arange(num_tfs)
        found = {CORRELATION: correlate(self.cells, tf_columns, columns)}
        pooled, factors = self._pool(columns), self._factors
        if self.options.pool_size > 1:
            found[POOLED] = _pearson(factors.values, pooled)
        found[TREES] = factors.importances(pooled, names)
        return found

    @cached_property
    def _factors(self) -> Factors:
        return Factors(self._pool(np.arange(len(self.tfs))), self.tfs, self.options.trees)

    def _pool(self, columns: Int64) -> Float32:
        return np.asarray(self.pools @ self.cells.residuals(columns), np.float32)


def choose_candidates(
    data: NetworkData,
    cells: NetworkCells,
    tfs: Sequence[str],
    *,
    num_targets: int,
    min_share: float,
    also: Sequence[str] = (),
) -> tuple[Candidates, list[str]]:
    """Choose the genes of a network: factors and targets that enough cells express, and warnings.

    Targets are the most variable genes, given their mean, and those of ``also`` that are expressed. Raises CorpusError
    without any factor or without targets.
    """
    expressed = cells.shares >= max(min_share, 3 / cells.num_cells)
    expressed &= cells.deviations > 0
    wanted = set(tfs)
    tf_columns = np.array([k for k, gene in enumerate(data.genes) if gene in wanted and expressed[k]], np.int64)
    if not len(tf_columns):
        raise CorpusError(
            f"{data.uri}: none of its {len(wanted)} transcription factors is expressed by {100 * min_share:g} % of the "
            "cells.",
            remedy="Lower --min-share, or name factors that are expressed with --tfs.",
        )
    targets = _most_variable(cells, np.flatnonzero(expressed), num_targets)
    kept_too = set(also)
    added = [column for column in np.flatnonzero(expressed).tolist() if data.genes[column] in kept_too]
    targets = np.union1d(targets, added).astype(np.int64)
    warnings = []
    if len(targets) < FEWEST_TARGETS:
        raise CorpusError(
            f"{data.uri}: {len(targets)} genes are expressed by {100 * min_share:g} % of the cells.",
            remedy="Give cells with more genes, or lower --min-share.",
        )
    if len(targets) < FEW_TARGETS or len(tf_columns) < 3:
        warnings.append(f"{len(tf_columns)} factors and {len(targets)} targets are few: ranks among them say little")
    names = [tuple(data.genes[column] for column in columns) for columns in (tf_columns, targets)]
    return Candidates(names[0], names[1], tf_columns, targets), warnings


def _most_variable(cells: NetworkCells, columns: Int64, num: int) -> Int64:
    """Return the ``num`` most variable genes of some, given their mean."""
    if len(columns) <= num:
        return columns
    counts = sparse.csr_matrix(cells.expression[:, columns])
    counts.data = np.expm1(counts.data)
    return columns[most_variable(standardised_variances(counts), num)]


def prepare_work(cells: NetworkCells, candidates: Candidates, options: WorkOptions) -> Work:
    """Prepare the work of a group of cells: its pools, and its cells over the genes of the network alone."""
    with threadpool_limits(1):
        pools = pools_of(cells, size=options.pool_size, num=options.max_pools, seed=options.seed)
    both = cells.select(np.concatenate([candidates.tf_columns, candidates.target_columns]))
    return Work(both, pools, candidates.tfs, candidates.targets, options)


def compute_blocks(
    work: Work,
    pieces: Pieces,
    *,
    name: str = "",
    with_ray: bool = False,
    advance: progress.Advance = progress.silent,
) -> Block:
    """Compute the evidence of all blocks, (T, G) per kind; those among the ``pieces`` are not computed again.

    ``with_ray``: by Ray's tasks, one per block; this process, connected to Ray, keeps the pieces.
    """
    labels = [f"{name} block {number} of {work.num_blocks}" for number in range(work.num_blocks)]
    todo = [number for number, label in enumerate(labels) if not pieces.has(label)]
    compute: Callable[[int], Block] = work.compute
    if with_ray and todo:
        from cytoray.tasks.networks.ray_blocks import start_blocks

        compute = start_blocks(work, todo)
    blocks = []
    for number, label in enumerate(labels):
        found, reused = pieces.compute(label, lambda number=number: compute(number))  # type: ignore[misc]
        blocks.append(found)
        advance(1, label.strip(), already=reused)
    return {kind: np.concatenate([block[kind] for block in blocks], axis=1) for kind in blocks[0]}


def _pearson(first: Float32, second: Float32) -> Float32:
    """Return the correlation of columns, (T, B); 0 for a constant one."""
    centred: list[Float64] = []
    for values in (first, second):
        each = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
        lengths = np.linalg.norm(each, axis=0)
        centred.append(each / np.where(lengths > 0, lengths, np.inf))
    return np.asarray(centred[0].T @ centred[1], np.float32)
