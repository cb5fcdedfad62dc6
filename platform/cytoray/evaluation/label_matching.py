"""Match the labels of two data sets that spell or divide cell types differently, word by word.

``FCGR3A+ Mono`` and ``CD16 Mono`` are the same words if the aliases of genes are known; ``Memory CD4 T`` has all words
of ``CD4 T``, so it is a kind of it. Whoever knows better gives a table instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

_WORD = re.compile(r"[^\s,;/()_]+")
_MARKERS = {"cd16": "fcgr3a"}  # names of proteins that two genes share
_PLURALS = {"cells": "", "cell": "", "monocyte": "mono", "monocytes": "mono"}
Synonym = Callable[[str], str]


def match_labels(
    reference: Collection[str], query: Collection[str], *, synonym: Synonym = str
) -> tuple[dict[str, str], dict[str, str]]:
    """Return common names for the labels of a reference and of a query, each by the label's own name.

    Equal labels come first, then labels of equal words, then a label is named after the other side's label that has
    the most of its words and no other word. Labels that match nothing keep their names. ``synonym`` gives the name of
    a word under which its aliases are the same, such as a gene's symbol.
    """
    named_reference, named_query = {label: label for label in reference}, {label: label for label in query}
    words = {label: _words(label, synonym) for label in {*reference, *query}}
    for label in reference:
        if label not in named_query and (found := _broader(words[label], query, words)):
            named_reference[label] = found
    for label in query:
        taken = label in named_reference or label in named_reference.values()
        if not taken and (found := _broader(words[label], reference, words)):
            named_query[label] = named_reference[found]
    return named_reference, named_query


def _words(label: str, synonym: Synonym) -> frozenset[str]:
    """The words of a label that tell it apart: without case, a plus sign, plurals and the word cell."""
    found = (word.rstrip("+").strip("-") for word in _WORD.findall(label))
    plain = (_PLURALS.get(word.lower(), word) for word in found)
    named = (synonym(word).lower() for word in plain if word)
    return frozenset(_MARKERS.get(word, word) for word in named)


def _broader(words: frozenset[str], others: Collection[str], known: Mapping[str, frozenset[str]]) -> str | None:
    """The label of the others with the most words, all of them among ``words``; of equals the first by name."""
    fitting = [other for other in sorted(others) if known[other] and known[other] <= words]
    return max(fitting, key=lambda other: len(known[other]), default=None)
