"""A label has one spelling, whatever type a file, a corpus or a user keeps it in."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cytoray.tokens.labels import label_text, label_texts, missing_spellings


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([7, np.int8(7), np.uint64(7), 7.0, np.float16(7), np.float32(7), "7", b"7", np.bytes_(b"7")], "7"),
        ([0, 0.0, -0.0, np.float32(-0.0)], "0"),
        ([True, np.True_, np.bool_(True), "True"], "True"),
        ([0.1, np.float32(0.1), float(np.float32(0.1))], "0.1"),
        ([2**60, float(2**60)], str(2**60)),
        (["B cell", np.str_("B cell"), b"B cell"], "B cell"),
        ([float("inf"), np.float32("inf")], "inf"),
        ([1e300, 10**300 - (10**300 - int(1e300))], str(int(1e300))),
        ([None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), decimal.Decimal("NaN")], None),
        (["nan"], "nan"),
    ],
)
def test_equal_values_have_equal_text(values: list[Any], text: str | None):
    assert [label_text(value) for value in values] == [text] * len(values)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([0, 1, None], dtype="Int64"),
        pd.Series([0.0, 1.0, np.nan]),
        pd.Series([0, 1, None], dtype="category"),
        pd.Series(["0", "1", None], dtype="category"),
        pd.Series([b"0", b"1", None], dtype=object),
        pd.Series(["0", "1", pd.NA], dtype="string"),
        [0, np.int8(1), float("nan")],
    ],
    ids=["nullable", "float", "categories of numbers", "categories", "bytes", "text", "list"],
)
def test_a_column_has_the_same_texts_in_any_type(column: Any):
    assert label_texts(column) == ["0", "1", None]


def test_classes_that_look_missing_are_found():
    assert missing_spellings(["B", "nan", " NA ", "", "None", "Natural killer", "unknown"]) == [
        "",
        " NA ",
        "None",
        "nan",
        "unknown",
    ]
