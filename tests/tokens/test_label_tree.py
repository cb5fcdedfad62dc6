"""Trees of cell-type labels."""

from __future__ import annotations

import pytest

from cytoray.errors import ConfigError
from cytoray.tokens.label_tree import LabelTree

ROWS = ("CD4 T cell,T cell,x", "CD8 T cell,T cell,", "T cell,lymphocyte,", "B cell,lymphocyte,", "lymphocyte,,root")
TABLE = "\n".join(("label,parent,note", *ROWS))


def test_a_table_says_which_labels_lie_below_others() -> None:
    """Names in between need not be labels, and labels need not be in the table."""
    tree = LabelTree.parse(TABLE, source="tree.csv")
    assert tree.path("CD4 T cell") == ["CD4 T cell", "T cell", "lymphocyte"]
    below = tree.below(["lymphocyte", "CD4 T cell", "B cell", "Mono"])
    assert below.tolist() == [
        [True, True, True, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_tabs_do_as_well() -> None:
    assert LabelTree.parse("label\tparent\nA, fine\tB\n", source="tree.tsv").parents == {"A, fine": "B"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table with the columns label and parent"),
        ("cell,above\nA,B\n", "not a table with the columns label and parent"),
        ("label,parent\nA,B\nA,C\n", "'A' has two parents, 'B' and 'C'"),
        ("label,parent\nA,B\nB,C\nC,A\n", "cycle: A > B > C > A"),
        ("label,parent\nA,A\n", "cycle: A > A"),
    ],
)
def test_what_is_not_a_tree_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelTree.parse(text, source="tree.csv")


@pytest.mark.parametrize(
    ("labels", "ancestor"),
    [
        (["CD4 T cell", "CD8 T cell"], "T cell"),
        (["CD4 T cell", "B cell", "CD8 T cell"], "lymphocyte"),
        (["CD4 T cell", "T cell"], "T cell"),
        (["CD4 T cell"], "CD4 T cell"),
        (["CD4 T cell", "Mono"], None),
        ([], None),
    ],
)
def test_the_lowest_name_above_all_of_several_labels(labels: list[str], ancestor: str | None) -> None:
    assert LabelTree.parse(TABLE, source="tree.csv").common_ancestor(labels) == ancestor
