"""Gene sets: the packaged collections, and the .gmt format."""

from __future__ import annotations

import pytest

from cytoray.errors import ConfigError
from cytoray.tokens.gene_sets import GeneSets, load_gene_sets, parse_gmt, shipped_gene_sets
from cytoray.tokens.gene_table import human_symbols

NUM_SETS = {
    "go_bp": 6482,
    "go_bp_immune": 785,
    "go_tf": 8,
    "hallmark": 50,
    "reactome": 1615,
    "wikipathways": 664,
}


@pytest.mark.parametrize("name", shipped_gene_sets())
def test_a_packaged_collection_names_human_genes(name: str):
    sets = load_gene_sets(name)
    assert sets.name == name
    assert len(sets.members) == NUM_SETS[name]
    assert len(sets.genes & human_symbols()) > 0.99 * len(sets.genes)


def test_go_contains_known_genes_in_the_promised_sizes():
    processes, immune = load_gene_sets("go_bp").members, load_gene_sets("go_bp_immune").members
    assert min(map(len, processes.values())) == 10
    assert 490 < max(map(len, processes.values())) <= 500
    assert 5 <= min(map(len, immune.values())) < 10 < 500 < max(map(len, immune.values())) <= 2_500
    assert {"IFNGR1", "IFNGR2", "IRF1", "STAT1"} <= processes["response to interferon-gamma (GO:0034341)"]
    # A gene of a term belongs to the terms above it.
    assert immune["T cell activation (GO:0042110)"] <= immune["lymphocyte activation (GO:0046649)"]


def test_transcription_factors_are_known_ones():
    factors = load_gene_sets("go_tf").members["DNA-binding transcription factor activity (GO:0003700)"]
    assert {"GATA1", "SPI1", "IRF1", "STAT2", "SMAD4", "PAX5"} <= factors
    assert not {"CD3D", "LYZ", "ACTB"} & factors


def test_an_unknown_collection_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"'kegg' is not a packaged collection.*go_bp, .*\.gmt"):
        load_gene_sets("kegg")


def test_sets_are_rewritten_in_the_names_of_a_data_set():
    """Older symbols and Ensembl ids are the same genes; genes that the data lack are left out."""
    sets = GeneSets("own", {"one": frozenset({"SEPTIN6", "CD3D", "TP53"}), "two": frozenset({"TP53", "LYZ"})})
    found = sets.for_genes(["ENSG00000167286", "SEPT6", "LYZ", "LYZ"])
    assert found == GeneSets("own", {"one": frozenset({"SEPT6", "ENSG00000167286"}), "two": frozenset({"LYZ"})})
    assert sets.for_genes(["ENSG00000167286", "SEPT6", "LYZ"], min_size=2).members.keys() == {"one"}


def test_gmt_lines_are_read():
    """Weights as in Enrichr's files, empty fields, a set without genes and Windows line ends do no harm."""
    text = "A\tfirst\tCD3D\tLYZ\t\r\nB\t\tNKG7,1.0\tLYZ \r\n\r\nempty\tnone\r\n"
    sets = parse_gmt(text, name="own")
    assert sets.members == {"A": frozenset({"CD3D", "LYZ"}), "B": frozenset({"NKG7", "LYZ"})}
    assert sets.genes == {"CD3D", "LYZ", "NKG7"}


def test_sets_of_the_same_name_get_their_descriptions_as_suffixes():
    sets = parse_gmt("Signaling\tR-1\tCD3D\nSignaling\tR-2\tLYZ\n", name="own")
    assert sets.members == {"Signaling (R-1)": frozenset({"CD3D"}), "Signaling (R-2)": frozenset({"LYZ"})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "own.gmt contains no gene set"),
        ("A\tfirst\n", "own.gmt contains no gene set"),
        ("A\tfirst\tCD3D\nCD3D,LYZ\n", "own.gmt: line 2 is not a gene set"),
        ("label,parent\nT cell,cell\n", "own.gmt: line 1 is not a gene set"),
        ("A\tfirst\tCD3D\nA\tfirst\tLYZ\n", r"own.gmt: line 2 repeats the set 'A \(first\)'"),
        ("A\tfirst\t914\t4069\n", r"contains numbers, not gene symbols.*symbols\.gmt"),
        ("gene\tcell1\tcell2\nCD3D\t1.5\t0\nLYZ\t0.5\t2\n", "contains numbers, not gene symbols"),
    ],
)
def test_another_file_is_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_gmt(text, name="own", source="own.gmt")
