"""Places of cells in files from outside: found and read by another process, whose answers are checked."""

# C cells, N non-zero entries over all cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.places import CellPlace, PlacedCells
from cytoray.errors import CorpusError
from cytoray.serving.confined.reader import ReaderLimits, ask_reader
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneVocabulary

MAX_ROWS = 2**40


@dataclass(frozen=True)
class ConfinedPlace:
    """A file that this process does not open."""

    source: SourceConfig
    num_rows: int
    version: str
    limits: ReaderLimits

    @property
    def uri(self) -> str:
        """The file."""
        return self.source.uri

    def read(self, start: int, stop: int, vocabulary: GeneVocabulary) -> PlacedCells:
        """Have the cells of a range of rows read; raises CorpusError if they cannot be, or are not valid."""
        head, arrays = ask_reader(
            self.limits, for_s3=storage.is_remote(self.uri), vocabulary=vocabulary.tokens, do="read",
            source=self.source.model_dump_json(), start=start, stop=stop,
        )  # fmt: skip
        try:
            found = _checked(head, arrays, num_genes=vocabulary.size)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise CorpusError(
                f"{self.source.identity}: what was read of it is not valid.", remedy="Write the file again."
            ) from error
        sources = (self.source.identity,) * found[0].num_cells
        return PlacedCells(found[0], found[1], sources, arrays["rows"], arrays["measured"])


def open_confined(sources: Sequence[SourceConfig], *, limits: ReaderLimits) -> list[CellPlace]:
    """Find the places that files and prefixes stand for, by another process."""
    places: list[CellPlace] = []
    for source in sources:
        head, _ = ask_reader(
            limits, for_s3=storage.is_remote(source.uri), do="find", sources=[source.model_dump_json()]
        )
        for found in head["places"]:
            one = SourceConfig.model_validate_json(found["source"])
            num_rows = int(found["num_rows"])
            if not one.uri.startswith(source.uri) or not 0 <= num_rows <= MAX_ROWS:
                raise CorpusError(f"{source.uri}: what was found there is not valid.", remedy="Name the files.")
            places.append(ConfinedPlace(one, num_rows, str(found["version"]), limits))
    return places


def _checked(
    head: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], *, num_genes: int
) -> tuple[SparseCells, tuple[str, ...]]:
    """Return cells and their names; the process that sent them may have been taken over, so nothing is believed."""
    cells = SparseCells(*(arrays[name] for name in ("gene_ids", "values", "indptr", "cell_ids")))
    names = head["names"]
    starts = cells.indptr
    if starts[0] != 0 or (np.diff(starts) < 0).any() or len(arrays["rows"]) != cells.num_cells:
        raise ValueError("rows")
    if len(names) != cells.num_cells or not all(isinstance(name, str) for name in names):
        raise ValueError("names")
    for ids in (cells.gene_ids, arrays["measured"]):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_genes:
            raise ValueError("genes")
    steps = np.diff(cells.gene_ids)
    inside = np.ones(len(steps), bool)
    borders = starts[1:-1] - 1
    inside[borders[(borders >= 0) & (borders < len(steps))]] = False
    if (steps[inside] <= 0).any() or (np.diff(arrays["measured"]) <= 0).any():
        raise ValueError("order")
    if not (np.isfinite(cells.values) & (cells.values > 0)).all():
        raise ValueError("values")
    return cells, tuple(names)
