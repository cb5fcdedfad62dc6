"""What stands below a prefix, what a file is taken for, and what is refused before a cell is read."""

from __future__ import annotations

from pathlib import Path

import h5py
import moto.core
import moto.s3.models
import numpy as np
import pytest

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.finding import expand_sources
from cytoray.errors import CorpusError, StorageError

TREE = (
    "b/2.h5ad", "b/1.h5mu", "b/deep/0.h5ad", "b/notes.txt", "b/deep/er/run.h5", "b/a.loom", "b/t.parquet", "b/t.arrow",
    "b/plain.zarr/.zgroup", "b/plain.zarr/X/zarr.json", "b/nameless/zarr.json", "b/nameless/obs/zarr.json",
    "b/x.scb/manifest.json", "b/x.scb/counts.datatable.parquet", "b/linked/gene_vocab.json", "b/linked/X.parquet",
    "b/run1/matrix.mtx.gz", "b/run1/features.tsv.gz", "b/run1/barcodes.tsv.gz", "b/GSM1_matrix.mtx", "b/GSM1_genes.tsv",
    "b/GSM1_barcodes.tsv",     "b/zarr.json.h5ad", "c/3.h5ad", "b-other/4.h5ad", "b.h5ad",
)  # fmt: skip
FOUND = [
    "1.h5mu", "2.h5ad", "GSM1_matrix.mtx", "a.loom", "deep/0.h5ad", "deep/er/run.h5", "linked", "nameless",
    "plain.zarr", "run1", "t.arrow", "t.parquet", "x.scb", "zarr.json.h5ad",
]  # fmt: skip


def make_tree(root: str) -> None:
    for name in TREE:
        storage.write_bytes(f"{root}/{name}", b"")


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_prefix_stands_for_the_sources_below_it(place: str, tmp_path, s3_uri):
    root = str(tmp_path) if place == "disk" else s3_uri
    make_tree(root)
    found = expand_sources([SourceConfig(uri=f"{root}/b/", gene_column="g"), SourceConfig(uri=f"{root}/c/3.h5ad")])
    assert [one.uri for one in found] == [*(f"{root}/b/{name}" for name in FOUND), f"{root}/c/3.h5ad"]
    assert [one.identity for one in found] == [*FOUND, "3.h5ad"]
    assert [one.gene_column for one in found] == [*["g"] * len(FOUND), None]
    named = expand_sources([SourceConfig(uri=f"{root}/b/", name="study-")])
    assert [one.identity for one in named] == [f"study-{name}" for name in FOUND]
    with pytest.raises(CorpusError, match="no file of cells below") as caught:
        expand_sources([SourceConfig(uri=f"{root}/empty/")])
    assert ".h5ad" in caught.value.remedy


@pytest.mark.parametrize("folder", ["plain.zarr", "nameless", "linked", "run1"])
def test_a_folder_that_is_a_source_may_end_with_a_slash(folder: str, tmp_path):
    make_tree(str(tmp_path))
    (one,) = expand_sources([SourceConfig(uri=f"{tmp_path}/b/{folder}/")])
    assert (one.uri, one.identity) == (f"{tmp_path}/b/{folder}", folder)


def test_a_wrong_format_is_refused(write_format, plant, build_adata, open_reader, tmp_path):
    adata = build_adata(plant(0))
    for name, wrong in (("h5ad", "zarr"), ("zarr-2", "scb"), ("triples-parquet", "h5ad"), ("10x_mtx-2", "zarr")):
        path = write_format(name, adata, tmp_path / name)
        with pytest.raises(CorpusError, match=f"this is .*, not {wrong}|no {wrong}|cannot be read") as caught:
            open_reader(path, format=wrong)
        assert str(path) in str(caught.value)


def test_equal_identities_are_refused(tmp_path):
    make_tree(str(tmp_path))
    twice = [SourceConfig(uri=f"{tmp_path}/b/2.h5ad"), SourceConfig(uri=f"{tmp_path}/b/")]
    with pytest.raises(CorpusError, match=r"2 sources are called '2\.h5ad'"):
        expand_sources(twice)
    assert expand_sources([twice[0].model_copy(update={"name": "other"}), twice[1]])


def test_a_listing_of_more_than_a_thousand_keys_is_whole(s3_uri):
    bucket, _, key = s3_uri.removeprefix("s3://").partition("/")
    store = moto.s3.models.s3_backends[moto.core.DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1_105):  # not through the server, which takes 20 ms each
        store.put_object(bucket, f"{key}/many/{number:05d}.h5ad", b"x")
    found = expand_sources([SourceConfig(uri=f"{s3_uri}/many/")])
    assert [one.identity for one in found] == [f"{number:05d}.h5ad" for number in range(1_105)]


def test_an_absent_object_bucket_or_folder_is_named(s3_uri, tmp_path, open_reader):
    for uri in (f"{s3_uri}/absent.h5ad", f"{s3_uri}/absent.zarr", "s3://no-such-bucket/a.h5ad", tmp_path / "a.zarr"):
        with pytest.raises(StorageError, match="no such object") as caught:
            open_reader(uri)
        assert str(uri) in str(caught.value)
        assert caught.value.remedy


def test_a_folder_of_something_else_is_refused(tmp_path, open_reader):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.h5ad").touch()
    with pytest.raises(CorpusError, match="a folder that is not a source of cells") as caught:
        open_reader(tmp_path / "folder")
    assert "End it with '/'" in caught.value.remedy


def test_the_content_tells_the_format_whatever_the_name(write_format, plant, build_adata, open_reader, tmp_path):
    adata = build_adata(plant(0))
    for name in ("loom", "10x_h5-2", "10x_h5-3", "h5mu", "h5ad", "triples-parquet"):
        path = write_format(name, adata, tmp_path / name)
        with open_reader(path.rename(path.with_name("file.dat"))) as reader:
            assert reader.describe().format == name.partition("-")[0]


# --- what leads out of a file


def break_with(kind: str, path: Path, other: Path) -> None:
    with h5py.File(path, "a") as file:
        data = file["X/data"][()]
        if kind == "external link":
            del file["X/data"]
            file["X/data"] = h5py.ExternalLink(str(other), "/X/data")
        elif kind == "soft link to an external link":
            file["elsewhere"] = h5py.ExternalLink(str(other), "/X")
            del file["X"]
            file["X"] = h5py.SoftLink("/elsewhere")
        elif kind == "external group":
            del file["obs"]
            file["obs"] = h5py.ExternalLink(str(other), "/obs")
        elif kind == "virtual dataset":
            del file["X/data"]
            layout = h5py.VirtualLayout(data.shape, data.dtype)
            layout[:] = h5py.VirtualSource(str(other), "X/data", data.shape)
            file["X"].create_virtual_dataset("data", layout)
        else:
            del file["X/data"]
            raw = other.with_suffix(".bin")
            raw.write_bytes(data.tobytes())
            file["X"].create_dataset("data", data.shape, data.dtype, external=[(str(raw), 0, data.nbytes)])


@pytest.mark.parametrize(
    "kind",
    ["external link", "soft link to an external link", "external group", "virtual dataset", "external data"],
)
def test_files_that_lead_out_of_themselves_are_refused(
    kind: str, plant, build_adata, save, open_reader, upload, s3_uri, tmp_path
):
    path, other = (Path(save(build_adata(plant(0)), tmp_path / name)) for name in ("a.h5ad", "other.h5ad"))
    break_with(kind, path, other)
    for uri in (path, upload(path, s3_uri)):
        with pytest.raises(
            CorpusError, match=r"in another file|cannot be followed|to another file|virtual dataset|external file"
        ) as caught:
            open_reader(uri)
        assert str(uri) in caught.value.problem
        assert caught.value.details["key"].startswith(("X", "obs"))
        assert "\n" not in str(caught.value)


def test_a_zarr_key_that_leads_out_is_refused(write_format, plant, build_adata, open_reader, s3_uri, upload, tmp_path):
    import boto3

    uri = upload(write_format("zarr-2", build_adata(plant(0)), tmp_path), s3_uri)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{key}/X/../../secret", Body=b"x")
    with pytest.raises(CorpusError, match="leads out of the folder") as caught:
        open_reader(uri)
    assert caught.value.remedy


def test_a_zarr_table_that_names_a_column_outside_is_refused(write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format("zarr-2", build_adata(plant(0)), tmp_path)
    attributes = path / "obs" / ".zattrs"
    text = attributes.read_text().replace('"cell_type"', '"../../cell_type"')
    assert ".." in text
    attributes.write_text(text)
    (path / ".zmetadata").unlink(missing_ok=True)
    with open_reader(path) as reader, pytest.raises(CorpusError, match="obs cannot be read"):
        reader.describe()


def test_damaged_zarr_is_refused_in_words(write_format, plant, build_adata, open_reader, tmp_path):
    for name in ("zarr-2", "zarr-3", "zarr-3-sharded"):
        for part in ("data", "indices", "indptr"):
            path = write_format(name, build_adata(plant(0)), tmp_path / name / part)
            chunks = [file for file in (path / "X" / part).rglob("*") if file.is_file() and file.suffix != ".json"]
            chunk = max(
                (file for file in chunks if not file.name.startswith(".z")), key=lambda file: file.stat().st_size
            )
            chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
            with open_reader(path) as reader, pytest.raises(CorpusError, match="X, rows") as caught:
                reader.describe()
            assert "\n" not in str(caught.value)


def test_a_zarr_that_lost_a_chunk_is_refused(write_format, plant, build_adata, open_reader, tmp_path):
    """zarr takes an absent chunk for one of zeros, and would lose the counts without a word."""
    for name in ("zarr-2", "zarr-3", "zarr-3-sharded"):
        for part in ("data", "indices"):
            path = write_format(name, build_adata(plant(0)), tmp_path / name / part)
            chunks = [file for file in (path / "X" / part).rglob("*") if file.is_file() and "z" not in file.name]
            chunks[-1].unlink()
            with open_reader(path) as reader, pytest.raises(CorpusError, match=f"chunks of its {part} are missing"):
                reader.describe()


# --- folders of mtx and scb, loom, and tables that are not as they should be


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "a cell index|header announces|cannot be read"),
        (lambda text: text.replace(b"%%MatrixMarket", b"%MatrixMarket"), "does not begin with %%MatrixMarket"),
        (lambda text: text.replace(b"integer general", b"complex general"), "kind complex general"),
        (lambda text: text + b"301 1 1\n", "a feature index is 300, but there are 300"),
        (lambda text: text + b"1 301 1\n", "a cell index is 300, but there are 300"),
        (lambda text: text + b"1 1 1\n", "its header announces .* entries, but there are"),
        (lambda text: text + b"1 1 x\n", "cannot be read"),
        (lambda text: text.replace(b"300 300 ", b"299 300 "), "matrix is 299 by 300, but genes.tsv has 300 lines"),
        (lambda text: b"", "does not begin with"),
    ],
)
def test_mtx_of_another_build(change, words: str, write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format("10x_mtx-2", build_adata(plant(0)), tmp_path)
    matrix = path / "matrix.mtx"
    matrix.write_bytes(change(matrix.read_bytes()))
    with pytest.raises(CorpusError, match=words) as caught, open_reader(path) as reader:
        reader.read_rows(0, 300)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mtx_without_its_companions(write_format, plant, build_adata, open_reader, tmp_path):
    for missing in ("barcodes.tsv.gz", "features.tsv.gz"):
        path = write_format("10x_mtx-3", build_adata(plant(0)), tmp_path / missing)
        (path / missing).unlink()
        with pytest.raises(CorpusError, match=f"{missing[:-3]}.* is missing beside matrix"):
            open_reader(path)


def test_a_truncated_gzip_of_mtx(write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format("10x_mtx-3", build_adata(plant(0)), tmp_path)
    whole = (path / "matrix.mtx.gz").read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 4):
        (path / "matrix.mtx.gz").write_bytes(whole[:length])
        with pytest.raises(CorpusError, match="cannot be read") as caught, open_reader(path) as reader:
            reader.read_rows(0, 10)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"cell": ["a"], "count": [1]}, "no column looks like that of the gene; columns there: cell, count"),
        ({"cell": ["a", None], "gene": ["g", "g"], "count": [1, 1]}, "a cell or a gene is missing"),
        ({"cell": ["a"], "gene": ["g"], "count": [None]}, "a count is missing|not numbers"),
        ({"cell": ["a"], "gene": ["g"], "count": ["many"]}, "not numbers"),
    ],
)
def test_tables_that_are_no_triples(columns: dict, words: str, open_reader, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match=words), open_reader(tmp_path / "t.parquet") as reader:
        reader.describe()


def test_folders_of_scb_that_lack_a_part(write_format, plant, build_adata, open_reader, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def with_lists(genes: list[list[int]], path: Path) -> None:
        columns = {"id": [0], "genes": pa.array(genes), "expressions": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))}
        pq.write_table(pa.table(columns), path / "counts.datatable.parquet")

    changes = {
        "table counts.datatable.parquet is missing": lambda path: (path / "counts.datatable.parquet").unlink(),
        "not a table of tokens and ids": lambda path: (path / "gene_vocab.json").write_text("[1]"),
        "its tables are JSON": lambda path: (path / "manifest.json").write_text('{"on_disk_format": "json"}'),
        "no token of id 999": lambda path: with_lists([[3, 999]], path),
        "another number of genes": lambda path: with_lists([[3]], path),
    }
    for number, (words, change) in enumerate(changes.items()):
        path = write_format("scb", build_adata(plant(0)), tmp_path / str(number))
        change(path)
        with pytest.raises(CorpusError, match=words), open_reader(path) as reader:
            reader.describe()


def test_ten_x_and_loom_whose_parts_disagree(write_format, plant, build_adata, open_reader, tmp_path):
    changes = {
        "10x_h5-3": ("matrix/barcodes", "300 cells by 300 features, but there are 10 barcodes"),
        "10x_h5-2": ("GRCh38/gene_names", "must be of the same length|but there are"),
        "loom": ("col_attrs/CellID", "CellID has 10 values, but there are 300"),
    }
    for name, (key, words) in changes.items():
        path = write_format(name, build_adata(plant(0)), tmp_path / name)
        with h5py.File(path, "a") as file:
            kept = file[key][:10]
            del file[key]
            file[key] = kept
        with pytest.raises(CorpusError, match=words), open_reader(path) as reader:
            reader.describe()
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["matrix"] = np.zeros(3)
    with (
        pytest.raises(CorpusError, match=r"no expression matrix|cannot be read"),
        open_reader(tmp_path / "empty.h5") as reader,
    ):
        reader.describe()
