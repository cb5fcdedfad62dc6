"""Convert labels to text: a cluster is ``0`` whether a file stores it as an integer, as 0.0 or as a category."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Common placeholders for a missing label, in lower case.
_PLACEHOLDERS = frozenset(
    ("", "-", "--", ".", "?", "na", "n/a", "n.a.", "<na>", "nan", "none", "null", "nil", "missing", "unknown",
     "unassigned", "not assigned", "unspecified", "not specified", "unlabelled", "unlabeled", "unannotated",
     "not annotated", "undefined", "undetermined", "not determined", "not available", "not applicable", "not provided",
     "not reported", "unclassified", "tbd", "nd", "n.d.")
)  # fmt: skip
_MISSING = ("<NA>", "NaT", "NaN")  # str() of pandas' missing values and of a missing Decimal


def label_text(value: object) -> str | None:
    """Convert one obs value to text; None if it is missing.

    Text is not changed, bytes are decoded, booleans are ``True`` and ``False``, and a whole number has no decimal
    point, whatever its type. Other floats get the shortest text that is exact, so that a column has the same
    texts after a conversion from 32 to 64 bits.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _float_text(float(value))
    return None if value is None or str(value) in _MISSING else str(value)


def label_texts(values: Any) -> list[str | None]:
    """Convert many obs values to text: a list, an array or a pandas column; each category is converted once."""
    if hasattr(values, "cat"):
        texts = [*map(label_text, values.cat.categories), None]
        return [texts[code] for code in values.cat.codes.tolist()]
    return [label_text(value) for value in values]


def is_placeholder(name: str) -> bool:
    """Return whether a label looks like a missing value written as text."""
    return name.strip().lower() in _PLACEHOLDERS


def missing_spellings(names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that look like a missing value written as text, sorted."""
    return sorted({name for name in names if is_placeholder(name)})


def missing_spellings_warning(names: Iterable[str], *, where: str) -> str | None:
    """Describe the classes of ``where`` that look like missing values in one sentence; None if no class does."""
    found = missing_spellings(names)
    if not found:
        return None
    return (
        f"{where}: {', '.join(map(repr, found))} {'is a class' if len(found) == 1 else 'are classes'} like any other, "
        "but may stand for missing labels; cells with a missing value are skipped, cells with these texts are not."
    )


def unshared_labels(truth: Sequence[str], known: Sequence[str]) -> str | None:
    """Describe two sets of labels in a sentence if they have nothing in common; None if they share a label."""
    if set(truth) & set(known):
        return None
    return f"the cells have {_listing(truth)}, the model {_listing(known)}"


def _listing(names: Sequence[str], most: int = 5) -> str:
    distinct = sorted(set(names))
    more = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return ", ".join(map(repr, distinct[:most])) + more


def _float_text(value: float) -> str | None:
    if np.isnan(value):
        return None
    if value.is_integer():
        return str(int(value))
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return str(narrow) if float(narrow) == value and np.isfinite(narrow) else repr(value)
