"""The reader that all formats share: a format only locates matrices and tables, everything else is done here."""

# C cells (rows read), G genes (columns of the file), F features of a further modality

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import pandas as pd
from scipy import sparse

from cytoray.corpus.config import GuideConfig, ModalityConfig, SourceConfig
from cytoray.corpus.readers.base import Format, SourceDescription, ValueKind
from cytoray.corpus.readers.frames import label_columns, note_left_out, unholdable
from cytoray.corpus.readers.genes import ensembl_ids, gene_column, gene_genomes, gene_names
from cytoray.corpus.readers.guides import CONTROL, UNASSIGNED, assign_targets, guide_targets
from cytoray.corpus.readers.problems import UnreadableError, damaged, explained, no_column, no_matrix
from cytoray.corpus.readers.rows import RowSource, tidy_rows
from cytoray.corpus.readers.values import Judged, choose_matrix, judge_numbers, judge_values, only_value, sample_ranges
from cytoray.errors import CorpusError
from cytoray.tokens.gene_table import guess_id_type, judge_species, split_genomes
from cytoray.tokens.labels import label_texts

GUIDE_ROWS = 65_536  # read at a time
FIRST_ROWS = 256  # of a further table, to see whether it holds counts


@dataclass(frozen=True)
class Modality:
    """A further matrix over the same cells, and the names of its F features."""

    rows: RowSource
    features: list[str]


class Contents(Protocol):
    """The matrices and tables of one open source. Its methods may raise any error of ``problems.DAMAGE``."""

    format: Format
    num_bytes: int
    version: str
    notes: list[str]

    def matrices(self) -> dict[str, RowSource]:
        """The matrices by the name a user gives them, X before raw.X before layers."""

    def obs(self) -> pd.DataFrame:
        """The table of cells."""

    def var(self, matrix: str) -> pd.DataFrame:
        """The table of genes of one of the matrices."""

    def modality_names(self) -> tuple[str, ...]:
        """Names that ``modality`` accepts, as ``obsm/NAME`` or ``mod/NAME``."""

    def modality(self, config: ModalityConfig) -> Modality:
        """A further matrix over the cells."""


class SourceReader:
    """One open source of cells, with the interface of ``base.CellReader``; a context manager."""

    def __init__(self, source: SourceConfig, contents: Contents, stack: contextlib.ExitStack) -> None:
        """``stack`` holds what is open, and is closed with the reader."""
        self.source = source
        self.num_unsorted_rows = 0  # of those read so far: columns not in order, or twice
        self._contents, self._stack = contents, stack
        self._judged: dict[str, Judged] = {}
        self._modalities: dict[str, Modality] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def version(self) -> str:
        """ETag, or size and mtime, of the object as it was opened; for a folder, a digest over those of its files."""
        return self._contents.version

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Table of cells, indexed by their names."""
        with explained(self.source.uri, "obs"):
            frame = self._contents.obs()
            left_out = unholdable(frame)
            note_left_out(map(str, left_out), "obs", self._contents.notes)
            frame = frame.drop(columns=left_out) if left_out else frame
        guides = self.source.guides
        return frame if guides is None else frame.assign(**{guides.column: self._perturbations(guides)})

    @cached_property
    def matrix(self) -> str:
        """Name of the matrix that is read: the one asked for, or else counts before anything else."""
        if not self._matrices:
            raise CorpusError(
                f"{self.source.uri}: the file has no expression matrix (no X, raw.X or layers).",
                remedy="Write the counts to X and save again.",
                uri=self.source.uri,
                key="X",
            )
        if self.source.matrix != "auto":
            if self.source.matrix not in self._matrices:
                raise no_matrix(self.source.uri, self.source.matrix, list(self._matrices))
            return self.source.matrix
        if len(self._matrices) == 1:
            return next(iter(self._matrices))
        return choose_matrix({name: rows.shape[1] for name, rows in self._matrices.items()}, self._judge)

    @property
    def other_matrices(self) -> str:
        """If a matrix was chosen, what else there was, as the end of a sentence; else empty."""
        matrix = self.matrix
        if self.source.matrix != "auto" or len(self._matrices) == 1:
            return ""
        return "; there are also " + ", ".join(name + self._remark(name) for name in self._matrices if name != matrix)

    @property
    def value_kind(self) -> ValueKind:
        """Kind of the chosen matrix's values, judged from a sample of rows spread over it."""
        return self._judge(self.matrix).kind

    @cached_property
    def gene_names(self) -> list[str]:
        """Names of the G genes; see ``genes.gene_column``."""
        return gene_names(self._var, self.source)

    @cached_property
    def gene_column(self) -> str | None:
        """Column of var that names the genes, None for the index."""
        return gene_column(self._var, self.source)

    @property
    def var_columns(self) -> tuple[str, ...]:
        """Columns of var."""
        return tuple(map(str, self._var.columns))

    @cached_property
    def ensembl_ids(self) -> list[str] | None:
        """Ensembl ids of the G genes, from ``ensembl_column`` or any other column of var that holds them."""
        return ensembl_ids(self._var, self.gene_names, self.source)

    @cached_property
    def genomes(self) -> list[str] | None:
        """Assembly or species of the G genes, from a column such as ``genome``; None without one."""
        return gene_genomes(self._var)

    def describe(self) -> SourceDescription:
        """Describe shape, values, genes and labels; CorpusError if the parts disagree or hold no cells."""
        num_cells, num_genes = self._rows.shape
        for axis, table, expected, seen in (
            ("obs", "obs", num_cells, len(self.obs)),
            ("var", self._var_key, num_genes, len(self._var)),
        ):
            if expected != seen:
                raise CorpusError(
                    f"{self.source.uri}: {self.matrix} has {expected:,} entries along {axis}, "
                    f"but {table} has {seen:,}.",
                    remedy=f"Name another matrix, or write the file again: {table} must have a row for each of them.",
                    uri=self.source.uri,
                    key=table,
                )
        if num_cells == 0:
            raise CorpusError(
                f"{self.source.uri}: the file has no cells ({self.matrix} is 0 cells by {num_genes:,} genes).",
                remedy="Leave it out, or look at the step that wrote it.",
                uri=self.source.uri,
                rule="no_cells",
                key=self.matrix,
            )
        modalities = [modality.name for modality in self.source.modalities]
        return SourceDescription(
            uri=self.source.uri,
            num_bytes=self._contents.num_bytes,
            version=self.version,
            format=self._contents.format,
            matrix=self.matrix,
            value_kind=self.value_kind,
            num_cells=num_cells,
            num_genes=num_genes,
            num_entries=self._rows.num_entries,
            id_type=guess_id_type(split_genomes(self.gene_names)[0]),
            species=self._species(),
            label_columns=label_columns(self.obs),
            modalities=tuple(name for name in modalities if self._modality(name)),
            notes=self._notes(),
        )

    def labels(self, key: str) -> list[str | None]:
        """Return one label per cell from a column of obs; None where it is missing."""
        if key not in self.obs:
            raise no_column(self.source.uri, "obs", key, [str(name) for name in self.obs.columns])
        return label_texts(self.obs[key])

    def read_rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop`` in the file's number type, shape (C, G): checked, sorted, without zeros.

        Half floats become float32 and booleans uint8: scipy computes with neither.
        """
        matrix, num_unsorted = self._read(self._rows, self.matrix, (start, stop))
        self.num_unsorted_rows += num_unsorted
        return matrix

    @cached_property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the further matrices of the file, as ``sources.modalities`` refers to them: obsm/NAME, mod/NAME."""
        with explained(self.source.uri, "the list of matrices"):
            return self._contents.modality_names()

    def modality_features(self, name: str) -> list[str]:
        """Return the names of the F features of a further modality."""
        return self._modality(name).features

    def read_modality(self, name: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop`` of a further modality, shape (C, F)."""
        rows = self._modality(name).rows
        return self._read(rows, f"modality {name}", (start, stop))[0]

    @cached_property
    def _matrices(self) -> dict[str, RowSource]:
        with explained(self.source.uri, "the list of matrices"):
            return self._contents.matrices()

    @property
    def _rows(self) -> RowSource:
        return self._matrices[self.matrix]

    @cached_property
    def _var(self) -> pd.DataFrame:
        with explained(self.source.uri, self._var_key):
            return self._contents.var(self.matrix)

    @property
    def _var_key(self) -> str:
        return "raw/var" if self.matrix == "raw.X" else "var"

    def _read(self, rows: RowSource, what: str, cells: tuple[int, int]) -> tuple[sparse.csr_matrix, int]:
        """Rows of a matrix, and how many of them were not in order."""
        start, stop = max(0, min(cells[0], rows.shape[0])), max(0, min(cells[1], rows.shape[0]))
        with explained(self.source.uri, f"{what}, rows {start:,} to {stop:,}:"):
            return tidy_rows(rows.read(start, stop), rows.shape[1])

    def _judge(self, matrix: str) -> Judged:
        """Judge a matrix by a sample, once."""
        if matrix not in self._judged:
            self._judged[matrix] = self._judge_sample(matrix)
        return self._judged[matrix]

    def _judge_sample(self, matrix: str) -> Judged:
        """Read a sample of a matrix."""
        rows = self._matrices[matrix]
        with explained(self.source.uri, matrix):
            values = rows.sample_values()
        if values is not None and (kind := judge_numbers(values)) != "expression":
            return Judged(kind, empty=not values.any(), only_value=only_value(values))
        parts = [self._read(rows, matrix, cells) for cells in sample_ranges(rows.shape[0])]
        if not parts:
            return Judged("counts", empty=True)
        sample = sparse.vstack([matrix for matrix, _ in parts], format="csr")
        unsorted = sum(number for _, number in parts)
        return Judged(judge_values(sample), sample.nnz == 0, only_value(sample.data), num_unsorted_rows=unsorted)

    def _species(self) -> str:
        """The species of the genes, by their ids, genomes and names."""
        names, prefixes = split_genomes(self.gene_names)
        ids = None if self.ensembl_ids is None else split_genomes(self.ensembl_ids)[0]
        genomes = [genome or prefix for genome, prefix in zip(self.genomes or prefixes, prefixes, strict=True)]
        return judge_species(names, ensembl_ids=ids, genomes=genomes).name

    def _notes(self) -> tuple[str, ...]:
        """Remarks on this source for the user."""
        notes = list(self._contents.notes)
        if self._judge(self.matrix).num_unsorted_rows:
            notes.append("rows whose column indices are not in order, or occur twice")
        if self.gene_column is not None and self.source.gene_column is None and self.gene_column != "feature_name":
            notes.append(f"genes are named by column {self.gene_column!r} of {self._var_key}")
        doubled = [name for name, count in Counter(self.gene_names).items() if count > 1]
        if doubled:
            notes.append(f"{len(doubled):,} gene names occur more than once, such as {doubled[0]}")
        notes += self._left_behind()
        if self.other_matrices:
            notes.append(f"{self.matrix} was chosen{self.other_matrices}")
        if self._judge(self.matrix).only_value is not None:
            notes.append(
                f"{self.matrix}{self._remark(self.matrix)}: these counts do not distinguish the genes of a cell"
            )
        return tuple(notes)

    def _perturbations(self, guides: GuideConfig) -> list[str]:
        """The perturbation of each cell, by the counts of its guides."""
        table = self._open_modality(
            ModalityConfig(name="guides", matrix=guides.matrix, feature_names=guides.feature_names)
        )
        targets, found = guide_targets(table.features, guides), []
        for start in range(0, table.rows.shape[0], GUIDE_ROWS):
            counts, _ = self._read(table.rows, guides.matrix, (start, start + GUIDE_ROWS))
            found += assign_targets(counts, targets, guides)
        cells = Counter(found)
        self._contents.notes.append(
            f"{guides.matrix} gives {guides.column!r}: {len(cells.keys() - {CONTROL, UNASSIGNED}):,} perturbations, "
            f"{cells[CONTROL]:,} control cells, {cells[UNASSIGNED]:,} unassigned"
        )
        return found

    def _left_behind(self) -> list[str]:
        """Tables of further counts over the cells, such as proteins or guides, that no modality names."""
        named = {modality.matrix for modality in self.source.modalities}
        named |= {self.source.guides.matrix} if self.source.guides is not None else set()
        found = []
        for matrix in self._contents.modality_names():
            name = matrix.partition("/")[2]
            if matrix in named or name.startswith("X_") or "spatial" in name.lower():
                continue
            try:
                with explained(self.source.uri, matrix):
                    table = self._contents.modality(ModalityConfig(name="table", matrix=matrix))
                    values, _ = self._read(table.rows, matrix, (0, FIRST_ROWS))
            except CorpusError:
                continue  # nobody asked for it
            if matrix.startswith("obsm/") and ((values.data < 0).any() or (values.data != np.rint(values.data)).any()):
                continue  # an embedding, or whatever else is not counted
            some = ", ".join(table.features[:3]) + (", …" if len(table.features) > 3 else "")
            found.append(
                f"{matrix} ({len(table.features):,} features: {some}) is not read; sources.modalities can name it"
            )
        return found

    def _remark(self, matrix: str) -> str:
        """In brackets, the only value of a matrix that was looked at; empty if it has several."""
        value = self._judged[matrix].only_value if matrix in self._judged else None
        return "" if value is None else f" (all sampled values are {value:g})"

    def _modality(self, name: str) -> Modality:
        """A further modality, opened once."""
        if name not in self._modalities:
            config = next((modality for modality in self.source.modalities if modality.name == name), None)
            assert config is not None, f"no modality {name!r} was configured"
            self._modalities[name] = self._open_modality(config)
        return self._modalities[name]

    def _open_modality(self, config: ModalityConfig) -> Modality:
        there = self.modality_names
        if config.matrix not in there:
            raise no_matrix(self.source.uri, config.matrix, there)
        with explained(self.source.uri, config.matrix):
            modality = self._contents.modality(config)
        if modality.rows.shape != (self._rows.shape[0], len(modality.features)):
            error = UnreadableError(
                f"its shape is {modality.rows.shape}, but there are {self._rows.shape[0]:,} cells and "
                f"{len(modality.features):,} names of features",
                remedy="Save it with a row per cell, and name its features with feature_names.",
            )
            raise damaged(self.source.uri, config.matrix, error)
        return modality


def numbered(names: list[str] | None, count: int, prefix: str) -> list[str]:
    """Return ``names``, or numbers behind ``prefix`` if they are None."""
    return names if names is not None else [f"{prefix}_{number}" for number in range(count)]
