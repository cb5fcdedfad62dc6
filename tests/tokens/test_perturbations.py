"""Names of perturbations: one gene, several, in any spelling of files of cells, or something that is not a gene."""

from __future__ import annotations

import pytest

from cytoray.tokens.perturbations import is_unassigned, parse_perturbation
from cytoray.tokens.vocabulary import GeneVocabulary

DEFAULT = GeneVocabulary.load_default()


@pytest.mark.parametrize(
    ("name", "genes", "others"),
    [
        ("STAT1", ("STAT1",), ()),
        ("STAT1+IRF1", ("STAT1", "IRF1"), ()),
        ("IRF1 + STAT1", ("IRF1", "STAT1"), ()),
        ("STAT1,IRF1;BRD4", ("STAT1", "IRF1", "BRD4"), ()),
        ("STAT1+ctrl", ("STAT1",), ()),
        ("control+STAT1", ("STAT1",), ()),
        ("STAT1+STAT1", ("STAT1",), ()),
        ("ENSG00000115415", ("STAT1",), ()),
        ("IFNB", ("IFNB1",), ()),
        ("dexamethasone", (), ("dexamethasone",)),
        ("STAT1+dexamethasone", ("STAT1",), ("dexamethasone",)),
        ("control", (), ()),
    ],
)
def test_names_become_genes_and_others(name: str, genes: tuple[str, ...], others: tuple[str, ...]) -> None:
    found = parse_perturbation(name, vocabulary=DEFAULT, control="control")
    assert (found.genes, found.others) == (genes, others)


@pytest.mark.parametrize(
    ("name", "genes", "others"),
    [
        ("MRPL9_TSS", ("MRPL9",), ()),
        ("HLA-A-promoter", ("HLA-A",), ()),
        ("ENSG00000115415_TSS", ("STAT1",), ()),
        ("STAT1_TSS+IRF1", ("STAT1", "IRF1"), ()),
        ("IRF1_STAT1", ("IRF1", "STAT1"), ()),
        ("STAT1_C3orf72", ("STAT1", "FOXL2NB"), ()),
        ("STAT1_KO", ("STAT1",), ()),
        ("STAT1_P1", ("STAT1",), ()),
        ("STAT1_LPS", (), ("STAT1_LPS",)),
        ("NKX2-1", ("NKX2-1",), ()),
        ("FOXP4-AS9", (), ("FOXP4-AS9",)),
        ("IFN-beta", (), ("IFN-beta",)),
        ("chr3.5275_top_two", (), ("chr3.5275_top_two",)),
        ("nonsense_TSS", (), ("nonsense_TSS",)),
    ],
)
def test_an_unknown_name_may_be_a_gene_with_a_suffix(
    name: str, genes: tuple[str, ...], others: tuple[str, ...]
) -> None:
    found = parse_perturbation(name, vocabulary=DEFAULT, control="control")
    assert (found.genes, found.others) == (genes, others)
    cut = name.endswith(("TSS", "promoter", "TSS+IRF1", "KO", "P1")) and genes
    assert bool(found.suffixed) == bool(cut), "only what was cut is listed"


def test_a_gene_with_a_separator_in_its_name_is_not_cut() -> None:
    own = GeneVocabulary(["<pad>", "<cls>", "<eoc>", "HLA,A", "HLA"])
    assert parse_perturbation("HLA,A", vocabulary=own, control="control").genes == ("HLA,A",)


def test_names_measured_in_a_file_count_as_genes() -> None:
    found = parse_perturbation("dCas9+STAT1", vocabulary=DEFAULT, control="c", measured={"dCas9"})
    assert found.genes == ("dCas9", "STAT1")


def test_values_without_a_perturbation() -> None:
    assert [is_unassigned(name) for name in ("unassigned", "", None, " NaN ", "STAT1", "control")] == [True] * 4 + [
        False
    ] * 2
