from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray import storage
from cytoray.corpus.shards import decode_shard, encode_shard, load_shard
from cytoray.errors import CorpusError, DigestError
from cytoray.tokens.cells import SparseCells

# A float32 holds integers exactly up to 2**24, and beyond it those that end in zero bits.
COUNTS = (1, 2, 127, 128, 254, 255, 256, 65_535, 65_536, 2**24, 2**31, 2**32 - 256)
GAPS = (0, 1, 254, 255, 256, 509, 510, 511, 60_000)

Cell = tuple[int, dict[int, float]]  # id, gene id -> value


def build(cells: list[Cell]) -> SparseCells:
    lengths = [len(genes) for _, genes in cells]
    return SparseCells(
        np.array([gene for _, genes in cells for gene in sorted(genes)], np.int32),
        np.array([genes[gene] for _, genes in cells for gene in sorted(genes)], np.float32),
        np.cumsum([0, *lengths]).astype(np.int64),
        np.array([cell_id for cell_id, _ in cells], np.uint64),
    )


def random_cells(seed: int, num_cells: int, *, num_genes: int = 60_697) -> list[Cell]:
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(num_cells):
        genes = np.unique(rng.integers(0, num_genes, rng.integers(0, 40)))
        values = np.minimum(rng.pareto(0.5, len(genes)) + 1, 100_000).astype(int)
        cells.append((int(rng.integers(0, 2**64, dtype=np.uint64)), dict(zip(genes.tolist(), values.tolist()))))  # noqa: B905
    return cells


def assert_equal(decoded: SparseCells, cells: SparseCells) -> None:
    for name, kind in (("gene_ids", "int32"), ("values", "float32"), ("indptr", "int64"), ("cell_ids", "uint64")):
        seen = getattr(decoded, name)
        assert seen.dtype == kind
        assert np.array_equal(seen, getattr(cells, name))


def decode_by_the_table(data: bytes) -> tuple[list[Cell], list[int]]:
    """Another decoder, written from the table in the module's docstring alone, byte by byte; and the bins."""
    file = pq.ParquetFile(io.BytesIO(data))
    is_counts = file.schema_arrow.metadata[b"cytoray.values"] == b"counts"
    cells: list[Cell] = []
    bins: list[int] = []
    for chunk in file.read().to_pylist():
        assert 1 <= chunk["n"] <= 256
        cell_ids = struct.unpack(f"<{chunk['n']}Q", chunk["cell_ids"])
        nnz = struct.unpack(f"<{chunk['n']}I", chunk["nnz"])
        genes, values = iter(chunk["genes"]), iter(chunk["values"])
        floats = struct.iter_unpack("<f", chunk["values"]) if not is_counts else iter(())
        large = struct.iter_unpack("<I", chunk["large"])
        for cell_id, length in zip(cell_ids, nnz, strict=True):
            cell: dict[int, float] = {}
            previous = -1
            for _ in range(length):
                gap = 0
                while (byte := next(genes)) == 255:
                    gap += 255
                previous += gap + byte + 1
                value: Any = next(values) if is_counts else next(floats)[0]
                cell[previous] = next(large)[0] if is_counts and value == 255 else value
            cells.append((cell_id, cell))
        assert next(genes, None) is None
        assert next(large, None) is None
        assert (next(values, None) if is_counts else next(floats, None)) is None
        bins += chunk["bins"]
    return cells, bins


@st.composite
def drawn_cells(draw: st.DrawFn) -> list[Cell]:
    cells = []
    for _ in range(draw(st.integers(1, 6))):
        genes: dict[int, float] = {}
        gene = -1
        for gap in draw(st.lists(st.one_of(st.sampled_from(GAPS), st.integers(0, 2000)), max_size=12)):
            gene += gap + 1
            genes[gene] = draw(st.one_of(st.sampled_from(COUNTS), st.integers(1, 2**24)))
        cells.append((draw(st.integers(0, 2**64 - 1)), genes))
    return cells


@settings(max_examples=150, deadline=None)
@given(cells=drawn_cells())
def test_counts_and_genes_come_back_exactly(cells: list[Cell]):
    data = encode_shard(build(cells), values="counts")
    decoded = decode_shard(data)
    assert_equal(decoded.cells, build(cells))
    assert decoded.bins is None
    assert decode_by_the_table(data) == (cells, [])


@settings(max_examples=60, deadline=None)
@given(cells=drawn_cells(), seed=st.integers(0, 2**32))
def test_expression_comes_back_to_the_bit(cells: list[Cell], seed: int):
    built = build(cells)
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 0x7F800000, len(built.values)).astype(np.uint32).view(np.float32)  # any positive float
    built = SparseCells(built.gene_ids, values, built.indptr, built.cell_ids)
    data = encode_shard(built, values="expression")
    assert_equal(decode_shard(data).cells, built)
    entries = iter(values.tolist())
    expected = [(cell_id, {gene: next(entries) for gene in sorted(genes)}) for cell_id, genes in cells]
    assert decode_by_the_table(data)[0] == expected


@pytest.mark.parametrize("num_cells", [1, 255, 256, 257, 2048, 2049])
def test_any_number_of_cells_with_and_without_bins(num_cells: int):
    cells = random_cells(num_cells, num_cells)
    built = build(cells)
    assert decode_by_the_table(encode_shard(built, values="counts"))[0] == cells
    bins = np.random.default_rng(0).integers(0, 256, len(built.values)).astype(np.int16)
    data = encode_shard(built, values="counts", bins=bins)
    decoded = decode_shard(data)
    assert_equal(decoded.cells, built)
    assert decoded.bins.dtype == np.int16
    assert np.array_equal(decoded.bins, bins)
    assert decode_by_the_table(data) == (cells, bins.tolist())
    assert np.array_equal(decoded.binned.values, bins.astype(np.float32))
    assert np.array_equal(decoded.binned.gene_ids, built.gene_ids)
    assert np.array_equal(decoded.cells.values, built.values)


def test_cells_without_any_gene_keep_their_place():
    empty: Cell = (7, {})
    for cells in ([empty], [empty] * 300, [empty, (8, {0: 300, 700: 1}), empty, (9, {3: 1}), empty]):
        data = encode_shard(build(cells), values="counts")
        assert_equal(decode_shard(data).cells, build(cells))
        assert decode_by_the_table(data)[0] == cells
    # A whole chunk without genes between others, bins stored.
    cells = [*random_cells(0, 256), *[empty] * 256, *random_cells(1, 30)]
    bins = (np.arange(len(build(cells).values)) % 50 + 1).astype(np.int16)
    decoded = decode_shard(encode_shard(build(cells), values="counts", bins=bins))
    assert_equal(decoded.cells, build(cells))
    assert np.array_equal(decoded.bins, bins)


def test_no_cell_at_all():
    assert decode_shard(encode_shard(build([]), values="counts")).cells.num_cells == 0


def test_equal_cells_make_equal_bytes():
    cells = random_cells(5, 600)
    first = encode_shard(build(cells), values="counts")
    assert encode_shard(build(cells), values="counts") == first
    assert encode_shard(build(cells[::-1]).take(np.arange(600)[::-1]), values="counts") == first
    assert encode_shard(build(cells[::-1]), values="counts") != first


def test_a_shard_is_far_smaller_than_float32_csr():
    rng = np.random.default_rng(0)
    cells = [
        (i, {int(g): 1 + int(rng.geometric(0.6)) for g in np.unique(rng.integers(0, 30_000, 1500))}) for i in range(64)
    ]
    built = build(cells)
    assert len(encode_shard(built, values="counts")) < len(built.values) * 8 / 3


@pytest.mark.parametrize("value", [0, 0.5, 1.5, -1, 2.0**32, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_value_that_is_no_count_is_refused_rather_than_rounded(value: float):
    with pytest.raises(CorpusError, match="not an integer from 1"):
        encode_shard(build([(1, {3: 1, 9: value})]), values="counts")


def test_a_parquet_file_of_others_is_refused(tmp_path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a cytoray shard"):
        decode_shard((tmp_path / "a.parquet").read_bytes())


def test_every_flipped_byte_is_noticed_on_load(tmp_path, caplog):
    uri = str(tmp_path / "shard.parquet")
    data = encode_shard(build(random_cells(1, 3)), values="counts")
    sha256 = storage.write_bytes(uri, data)
    assert_equal(load_shard(uri, sha256).cells, decode_shard(data).cells)
    path = tmp_path / "flipped.parquet"
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(DigestError, match="have changed"):
            load_shard(str(path), sha256)
    for wrong in (data[:-1], data + b"\0", b""):
        path.write_bytes(wrong)
        with pytest.raises(DigestError):
            load_shard(str(path), sha256)
    assert "flipped.parquet" in caplog.text
