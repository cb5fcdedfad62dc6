"""Read cells, transcription factors and tables of known edges, and match their genes."""

# C cells, G genes

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.networks.cells import Int64
from cytoray.tasks.multiomic.reading import read_rna_of
from cytoray.tokens.gene_sets import GeneSets, load_gene_sets
from cytoray.tokens.labels import is_placeholder

FEWEST_CELLS = 20  # of a group
DEFAULT_FACTORS = "go_tf"
_GZIP = b"\x1f\x8b"
_FACTOR, _TARGET = ("tf", "source", "regulator", "factor"), ("target", "target_gene", "gene")
_SIGN, _CONFIDENCE = ("mor", "sign", "weight", "effect"), ("confidence", "level")
_SIGNS = {"activation": 1, "activates": 1, "+": 1, "repression": -1, "represses": -1, "-": -1}


@dataclass(frozen=True, eq=False)
class NetworkData:
    """C cells over G genes, with the group of each cell if there are groups."""

    values: sparse.csr_matrix  # (C, G) counts, or log-normalised expression
    genes: tuple[str, ...]
    names: tuple[str, ...]  # (C,)
    log_normalised: bool
    uri: str
    groups: npt.NDArray[np.str_] | None = None  # (C,), "" for a cell that belongs to none
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownEdge:
    """An edge of a table of known ones."""

    tf: str
    target: str
    sign: int  # 1 activation, -1 repression, 0 unknown


def read_network_data(uri: str, *, group_key: str | None, max_cells: int, seed: int) -> NetworkData:
    """Read the cells of a file that express a gene, at most ``max_cells`` of them.

    Raises CorpusError for fewer than twenty cells, for values that cannot be used, and for a missing column.
    """
    with open_source(SourceConfig(uri=uri)) as reader:
        cells = read_rna_of(reader)
        labels = None if group_key is None else reader.labels(group_key)
    warnings = []
    values = cells.rna.values
    kept = np.flatnonzero(np.diff(values.indptr) > 0)
    if len(kept) < values.shape[0]:
        warnings.append(f"{values.shape[0] - len(kept):,} cells without any count were left out")
    if len(kept) < FEWEST_CELLS:
        raise CorpusError(
            f"{uri} has {len(kept)} cells with counts; a network needs {FEWEST_CELLS}.", remedy="Give more cells."
        )
    if len(kept) > max_cells:
        warnings.append(f"{max_cells:,} of {len(kept):,} cells were used, a random sample (max_cells)")
        kept = np.sort(np.random.default_rng(seed).choice(kept, max_cells, replace=False))
    if cells.rna.log_normalised:
        warnings.append(
            "the values are not counts: they are used as log-normalised expression, and depth is judged by their sum"
        )
    groups = None if labels is None else np.array(["" if _is_none(labels[row]) else str(labels[row]) for row in kept])
    return NetworkData(
        values[kept], cells.genes, tuple(cells.names[row] for row in kept), cells.rna.log_normalised, uri, groups,
        tuple(warnings),
    )  # fmt: skip


def usable_groups(
    data: NetworkData, key: str | None, *, fewest: int = FEWEST_CELLS
) -> tuple[dict[str, Int64], list[str]]:
    """Return the rows of each group of cells by name, and warnings about groups that are too small.

    Without a ``key`` there is one group, called "all". Raises CorpusError if no group has enough cells.
    """
    if data.groups is None:
        return {"all": np.arange(len(data.names))}, []
    counts = Counter(group for group in data.groups.tolist() if group)
    found = {name: np.flatnonzero(data.groups == name) for name in sorted(counts) if counts[name] >= fewest}
    small = [f"{name} ({count})" for name, count in sorted(counts.items()) if count < fewest]
    if not found:
        listed = ", ".join(small[:10]) or "none"
        raise CorpusError(
            f"{data.uri}: no group of {key!r} has {fewest} cells; groups and cells: {listed}.",
            remedy="Name another column with --groups, or leave it out.",
        )
    warnings = []
    if small:
        warnings.append(f"groups with fewer than {fewest} cells were left out: {', '.join(small)}")
    if missing := int((data.groups == "").sum()):
        warnings.append(f"{missing:,} cells without a group in {key!r} were left out")
    return found, warnings


def only_group(data: NetworkData, key: str, name: str) -> NetworkData:
    """Return the cells of one group, which are no longer grouped; CorpusError if it has fewer than twenty."""
    assert data.groups is not None
    rows = np.flatnonzero(data.groups == name)
    if len(rows) < FEWEST_CELLS:
        raise CorpusError(
            f"{data.uri} has {len(rows)} cells of {name!r} in {key!r}; a network needs {FEWEST_CELLS}.",
            remedy=f"Name another value; there are {', '.join(sorted(set(data.groups.tolist()) - {''})[:10])}.",
        )
    text = f"the network was inferred from the {len(rows):,} cells of {name!r} in {key!r} alone"
    names = tuple(data.names[row] for row in rows)
    return replace(data, values=data.values[rows], names=names, groups=None, warnings=(*data.warnings, text))


def read_factors(uri: str | None, genes: Sequence[str]) -> tuple[str, ...]:
    """Return the transcription factors among ``genes``, in their order, of a list or of the packaged one.

    Raises ConfigError for a missing file or one of another kind, CorpusError if the data have none of them.
    """
    if uri is None:
        listed, source = load_gene_sets(DEFAULT_FACTORS), "the packaged list of human transcription factors"
    else:
        listed, source = GeneSets("factors", {"factors": frozenset(_read_list(uri))}), uri
    known = listed.for_genes(genes).genes
    found = tuple(gene for gene in genes if gene in known)
    if not found:
        some = ", ".join(sorted(listed.genes)[:3])
        raise CorpusError(
            f"None of the {len(listed.genes):,} factors of {source} is among the genes of the data ({some}, … and "
            f"{', '.join(genes[:3])}, …).",
            remedy="Give a list in the data's own gene names with --tfs.",
        )
    return found


def read_known_edges(uri: str, *, confidence: Sequence[str] = ("A", "B")) -> list[KnownEdge]:
    """Read a table of known edges, tab- or comma-separated, compressed or not, of a path or s3://.

    It has columns tf (or source) and target, and may have mor (or sign) and confidence; of a table with confidence only
    rows of the given levels count, unless none is given. Raises ConfigError for a table of another kind.
    """
    lines = _read_text(uri).splitlines()
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    rows = list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {}) if name is not None}
    tf, target = _column(columns, _FACTOR), _column(columns, _TARGET)
    if tf is None or target is None:
        raise ConfigError(
            f"{uri} is not a table of edges: its columns are {', '.join(columns) or 'missing'}.",
            remedy="Give a tsv or csv with columns tf and target, and optionally mor and confidence.",
        )
    level, sign = _column(columns, _CONFIDENCE), _column(columns, _SIGN)
    if level is not None and confidence:
        levels = Counter((row[level] or "").strip() for row in rows)
        rows = [row for row in rows if (row[level] or "").strip() in confidence]
        if not rows:
            raise ConfigError(
                f"{uri} has no edge of confidence {', '.join(confidence)}; it has {', '.join(sorted(levels))}.",
                remedy="Name the levels to use.",
            )
    signs = {(row[tf] or "", row[target] or ""): _sign_of(row[sign]) if sign is not None else 0 for row in rows}
    return [KnownEdge(a.strip(), b.strip(), value) for (a, b), value in signs.items() if a.strip() and b.strip()]


def match_edges(edges: Sequence[KnownEdge], genes: Sequence[str]) -> list[KnownEdge]:
    """Rewrite known edges in the gene names of the data; edges with a gene that the data lack are left out."""
    names = {name for edge in edges for name in (edge.tf, edge.target)}
    own = {name: next(iter(found)) for name, found in _own_names(names, genes).items()}
    return [
        KnownEdge(own[edge.tf], own[edge.target], edge.sign) for edge in edges if edge.tf in own and edge.target in own
    ]


def _own_names(names: set[str], genes: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return what the data call each gene, as a set of one."""
    singles = GeneSets("names", {name: frozenset({name}) for name in names})
    return dict(singles.for_genes(genes, min_size=1).members)


def _column(columns: dict[str, str], names: Sequence[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _sign_of(text: str | None) -> int:
    word = (text or "").strip().lower()
    if word in _SIGNS:
        return _SIGNS[word]
    try:
        return int(np.sign(float(word)))
    except ValueError:
        return 0


def _read_list(uri: str) -> list[str]:
    rows = [line.split("#")[0].strip() for line in _read_text(uri).splitlines()]
    names = [row for row in rows if row]
    if not names or any(re.search(r"[\t,; ]", name) for name in names):
        raise ConfigError(
            f"{uri} is not a list of transcription factors.", remedy="Write one symbol or Ensembl id per line."
        )
    return names


def _read_text(uri: str) -> str:
    data = storage.find_bytes(uri)
    if data is None:
        raise ConfigError(f"{uri} does not exist.", remedy="Check the path.")
    try:
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{uri} is neither UTF-8 text nor such text compressed with gzip.", remedy="Give a table or list as text."
        ) from error


def _is_none(label: str | None) -> bool:
    return label is None or is_placeholder(label)
