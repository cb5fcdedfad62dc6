"""Find the two tables that belong to a MatrixMarket file, named as by Cell Ranger, GEO, Parse or kb."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cytoray.corpus.readers.problems import NOT_CELLS, UnreadableError
from cytoray.corpus.readers.unpacking import without_packing

# Of equal names the earlier pattern is preferred.
_PATTERNS = {
    "features": (r"features?", r"genes?"),
    "barcodes": (r"barcodes?", r"cells?|cell_?metadata|cell_?names|cell_?ids"),
}
_TABLE_ENDINGS = (".tsv", ".txt", ".csv")
# Parts of the counts of RNA velocity, which are no counts of the cells by themselves.
_PARTIAL = re.compile(r"spliced|ambiguous|nascent|mature|UniqueAndMult", re.IGNORECASE)
REMEDY = (
    "Put both tables beside it under names that begin alike, such as S1_matrix.mtx, S1_features.tsv (a line per gene: "
    "Ensembl id, symbol) and S1_barcodes.tsv (a line per cell), or save the cells with adata.write_h5ad."
)


def is_mtx(name: str) -> bool:
    """Whether a file's name is that of a MatrixMarket file, compressed or not."""
    return without_packing(name).lower().endswith(".mtx") and not name.lower().endswith((".zip", ".tar", ".tgz"))


def is_plain_matrix(name: str) -> bool:
    """Whether it is the matrix of a folder of Cell Ranger, which gives the folder its name."""
    return is_mtx(name) and without_packing(name) == "matrix.mtx"


def find_parts(names: Iterable[str], matrix: str) -> dict[str, str]:
    """Names of the files ``features`` and ``barcodes`` of one matrix among the ``names`` in its folder.

    The table whose name begins like the matrix's is taken; one that begins like another matrix's is not. Raises
    UnreadableError if a part is missing or several could be meant.
    """
    there = sorted({*names, matrix})
    others = [name for name in there if is_mtx(name) and without_packing(name) != without_packing(matrix)]
    return {"matrix": matrix, **{part: _find_part(there, matrix, others, part) for part in _PATTERNS}}


def find_matrices(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, UnreadableError]]:
    """The matrices in one folder with their parts, and those that should not be read with the reasons."""
    there = sorted(names)
    found: dict[str, dict[str, str]] = {}
    refused: dict[str, UnreadableError] = {}
    for name in filter(is_mtx, there):
        try:
            found[name] = find_parts(there, name)
        except UnreadableError as error:
            refused[name] = error
    for name, parts in list(found.items()):
        rivals = [other for other in found if other != name and found[other]["barcodes"] == parts["barcodes"]]
        if rivals and not is_plain_matrix(name):
            refused[name] = UnreadableError(
                f"it has the same cells ({parts['barcodes']}) as {', '.join(rivals)}",
                remedy="Name the file itself to read it instead.",
            )
        elif _PARTIAL.search(name):
            refused[name] = UnreadableError(
                "its name says that it holds a part of the counts (spliced, unspliced or the like)",
                remedy="Name the file itself to read it all the same.",
            )
    return {name: parts for name, parts in found.items() if name not in refused}, refused


def _find_part(names: list[str], matrix: str, others: list[str], part: str) -> str:
    candidates: dict[tuple[int, bool, int], list[str]] = {}
    for name in names:
        alike = _likeness(name, matrix)
        if is_mtx(name) or any(_likeness(name, other) > alike for other in others):
            continue
        kind = _kind(name.removeprefix(_common_start(name, matrix)), part)
        if kind is not None:
            candidates.setdefault((-alike, *kind), []).append(name)
    if not candidates:
        wanted = f"{part}.tsv or genes.tsv" if part == "features" else f"{part}.tsv"
        raise UnreadableError(f"{wanted} is missing beside {matrix}", remedy=REMEDY, rule=NOT_CELLS)
    (alike, not_exact, _), best = min(candidates.items())
    if alike == 0 and not_exact and len({without_packing(name) for name in best}) > 1:
        raise UnreadableError(
            f"several files could be its {part} ({', '.join(best)})",
            remedy="Let the name of the right one begin like the matrix's, or move the others to another folder.",
            rule=NOT_CELLS,
        )
    return min(best, key=lambda name: (len(without_packing(name)), len(name)))


def _likeness(name: str, other: str) -> int:
    """Number of characters by which two names begin and end alike, in whole words."""
    one, two = (without_packing(text).rpartition(".")[0] for text in (name, other))
    return len(_common_start(one, two)) + len(_common_start(one[::-1], two[::-1]))


def _common_start(name: str, other: str) -> str:
    """How two names begin alike, up to the end of a word."""
    length = min(len(name), len(other))
    while name[:length] != other[:length]:
        length -= 1
    return re.sub(r"[A-Za-z0-9]+$", "", name[:length])


def _kind(name: str, part: str) -> tuple[bool, int] | None:
    """Whether a table's name is more than a pattern of the part, and which pattern; None if it matches none."""
    stem, dot, ending = without_packing(name.lower()).rpartition(".")
    if f"{dot}{ending}" not in _TABLE_ENDINGS:
        return None
    for number, words in enumerate(_PATTERNS[part]):
        if found := re.search(rf"(?<![a-z])({words})(?![a-z])", stem):
            return found.group() != stem, number
    return None
