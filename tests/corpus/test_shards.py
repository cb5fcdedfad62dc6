from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decode_corpus import Cell, decode_cells
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray import storage
from cytoray.corpus.shards import CELLS_PER_ROW_GROUP, EncodedShard, decode_shard, encode_shard, open_shard, read_shard
from cytoray.errors import CorpusError, DigestError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import PackedCells, concatenate, pack, packed_counts, packed_gene_ids, unpack, with_bins

# A float32 holds integers exactly up to 2**24, and beyond it those that end in zero bits.
COUNTS = (1, 2, 127, 128, 254, 255, 256, 65_535, 65_536, 2**24, 2**31, 2**32 - 256)
GAPS = (0, 1, 254, 255, 256, 509, 510, 511, 60_000)


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


def assert_equal(decoded: PackedCells, cells: SparseCells) -> None:
    sparse = unpack(decoded)
    for name, kind in (("gene_ids", "int32"), ("values", "float32"), ("indptr", "int64"), ("cell_ids", "uint64")):
        seen = getattr(sparse, name)
        assert seen.dtype == kind
        assert np.array_equal(seen, getattr(cells, name))


def encode(cells: list[Cell]) -> EncodedShard:
    return encode_shard(pack(build(cells)), values="counts")


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
    encoded = encode(cells)
    decoded = decode_shard(encoded.data)
    assert_equal(decoded, build(cells))
    assert decoded.bins is None
    assert decode_cells(encoded.data) == (cells, [])
    assert (encoded.num_cells, encoded.num_entries) == (len(cells), sum(len(genes) for _, genes in cells))


def test_every_count_up_to_the_largest_word_is_kept():
    """Float32, which cells carry outside of packed streams, would round it."""
    largest = 2**32 - 1
    packed = pack(build([(1, {0: 300, 9: 255, 12: 254}), (2, {5: 1})]))
    large = packed.large.copy()
    large[0] = largest
    packed = PackedCells(**{**packed.__dict__, "large": large})
    data = encode_shard(packed, values="counts").data
    assert packed_counts(decode_shard(data)).tolist() == [largest, 255, 254, 1]
    assert decode_cells(data)[0] == [(1, {0: largest, 9: 255, 12: 254}), (2, {5: 1})]


@settings(max_examples=60, deadline=None)
@given(cells=drawn_cells(), seed=st.integers(0, 2**32))
def test_expression_comes_back_to_the_bit(cells: list[Cell], seed: int):
    built = build(cells)
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 0x7F800000, len(built.values)).astype(np.uint32).view(np.float32)  # any positive float
    built = SparseCells(built.gene_ids, values, built.indptr, built.cell_ids)
    data = encode_shard(pack(built, counts=False), values="expression").data
    assert_equal(decode_shard(data), built)
    entries = iter(values.tolist())
    expected = [(cell_id, {gene: next(entries) for gene in sorted(genes)}) for cell_id, genes in cells]
    assert decode_cells(data)[0] == expected


@pytest.mark.parametrize("num_cells", [1, 255, 256, 257, 2048, 2049, 4096])
def test_any_number_of_cells_with_and_without_bins(num_cells: int, tmp_path: Path):
    cells = random_cells(num_cells, num_cells)
    built = build(cells)
    assert decode_cells(encode(cells).data)[0] == cells
    bins = np.random.default_rng(0).integers(0, 256, len(built.values)).astype(np.int16)
    encoded = encode_shard(with_bins(pack(built), bins), values="counts")
    whole = decode_shard(encoded.data)
    assert decode_cells(encoded.data) == (cells, bins.tolist())
    (tmp_path / "s").write_bytes(encoded.data)
    reader = open_shard(str(tmp_path / "s"), encoded.record("s"))
    groups = [reader.read_group(group) for group in range(len(encoded.row_groups))]
    for decoded in (whole, concatenate(groups)):
        assert_equal(decoded, built)
        assert decoded.bins is not None
        assert np.array_equal(decoded.bins, bins)
    sizes = [min(CELLS_PER_ROW_GROUP, num_cells - start) for start in range(0, num_cells, CELLS_PER_ROW_GROUP)]
    assert [group.num_cells for group in groups] == [record.num_cells for record in encoded.row_groups] == sizes
    assert [len(group.values) for group in groups] == [record.num_entries for record in encoded.row_groups]


def test_a_row_group_is_one_ranged_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoded = encode(random_cells(3, 5000))
    (tmp_path / "s").write_bytes(encoded.data)
    asked: list[tuple[int | None, int | None]] = []
    read = storage.read_bytes

    def spy(uri: str, **options: object) -> bytes:
        asked.append((options.get("start"), options.get("end")))  # type: ignore[arg-type]
        return read(uri, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "read_bytes", spy)
    reader = open_shard(str(tmp_path / "s"), encoded.record("s"))
    assert asked == []
    first, _, third = encoded.row_groups
    reader.read_group(2)
    reader.read_group(0)
    reader.read_group(2)
    place = (third.offset, third.offset + third.num_bytes)
    footer = (place[1], len(encoded.data))
    assert asked == [footer, place, (0, first.num_bytes), place]


def test_cells_without_any_gene_keep_their_place():
    empty: Cell = (7, {})
    for cells in ([empty], [empty] * 300, [empty, (8, {0: 300, 700: 1}), empty, (9, {3: 1}), empty]):
        assert_equal(decode_shard(encode(cells).data), build(cells))
        assert decode_cells(encode(cells).data)[0] == cells
    # A whole chunk without genes between others, bins stored.
    cells = [*random_cells(0, 256), *[empty] * 256, *random_cells(1, 30)]
    bins = (np.arange(len(build(cells).values)) % 50 + 1).astype(np.int16)
    decoded = decode_shard(encode_shard(with_bins(pack(build(cells)), bins), values="counts").data)
    assert_equal(decoded, build(cells))
    assert np.array_equal(decoded.bins, bins)


def test_no_cell_at_all():
    assert decode_shard(encode([]).data).num_cells == 0


def test_equal_cells_make_equal_bytes():
    cells = random_cells(5, 600)
    first = encode(cells)
    assert encode(cells) == first
    again = build(cells[::-1]).take(np.arange(600)[::-1])
    assert encode_shard(pack(again), values="counts") == first
    assert encode_shard(decode_shard(first.data), values="counts") == first  # what was read can be written again
    assert encode(cells[::-1]) != first


def test_genes_are_numbered_among_those_that_occur():
    """Two thirds of the vocabulary unknown to a data set cost nothing."""
    rng = np.random.default_rng(0)
    known = np.sort(rng.choice(60_000, 20_000, replace=False))
    cells = [(i, dict.fromkeys(np.unique(rng.choice(known, 1500)).tolist(), 1)) for i in range(512)]
    dense = {gene: place for place, gene in enumerate(sorted({gene for _, cell in cells for gene in cell}))}
    numbered = [(i, {dense[gene]: 1 for gene in cell}) for i, cell in cells]
    sparse, tight = encode(cells), encode(numbered)
    table = base64.b64encode(bytes(20_000))
    assert len(sparse.data) < len(tight.data) + len(table)
    assert np.array_equal(packed_gene_ids(decode_shard(sparse.data)), build(cells).gene_ids)


def test_a_shard_is_far_smaller_than_float32_csr():
    rng = np.random.default_rng(0)
    cells = [
        (i, {int(g): 1 + int(rng.geometric(0.6)) for g in np.unique(rng.integers(0, 30_000, 1500))}) for i in range(512)
    ]
    assert len(encode(cells).data) < len(build(cells).values) * 8 / 4


def test_a_parquet_file_of_others_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="not a shard of a format"):
        decode_shard((tmp_path / "a.parquet").read_bytes())


def test_every_flipped_byte_is_noticed_by_whoever_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    encoded = encode(random_cells(1, 3))
    data, record = encoded.data, encoded.record("s")
    uri = str(tmp_path / "shard.parquet")
    storage.write_bytes(uri, data)
    assert_equal(read_shard(uri, record), build(random_cells(1, 3)))
    for place in range(len(data)):
        path = tmp_path / f"flipped-{place}.parquet"  # footers are kept by name
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(DigestError, match="have changed"):
            read_shard(str(path), record)
        with pytest.raises(DigestError, match="have changed"):
            open_shard(str(path), record).read_group(0)
        path.unlink()
    for wrong in (data[:-1], data + b"\0", b""):
        path.write_bytes(wrong)
        with pytest.raises(DigestError):
            read_shard(str(path), record)
    assert "flipped-" in caplog.text


def test_a_shard_is_plain_parquet(tmp_path: Path):
    encoded = encode(random_cells(2, 300))
    metadata = pq.read_metadata(io.BytesIO(encoded.data))
    assert [metadata.schema.column(i).name for i in range(9)] == [
        "n", "cell_ids", "nnz", "glen", "nlarge", "genes", "values", "large", "bins",
    ]  # fmt: skip
    assert {metadata.row_group(0).column(i).compression for i in range(9)} == {"ZSTD"}


def test_the_example_of_the_description_is_right():
    data = encode([(7, {700: 300, 701: 2}), (8, {3: 1})]).data
    file = pq.ParquetFile(io.BytesIO(data))
    assert base64.b64decode(file.schema_arrow.metadata[b"cytoray.genes"]) == bytes.fromhex("03 FF FF BA 00")
    (row,) = file.read().to_pylist()
    assert row["genes"] == bytes.fromhex("01 00") + bytes.fromhex("00")
    assert row["values"] == bytes.fromhex("FF 02") + bytes.fromhex("01")
    assert row["large"] == bytes.fromhex("2C 01 00 00")
