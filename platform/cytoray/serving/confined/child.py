"""Read cells for another process: ``python -m cytoray.serving.confined.child LIMITS``, started by `confined.places`.

Requests are lines of JSON on stdin. An answer on stdout is the length of a JSON object (8 bytes, little-endian), the
object, and the bytes of the arrays that it describes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.places import FilePlace, open_places
from cytoray.errors import CorpusError, CytorayError
from cytoray.serving.confinement import confine_reader
from cytoray.tokens.vocabulary import GeneVocabulary

Arrays = dict[str, npt.NDArray[Any]]


class Desk:
    """Answers requests; the vocabulary is sent before the first cells are."""

    def __init__(self) -> None:
        self._vocabulary: GeneVocabulary | None = None

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
        """Answer one request; raises CytorayError if a file cannot be read."""
        if request["do"] == "vocabulary":
            self._vocabulary = GeneVocabulary(request["tokens"])
            return {}, {}
        if request["do"] == "find":
            return {"places": _find([SourceConfig.model_validate_json(text) for text in request["sources"]])}, {}
        assert self._vocabulary is not None, "sent before"
        place = FilePlace(SourceConfig.model_validate_json(request["source"]), num_rows=0, version="")
        found = place.read(request["start"], request["stop"], self._vocabulary)
        arrays: Arrays = {
            "gene_ids": found.cells.gene_ids,
            "values": found.cells.values,
            "indptr": found.cells.indptr,
            "cell_ids": found.cells.cell_ids,
            "rows": found.rows,
            "measured": found.measured,
        }
        return {"names": found.names}, arrays


def _find(sources: list[SourceConfig]) -> list[dict[str, Any]]:
    """Describe the files that sources stand for."""
    found = []
    for place in open_places(sources):
        if not isinstance(place, FilePlace):
            raise CorpusError(f"{place.uri} is a corpus.", remedy="Name it as a corpus of the store.")
        found.append({"source": place.source.model_dump_json(), "num_rows": place.num_rows, "version": place.version})
    return found


def write_answer(target: BinaryIO, head: dict[str, Any], arrays: Arrays) -> None:
    """Write an answer."""
    about = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
    text = json.dumps(head | {"arrays": about}).encode()
    target.write(len(text).to_bytes(8, "little"))
    target.write(text)
    for array in arrays.values():
        target.write(np.ascontiguousarray(array).tobytes())
    target.flush()


def main() -> None:
    """Answer until stdin is closed."""
    limits = json.loads(sys.argv[1])
    confine_reader(memory_bytes=limits["memory_bytes"], seconds=limits["cpu_s"], network=limits["network"])
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    desk = Desk()
    for line in sys.stdin.buffer:
        try:
            head, arrays = desk.answer(json.loads(line))
        except CytorayError as error:
            head, arrays = {"problem": error.problem, "remedy": error.remedy}, {}
        except MemoryError:
            remedy = "Take part of its cells, or store them as a sparse matrix."
            head, arrays = {"problem": "The file needs more memory than the service allows.", "remedy": remedy}, {}
        write_answer(target, head, arrays)


if __name__ == "__main__":
    main()
