"""Gene sets from files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cytoray.errors import ConfigError
from cytoray.tasks.gene_sets import read_gmt, resolve_gene_sets
from cytoray.tokens.gene_sets import load_gene_sets

TABLES = Path(__file__).parents[2].parent / "shared" / "reference" / "tables"


@pytest.mark.parametrize(("name", "pack"), [("own.gmt", bytes), ("own.gmt.gz", gzip.compress)])
def test_a_file_is_read_packed_or_not(tmp_path: Path, name: str, pack):
    (tmp_path / name).write_bytes(pack(b"A\tfirst\tCD3D\tLYZ\n"))
    sets = resolve_gene_sets(str(tmp_path / name))
    assert (sets.name, sets.members) == ("own", {"A": frozenset({"CD3D", "LYZ"})})
    assert read_gmt(str(tmp_path / name), name="other").name == "other"


def test_a_name_is_a_packaged_collection():
    assert resolve_gene_sets("hallmark") is load_gene_sets("hallmark")


TEXTLESS = {
    "a picture": b"\x89PNG\r\n\xff",
    "cut short": gzip.compress(b"A\tfirst\tCD3D\n")[:-6],
    "not gzip": b"\x1f\x8bno",
}


@pytest.mark.parametrize("data", TEXTLESS.values(), ids=TEXTLESS)  # ids without bytes: gzip writes the time
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "own.gmt").write_bytes(data)
    with pytest.raises(ConfigError, match=r"own.gmt is not a .gmt file"):
        read_gmt(str(tmp_path / "own.gmt"))


def test_a_missing_file_is_refused_with_the_packaged_names(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"kegg.gmt does not exist.*go_bp"):
        resolve_gene_sets(str(tmp_path / "kegg.gmt"))


@pytest.mark.parametrize(
    ("name", "file"),
    [("go_bp", "go_bp_human_10_500.gmt.gz"), ("go_bp_immune", "go_bp_immune_human_5_2500.gmt.gz")],
)
def test_the_packaged_sets_are_those_of_an_independent_build(name: str, file: str):
    """That build used other code; only the spelling of some symbols differs (ND1, MT-ND1)."""
    if not (TABLES / file).exists():
        pytest.skip(f"{TABLES / file} does not exist")
    ours = {full[-11:-1]: genes for full, genes in load_gene_sets(name).members.items()}
    theirs = read_gmt(str(TABLES / file)).members
    assert ours.keys() == theirs.keys()
    assert all(len(ours[term]) == len(theirs[term]) for term in ours)
    renamed = frozenset().union(*(ours[term] ^ theirs[term] for term in ours))
    assert len(renamed) < 60, sorted(renamed)
