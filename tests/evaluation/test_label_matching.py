from __future__ import annotations

import pytest

from cytoray.evaluation.label_matching import match_labels

ALIASES = {"CD16": "FCGR3A"}


def match(reference: list[str], query: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    return match_labels(reference, query, synonym=lambda word: ALIASES.get(word, word))


def test_names_of_real_reference_and_query_meet():
    reference = ["B", "CD14+ Mono", "CD8 T", "DC", "FCGR3A+ Mono", "Memory CD4 T", "NK", "Naive CD4 T", "Platelet"]
    query = ["B", "CD14 Mono", "CD16 Mono", "CD4 T", "CD8 T", "NK"]
    ours, theirs = match(reference, query)
    assert ours == {
        "B": "B",
        "CD14+ Mono": "CD14 Mono",
        "CD8 T": "CD8 T",
        "DC": "DC",
        "FCGR3A+ Mono": "CD16 Mono",
        "Memory CD4 T": "CD4 T",
        "NK": "NK",
        "Naive CD4 T": "CD4 T",
        "Platelet": "Platelet",
    }
    assert theirs == {label: label for label in query}


def test_a_finer_query_takes_the_names_of_the_reference():
    ours, theirs = match(["T cells", "B cells"], ["naive T", "memory T", "B", "platelets"])
    assert ours == {"T cells": "T cells", "B cells": "B"}
    assert theirs == {"naive T": "T cells", "memory T": "T cells", "B": "B", "platelets": "platelets"}


@pytest.mark.parametrize(
    ("label", "other"),
    [("CD14+ monocytes", "CD14 Mono"), ("b CELL", "B"), ("NK_cell", "NK"), ("CD8+ T (effector)", "Effector CD8 T")],
)
def test_spellings_of_one_label(label, other):
    assert match([label], [other])[0] == {label: other}


def test_unlike_labels_keep_their_names():
    assert match(["alpha"], ["beta", "cells"]) == ({"alpha": "alpha"}, {"beta": "beta", "cells": "cells"})
