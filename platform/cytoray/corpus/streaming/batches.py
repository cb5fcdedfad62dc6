"""Minibatches as narrow arrays: filled by the fused kernel for several steps at once, and carried by Arrow uncopied."""

# M micro-batches, B cells of a micro-batch, L tokens per cell after padding, G unknown genes per cell after padding,
# T tokens over all cells of a packed micro-batch, C cells over all micro-batches

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytoray.tokens.cells import Int64, UInt64

Layout = Literal["padded", "packed"]
Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]
TOKENS = ("gene_ids", "values", "masked", "source_values", "perturbations")
UNKNOWN = ("unknown_gene_ids", "unknown_values")
PER_CELL = ("lengths", "cell_ids", "epochs", "labels", "unknown_lengths", "minibatches", "source_cell_ids")


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One micro-batch of a rank's share of a step (all of it unless there is a token budget), shorter cells first.

    With ``cells_per_minibatch`` cells stand minibatch by minibatch, shorter ones first in each.

    Padded: token arrays are (B, L) and (B, G). Packed: they are flat, cell after cell, cut at ``indptr``. Gene ids are
    uint16 or int32; values int8 or int16 (float32 if special values are not whole, or if values are expression).
    """

    step: int
    part: int  # of num_parts micro-batches of the share
    num_parts: int
    gene_ids: Array  # <cls> first, known genes ascending
    values: Array
    lengths: Int32  # (B,) known tokens of each cell, <cls> included
    cell_ids: UInt64  # (B,)
    epochs: Int32  # (B,)
    labels: Int32  # (B,), or (0,) without labels
    masked: Array | None = None  # values with hidden ones replaced (style "masked")
    unknown_gene_ids: Array | None = None  # style "generative"
    unknown_values: Array | None = None
    unknown_lengths: Int32 | None = None  # (B,)
    modalities: dict[str, dict[str, Array]] | None = None  # by name feature_ids (E,), values (E,), lengths (B,), ...
    minibatches: Int32 | None = None  # (B,) ascending, number in the step of each cell's minibatch
    source_values: Array | None = None  # like values, of the control cell with which each cell is paired
    source_cell_ids: UInt64 | None = None  # (B,)
    perturbations: Array | None = None  # int8, 1 for perturbed genes, of pairs with ``perturbed``
    columns: dict[str, Int32] = field(default_factory=dict)  # (B,) codes by name of the column, -1 without a value

    @property
    def epoch(self) -> int:
        """Epoch of the step's earliest cell here."""
        return int(self.epochs.min(initial=2**31 - 1)) if len(self.epochs) else 0

    @property
    def num_cells(self) -> int:
        """Number of cells B."""
        return len(self.cell_ids)

    @property
    def indptr(self) -> Int64:
        """Borders of the cells of a packed micro-batch, (B + 1,)."""
        return _starts(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Number of real tokens, unknown ones included."""
        unknown = 0 if self.unknown_lengths is None else int(self.unknown_lengths.sum())
        return int(self.lengths.sum()) + unknown

    def split(self, num_parts: int) -> list[StepBatch]:
        """Cut a padded share into parts of which the largest has as few tokens as possible, cells in their order.

        Each is as wide as its longest cell. Every part has at least one cell, if there are enough cells.
        """
        assert self.gene_ids.ndim == 2, "packed micro-batches are cut by a token budget"
        least, most = -(-self.num_tokens // num_parts), max(self.num_tokens, 1)
        while least < most:  # the smallest bound that needs no more parts
            bound = (least + most) // 2
            least, most = (least, bound) if self.count_parts(bound) <= num_parts else (bound + 1, most)
        ends = np.array(self._ends(least)[: num_parts - 1], dtype=np.int64)
        numbers = np.arange(1, num_parts)
        ends = np.pad(ends, (0, num_parts - 1 - len(ends)), constant_values=self.num_cells)
        cuts = np.maximum(np.minimum(ends, self.num_cells - num_parts + numbers), 0)
        return [self._rows(slice(a, b)) for a, b in itertools.pairwise([0, *cuts.tolist(), self.num_cells])]

    @property
    def num_minibatches(self) -> int:
        """Number of minibatches of a stream with ``cells_per_minibatch``."""
        assert self.minibatches is not None, "the stream must have cells_per_minibatch"
        return len(np.unique(self.minibatches))

    def split_minibatches(self) -> list[StepBatch]:
        """Cut a padded share into its minibatches, however many tokens they have."""
        assert self.minibatches is not None, "the stream must have cells_per_minibatch"
        cuts = np.flatnonzero(np.diff(self.minibatches)) + 1
        return [self._rows(slice(a, b)) for a, b in itertools.pairwise([0, *cuts.tolist(), self.num_cells])]

    def count_parts(self, max_tokens: int) -> int:
        """The fewest parts for ``split`` in which none has more than ``max_tokens``, or more than one cell."""
        return max(1, len(self._ends(max_tokens)))

    @property
    def _tokens(self) -> np.ndarray:
        """Real tokens of each cell."""
        return self.lengths if self.unknown_lengths is None else self.lengths + self.unknown_lengths

    def _ends(self, max_tokens: int) -> list[int]:
        """Where each part ends, in cells, if every part takes as many as ``max_tokens`` allow, and at least one."""
        sums, ends = np.cumsum(self._tokens, dtype=np.int64), [0]
        while ends[-1] < self.num_cells:
            done = int(sums[ends[-1] - 1]) if ends[-1] else 0
            ends.append(max(ends[-1] + 1, int(np.searchsorted(sums, done + max_tokens, side="right"))))
        return ends[1:]

    def _rows(self, rows: slice) -> StepBatch:
        """Return some cells in narrower arrays (views)."""
        width = int(self.lengths[rows].max(initial=0))
        unknown_width = 0 if self.unknown_lengths is None else int(self.unknown_lengths[rows].max(initial=0))

        def cut(array: Array | None, columns: int | None = None) -> Any:
            """Cut rows, and columns of a padded array."""
            return None if array is None else array[rows] if columns is None else array[rows, :columns]

        return replace(
            self,
            **{name: cut(getattr(self, name), width) for name in TOKENS},
            **{name: cut(getattr(self, name), unknown_width) for name in UNKNOWN},
            **{name: cut(getattr(self, name)) for name in PER_CELL},
            columns={name: codes[rows] for name, codes in self.columns.items()},
            modalities=None if self.modalities is None else {n: _cut(m, rows) for n, m in self.modalities.items()},
        )


@dataclass(frozen=True, eq=False)
class Ragged:
    """An array over all micro-batches, with the offset of each one's part."""

    flat: Array
    starts: Int64  # (M + 1,)

    def part(self, number: int) -> Array:
        """Return the part of one micro-batch."""
        return self.flat[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True, eq=False)
class StepChunk:
    """Micro-batches of neighbouring steps in flat arrays, filled at once and passed through Ray's object store."""

    layout: Layout
    heads: Int64  # (M, 3): step, part, num_parts
    fields: dict[str, Ragged]  # by the names of StepBatch, and columns/NAME, modalities/NAME/feature_ids, ...

    def batches(self) -> Iterator[StepBatch]:
        """Yield the micro-batches, as views."""
        for number, (step, part, num_parts) in enumerate(self.heads.tolist()):
            arrays = {name: ragged.part(number) for name, ragged in self.fields.items()}
            num_cells = len(arrays["cell_ids"])
            if self.layout == "padded":
                for name in (*TOKENS, *UNKNOWN):
                    if name in arrays:
                        arrays[name] = arrays[name].reshape(num_cells, len(arrays[name]) // max(1, num_cells))
            yield StepBatch(step, part, num_parts, **_nest(arrays))

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the arrays."""
        return sum(ragged.flat.nbytes for ragged in self.fields.values())

    def to_table(self) -> pa.Table:
        """Convert to one row, which cannot be split, with arrays as binary values; nothing is copied."""
        dtypes = {name: ragged.flat.dtype.str for name, ragged in self.fields.items()}
        columns = {
            "about": pa.array([json.dumps({"layout": self.layout, "dtypes": dtypes})]),
            "heads": _cell(self.heads),
        }
        for name, ragged in self.fields.items():
            columns[name], columns[f"starts:{name}"] = _cell(ragged.flat), _cell(ragged.starts)
        return pa.table(columns)

    @staticmethod
    def from_table(table: pa.Table) -> Iterator[StepChunk]:
        """Undo ``to_table``, row by row, without a copy."""
        for row in range(table.num_rows):
            about = json.loads(table.column("about")[row].as_py())
            fields = {
                name: Ragged(_array(table, name, row, dtype), _array(table, f"starts:{name}", row, "<i8"))
                for name, dtype in about["dtypes"].items()
            }
            yield StepChunk(about["layout"], _array(table, "heads", row, "<i8").reshape(-1, 3), fields)


def _cell(array: Array) -> pa.Array:
    """Wrap the bytes of an array as a binary column of one value."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    offsets = pa.py_buffer(np.array([0, len(data)], np.int32))
    return pa.BinaryArray.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)])


def _array(table: pa.Table, name: str, row: int, dtype: str) -> Array:
    """Undo ``_cell``."""
    return np.frombuffer(table.column(name)[row].as_buffer(), np.dtype(dtype))


def _nest(arrays: dict[str, Array]) -> dict[str, Any]:
    """Put ``columns/NAME`` under columns[NAME], and ``modalities/NAME/field`` under modalities[NAME][field]."""
    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "modalities":
            modality, _, part = rest.rpartition("/")
            nested.setdefault(kind, {}).setdefault(modality, {})[part] = array
        elif kind == "columns":
            nested.setdefault(kind, {})[rest] = array
        else:
            nested[name] = array
    return nested


def _cut(modality: dict[str, Array], rows: slice) -> dict[str, Array]:
    """Return some cells of a modality, whose entries stand cell after cell."""
    starts = _starts(modality["lengths"])
    first, last, _ = rows.indices(len(modality["lengths"]))
    entries = slice(int(starts[first]), int(starts[last]))
    return {name: array[rows if name == "lengths" else entries] for name, array in modality.items()}


def _starts(lengths: npt.ArrayLike) -> Int64:
    """Return the running sum from 0."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
