from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="module")
def vocabulary() -> GeneVocabulary:
    return GeneVocabulary(["LYZ", "CD3D", "MARCHF1", "TP53", "GENE"])


def tokens_of(vocabulary: GeneVocabulary, mapping: GeneMapping) -> list[str | None]:
    return [vocabulary.tokens[token] if token >= 0 else None for token in mapping.ids]


@pytest.mark.parametrize(
    ("name", "token", "how"),
    [
        ("CD3D", "CD3D", "symbol"),
        ("ENSG00000167286", "CD3D", "ensembl"),
        ("ENSG00000167286.12", "CD3D", "ensembl"),
        ("ENSG00000182378.15_PAR_Y", "PLCXD1", "ensembl"),
        ("ENSG00000239945", "RP11-34P13.8", "ensembl"),  # newer releases give it no symbol
        ("MARCH1", "MARCHF1", "previous"),
        ("SEPT6", "SEPTIN6", "previous"),
        ("H2AFZ", "H2AZ1", "previous"),
        ("CIMAP1A", "ODF3", "previous"),  # a newer symbol than the vocabulary's
        ("GBA1", "GBA", "previous"),
        ("p53", "TP53", "alias"),
        ("PD-L1", "CD274", "alias"),
        ("TNFSF2", "TNF", "alias"),
        ("MATR3", "MATR3_ENSG00000015479", "symbol"),  # shared by two genes; HGNC gives it to this one
        ("ENSG00000280987", "MATR3_ENSG00000280987", "ensembl"),
        ("Y_RNA", None, "unknown"),  # hundreds of genes
        ("STRA13", None, "unknown"),  # previous symbol of two genes
        ("Cd3d", None, "unknown"),
        ("cd3d", None, "unknown"),
        ("ENSMUSG00000032094", None, "unknown"),
        ("<pad>", None, "unknown"),
        ("<cls>", None, "unknown"),
        ("", None, "unknown"),
        ("no such gene", None, "unknown"),
    ],
)
def test_a_name_finds_its_gene(census, name: str, token: str | None, how: str):
    mapping = census.map_genes([name])
    assert tokens_of(census, mapping) == [token]
    assert mapping.how == dict.fromkeys(("symbol", "ensembl", "previous", "alias", "unknown"), 0) | {how: 1}
    assert mapping.unknown == ((name,) if token is None else ())


def test_every_gene_token_maps_to_itself(census):
    names = census.tokens[:60_694]
    mapping = census.map_genes(names)
    assert np.array_equal(mapping.ids, np.arange(60_694))
    assert (mapping.ids.dtype, mapping.how["unknown"], mapping.duplicates) == (np.int32, 0, {})


def test_an_ensembl_column_helps_only_where_the_symbol_fails(census):
    names = ["CD3D", "AL627309.1", "MARCH1", "mystery", "mystery"]
    ids = ["ENSG00000167286", "ENSG00000238009.6", "", "ENSG00000090382", "nonsense"]
    mapping = census.map_genes(names, ensembl_ids=ids)
    assert tokens_of(census, mapping) == ["CD3D", "RP11-34P13.7", "MARCHF1", "LYZ", None]
    assert (mapping.how["symbol"], mapping.how["ensembl"], mapping.how["previous"]) == (1, 2, 1)
    assert tokens_of(census, census.map_genes(["LYZ"], ensembl_ids=["ENSG00000167286"])) == ["LYZ"]


def test_an_ensembl_id_of_a_gene_outside_the_vocabulary_stops_the_search():
    vocabulary = GeneVocabulary(["TP53"])
    assert vocabulary.map_genes(["p53"]).ids.tolist() == [0]
    assert vocabulary.map_genes(["p53"], ensembl_ids=["ENSG00000167286"]).ids.tolist() == [-1]  # it is CD3D


def test_mouse_genes_are_not_taken_for_human_and_the_guess_says_so(census):
    names = ["Cd3d", "Rpl3-ps1", "mt-Nd1", "0610007P14Rik", "Gm1992", "Pgp1", "H2-K1", "Xkr4"]
    mapping = census.map_genes(names)
    assert np.all(mapping.ids == -1)  # Pgp1 is an alias of human CD44
    assert (mapping.species, mapping.id_type) == ("mouse", "symbol")
    assert census.map_genes([f"ENSMUSG{number:011d}" for number in range(9)]).species == "mouse"


@pytest.mark.parametrize(
    ("names", "id_type", "species"),
    [
        (["CD3D", "LYZ", "C1orf112", "RP11-34P13.7"], "symbol", "human"),
        (["ENSG00000167286.12", "ENSG00000090382"], "ensembl", "human"),
        (["ENSG00000167286", "LYZ"], "mixed", "human"),
        (["ENSDARG00000000001", "ENSDARG00000000002"], "ensembl", "zebrafish"),
        (["FBgn0000003", "FBgn0000008"], "ensembl", "fruit fly"),
        (["ENSG00000167286", "ENSMUSG00000032094"], "ensembl", "unknown"),  # too few to tell
        (["ENSG00000167286", *(f"ENSMUSG{n:011d}" for n in range(3))], "ensembl", "human and mouse"),
        (["CD3D", "LYZ", "IL7R", "Cd3d", "Lyz2", "Il7r", "Cd3e", "Nkg7"], "symbol", "human and mouse"),
        (["CD3D", "LYZ", "IL7R", "CD3E", "GZMB", "Hashtag1", "Hashtag2", "Hashtag3", "Cas9"], "symbol", "human"),
        (["Cd3d", "Lyz2", "Il7r", "Nkg7", "H19", *(f"Gm{n}" for n in range(60))], "symbol", "mouse"),
        (["7157", "3091", "920"], "unknown", "unknown"),
        (["gene_1", "gene_2"], "symbol", "unknown"),
        ([], "unknown", "unknown"),
    ],
)
def test_guesses_of_id_type_and_species(census, names: list[str], id_type: str, species: str):
    mapping = census.map_genes(names)
    assert (mapping.id_type, mapping.species) == (id_type, species)


def test_names_of_one_gene_are_reported_as_duplicates(census):
    mapping = census.map_genes(["MARCH1", "CD3D", "MARCHF1", "ENSG00000167286", "LYZ"])
    assert mapping.duplicates == {"CD3D": ["CD3D", "ENSG00000167286"]}
    assert mapping.summed == {"CD3D": [1, 3]}
    assert mapping.older == {"MARCHF1": [0]}  # left out: the file has MARCHF1 itself
    assert mapping.unknown == ()
    both = census.map_genes(["MARCH1", "CD3D", "MARCHF1"], sum_older=True)
    assert both.duplicates == {"MARCHF1": ["MARCH1", "MARCHF1"]}


@pytest.mark.parametrize(
    ("names", "ids", "tokens"),
    [
        (["UBXN10-AS1", "PLA2G2C"], None, [None, "PLA2G2C"]),  # HGNC's previous symbol
        (["UBXN10-AS1", "PLA2G2C"], ["ENSG00000187980"] * 2, [None, "PLA2G2C"]),  # and the id that goes with it
        (["UBXN10-AS1"], None, ["PLA2G2C"]),  # renamed: the only column of the gene
        (["HNRNPU", "HNRNPU-AS1"], None, ["HNRNPU", None]),
        (["HNRNPU-AS1"], None, [None]),  # its name says that it lies beside HNRNPU
        (["WISP1-OT1"], None, [None]),  # WISP1 is an older name of CCN4
        (["SNURF-SNRPN"], None, [None]),  # a read-through
        (["HNRPU", "SAF-A"], None, ["HNRNPU", None]),  # previous symbol before alias
        (["CD3D", "CD3D-1", "CD3D"], ["ENSG00000167286"] * 3, ["CD3D", "CD3D", "CD3D"]),  # one gene, made unique
        (["TP53", "p53", "ENSG00000141510"], None, ["TP53", None, "TP53"]),
        (["GRCh38_CD3D", "mm10___Cd3d", "GRCh38_LYZ", "mm10_CD3E"], None, ["CD3D", None, "LYZ", None]),
        (["HUMAN-ENSG00000167286.3", "MOUSE-ENSMUSG00000032094", "MOUSE-CD3E"], None, ["CD3D", None, None]),
        (["hg19_CD3D", "hg19_LYZ"], ["hg19_ENSG00000167286", ""], ["CD3D", "LYZ"]),
    ],
)  # fmt: skip
def test_a_column_counts_for_the_gene_that_it_measures(census, names, ids, tokens):
    assert tokens_of(census, census.map_genes(names, ensembl_ids=ids)) == tokens


def test_a_column_of_genomes_separates_the_species(census):
    names, genomes = ["CD3D", "LYZ", "CD3D", "IL7R", "F5"], ["GRCh38", "GRCh38", "mm10", "mm10", "mm10"]
    mapping = census.map_genes(names, genomes=genomes)
    assert tokens_of(census, mapping) == ["CD3D", "LYZ", None, None, None]
    assert (mapping.species, mapping.origin.tolist()) == ("human and mouse", [1, 1, -1, -1, -1])
    assert mapping.unknown == ()


def test_the_species_of_a_mouse_vocabulary_is_not_left_out():
    vocabulary = GeneVocabulary(["Cd3d", "Lyz2", "Il7r", "Nkg7", "Cd3e"])
    names = ["CD3D", "LYZ", "IL7R", "CD3E", "Cd3d", "Lyz2", "Il7r", "Cd3e"]
    assert tokens_of(vocabulary, vocabulary.map_genes(names))[4:] == names[4:]


def test_mouse_aliases_in_a_mixture_are_not_taken_for_human(census):
    names = ["CD44", "LYZ", "CD3D", "Pgp1", "Cd3d", "Lyz2", "Cd3e", "H2-K1", "PGP1"]
    assert tokens_of(census, census.map_genes(names))[:3] == ["CD44", "LYZ", "CD3D"]
    assert (census.map_genes(names).ids[3:] == -1).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_cells=st.integers(0, 8))
def test_apply_sums_duplicates_like_a_matrix_product(vocabulary, seed: int, num_cells: int):
    rng = np.random.default_rng(seed)
    known = ["CD3D", "ENSG00000167286", "ENSG00000167286.3", "MARCH1", "MARCHF1", "TP53", "p53", "LYZ", "GENE", "what"]
    names = [str(name) for name in rng.choice(known, rng.integers(1, 25))]
    counts = sparse.random(num_cells, len(names), 0.6, "csr", rng=rng, data_rvs=lambda n: rng.integers(0, 4, n) * 1.0)
    mapping = vocabulary.map_genes(names)

    found = np.flatnonzero(mapping.ids >= 0)
    shape = (len(names), vocabulary.size)
    projection = sparse.csr_matrix((np.ones(len(found)), (found, mapping.ids[found])), shape)
    expected = (counts @ projection).toarray()

    cell_ids = np.arange(num_cells, dtype=np.uint64)
    cells = mapping.apply(counts.data, counts.indices, counts.indptr, cell_ids)
    ours = sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), (num_cells, vocabulary.size))
    np.testing.assert_array_equal(ours.toarray(), expected)
    assert np.all(cells.values > 0)
    assert (cells.gene_ids.dtype, cells.values.dtype, cells.indptr.dtype) == (np.int32, np.float32, np.int64)
    for start, stop in zip(cells.indptr[:-1], cells.indptr[1:], strict=True):
        assert np.all(np.diff(cells.gene_ids[start:stop]) > 0)


def test_large_counts_are_summed_exactly(census):
    mapping = census.map_genes(["CD3D", "ENSG00000167286", "ENSG00000167286.1"])
    values = np.array([1, 2**24, 1], np.float32)  # a sum in float32 would stay at 2**24
    cells = mapping.apply(values, np.arange(3), np.array([0, 3]), np.zeros(1, np.uint64))
    assert cells.values.tolist() == [2**24 + 2]


def read_reference(name: str) -> list[dict[str, str]]:
    path = SHARED / "reference" / "tables" / name
    if not path.exists():
        pytest.skip(f"{path} is absent: the packaged gene table is not compared with an independent one")
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_ids_and_symbols_agree_with_an_independent_table(census):
    genes = [gene for gene in read_reference("human_genes_gencode48.tsv.gz") if gene["symbol"] in census]
    names = [f"{gene['ensembl_id']}.{gene['version']}" for gene in genes]
    tokens = tokens_of(census, census.map_genes(names))
    agree = [token in (gene["symbol"], gene["ensembl_id"]) for token, gene in zip(tokens, genes, strict=True)]
    assert None not in tokens
    assert np.mean(agree) > 0.998  # the rest changed their symbols between releases


def test_previous_and_alias_symbols_agree_with_an_independent_table(census):
    genes = [gene for gene in read_reference("human_genes_gencode48.tsv.gz") if gene["hgnc_symbol"] in census]
    for column, floor in (("prev_symbols", 0.95), ("alias_symbols", 0.9)):
        pairs = [(name, gene["hgnc_symbol"]) for gene in genes for name in gene[column].split("|") if name]
        pairs = [(name, symbol) for name, symbol in pairs if name not in census]
        tokens = tokens_of(census, census.map_genes([name for name, _ in pairs]))
        right = np.mean([token == symbol for token, (_, symbol) in zip(tokens, pairs, strict=True)])
        wrong = np.mean([token not in (None, symbol) for token, (_, symbol) in zip(tokens, pairs, strict=True)])
        assert right > floor
        assert wrong < 0.01


def test_mouse_table_is_recognised_as_mouse(census):
    symbols = [gene["symbol"] for gene in read_reference("mouse_genes_gencodeM37.tsv.gz")]
    mapping = census.map_genes(symbols)
    assert mapping.species == "mouse"
    assert mapping.how["unknown"] > 0.999 * len(symbols)
