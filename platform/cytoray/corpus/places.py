"""Places where cells rest, read by ranges of rows: files, and the shards of a committed corpus."""

# C cells

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.manifest import ShardRecord, corpus_uri, list_versions, load_manifest
from cytoray.corpus.readers.finding import expand_sources
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.reading import read_cells
from cytoray.corpus.shards import CELLS_PER_ROW_GROUP, open_shard
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int32, Int64, SparseCells
from cytoray.tokens.packed import unpack
from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

CORPUS_URI = re.compile(r"(?P<store>.+)/corpora/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(?:@\d+)?)/?")
READERS = 8  # footers read at a time
_OBS = ("_obs_name", "_source")


@dataclass(frozen=True, eq=False)
class PlacedCells:
    """Cells over a vocabulary, with what joins them to where they came from."""

    cells: SparseCells
    names: tuple[str, ...]  # (C,)
    sources: tuple[str, ...]  # (C,) identity of the source of each
    rows: Int64  # (C,) in the file, or in the corpus
    measured: Int32  # ids of the vocabulary's genes that were measured, ascending


class CellPlace(Protocol):
    """Cells that are read by ranges of rows; another process may do that."""

    @property
    def uri(self) -> str:
        """The file or the corpus: places of one corpus share it."""

    @property
    def num_rows(self) -> int:
        """Number of rows; cells that break a rule are not read."""

    @property
    def version(self) -> str:
        """Text that changes with what is read."""

    def read(self, start: int, stop: int, vocabulary: GeneVocabulary) -> PlacedCells:
        """Read the cells of a range of rows; those without any gene of the vocabulary are kept."""


@dataclass(frozen=True)
class FilePlace:
    """One file, or a folder that is one source."""

    source: SourceConfig
    num_rows: int
    version: str

    @classmethod
    def opened(cls, source: SourceConfig) -> FilePlace:
        """Open a file to find what it holds; raises CorpusError or StorageError if it cannot be read."""
        with open_source(source) as reader:
            about = reader.describe()
        return cls(source, about.num_cells, f"{about.version} {source.fingerprint()}")

    @property
    def uri(self) -> str:
        """The file."""
        return self.source.uri

    def read(self, start: int, stop: int, vocabulary: GeneVocabulary) -> PlacedCells:
        """Read, check and map the cells of a range of rows, as an ingest would."""
        named = read_cells(self.source, start=start, stop=stop, vocabulary=vocabulary, keep_empty=True)
        assert named.measured is not None, "read from a file"
        assert named.rows is not None, "read from a file"
        sources = (self.source.identity,) * named.cells.num_cells
        return PlacedCells(named.cells, named.names, sources, named.rows, named.measured)


@dataclass(frozen=True, eq=False)
class ShardPlace:
    """One shard of a committed corpus."""

    uri: str  # of the corpus, with its version
    folder: str
    shard: ShardRecord = field(repr=False)
    first: int  # row of its first cell in the corpus
    genes: Int32 = field(repr=False)  # ids of the genes of the whole corpus, ascending
    identities: Mapping[str, str] = field(repr=False)  # of its sources, by their URIs, which obs has

    @property
    def num_rows(self) -> int:
        """Number of cells."""
        return self.shard.num_cells

    @property
    def version(self) -> str:
        """Digests of the cells and of their obs, and the place in the corpus."""
        return f"{self.shard.sha256} {self.shard.obs.sha256} {self.first}"

    def read(self, start: int, stop: int, vocabulary: GeneVocabulary) -> PlacedCells:
        """Read the row groups of a range of rows, verified, and map their genes to the vocabulary."""
        reader = open_shard(storage.join(self.folder, self.shard.key), self.shard)
        groups = range(start // CELLS_PER_ROW_GROUP, -(-stop // CELLS_PER_ROW_GROUP))
        cells = SparseCells.concatenate([unpack(reader.read_group(group)) for group in groups])
        cells = cells.take(np.arange(start, stop) - groups.start * CELLS_PER_ROW_GROUP)
        obs = _read_obs(storage.join(self.folder, self.shard.obs.key), self.shard.obs.sha256)
        obs = obs.slice(start, stop - start)
        names = tuple(map(str, obs["_obs_name"].to_pylist()))
        sources = tuple(self.identities.get(uri, uri) for uri in obs["_source"].to_pylist())
        cells, measured = _over(vocabulary, cells, self.genes)
        return PlacedCells(cells, names, sources, np.arange(start, stop) + self.first, measured)


def open_places(sources: Sequence[SourceConfig]) -> list[CellPlace]:
    """Find the places that files, prefixes and corpora stand for, in their order.

    A corpus is ``STORE/corpora/NAME``, its latest version, or ``STORE/corpora/NAME@VERSION``. Raises CorpusError if a
    source holds no cells, is not one, or is a corpus with settings of a file.
    """
    places: list[CellPlace] = []
    for kind, group in _runs(sources):
        if kind is None:
            places += [FilePlace.opened(source) for source in expand_sources(group)]
        else:
            places += _shards(kind["store"], kind["name"], group[0])
    return places


def _runs(sources: Sequence[SourceConfig]) -> list[tuple[re.Match[str] | None, list[SourceConfig]]]:
    """Put neighbouring files together, which are named so that they differ; each corpus is alone."""
    runs: list[tuple[re.Match[str] | None, list[SourceConfig]]] = []
    for source in sources:
        match = find_corpus_uri(source.uri)
        if match is None and runs and runs[-1][0] is None:
            runs[-1][1].append(source)
        else:
            runs.append((match, [source]))
    return runs


def find_corpus_uri(uri: str) -> re.Match[str] | None:
    """Return the parts ``store`` and ``name`` of the URI of a committed corpus; None if it is not one."""
    match = CORPUS_URI.fullmatch(uri)
    return match if match and list_versions(corpus_uri(match["store"], match["name"])) else None


def _shards(store: str, name: str, source: SourceConfig) -> list[ShardPlace]:
    """Return the shards of a corpus that have cells."""
    if source != SourceConfig(uri=source.uri):
        raise CorpusError(
            f"{source.uri} is a corpus: only its uri can be given.", remedy="Leave the other keys of this source out."
        )
    manifest = load_manifest(store, name)
    folder = corpus_uri(store, name)
    shards = [shard for shard in manifest.shards if shard.num_cells]
    with ThreadPoolExecutor(READERS, "footers") as pool:
        tables = list(pool.map(lambda shard: open_shard(storage.join(folder, shard.key), shard).genes(), shards))
    genes = np.unique(np.concatenate([np.empty(0, np.int32), *tables]))
    firsts = itertools.accumulate((shard.num_cells for shard in shards), initial=0)
    uri = f"{folder}@{manifest.version}"
    identities = {record.uri: record.identity for record in manifest.sources}
    return [
        ShardPlace(uri, folder, shard, first, genes, identities) for shard, first in zip(shards, firsts, strict=False)
    ]


def _over(vocabulary: GeneVocabulary, cells: SparseCells, genes: Int32) -> tuple[SparseCells, Int32]:
    """Return cells of a corpus over another vocabulary, and the ids there of the corpus's genes."""
    own = GeneVocabulary.load_default()
    if vocabulary == own:
        return cells, genes
    mapping = _map_genes(vocabulary, genes.tobytes())
    columns = np.searchsorted(genes, cells.gene_ids)
    return mapping.apply(cells.values, columns, cells.indptr, cells.cell_ids), mapping.measured


@functools.lru_cache(maxsize=4)
def _map_genes(vocabulary: GeneVocabulary, genes: bytes) -> GeneMapping:
    tokens = GeneVocabulary.load_default().tokens
    return vocabulary.map_genes([tokens[gene] for gene in np.frombuffer(genes, np.int32)])


@functools.lru_cache(maxsize=2)  # several ranges of one shard are read one after the other
def _read_obs(uri: str, sha256: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri, sha256=sha256)), columns=list(_OBS))
