from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoray.corpus.checking.selection import select_rows, selected_columns
from cytoray.errors import CorpusError


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "disease": pd.Categorical(["normal", "flu", None, "normal"]),
            "primary": [True, False, True, True],
            "age": [1.0, 2.0, np.nan, 4.0],
            "cell type": ["T cell", "B cell", "NK (ab)", None],
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "loose": [True, None, False, True],
            "kind": pd.Categorical([True, False, True, True]),
            "stage": pd.Categorical(["2", "1", "3", "1"]),
            "cluster": [0.0, 1.0, np.nan, 1.0],
            "number": pd.Categorical([0, 1, 0, 1]),
            "mixed": [0, "1", np.nan, 1.0],
        },
        index=list("wxyz"),
    )


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("disease == 'normal' and primary", "wz"),
        ("disease == 'normal'", "wz"),
        ("'normal' == disease", "wz"),
        ("disease != 'normal'", "x"),  # a missing value satisfies no comparison
        ("not disease == 'normal'", "xy"),
        ("disease in ['flu', 'cold']", "x"),
        ("disease == ['flu', 'cold']", "x"),
        ("disease not in ('flu',)", "wz"),
        ("disease.isin(['flu'])", "x"),
        ("disease.isna()", "y"),
        # Texts find labels in whatever type a column has; numbers compare as numbers.
        ("cluster == '1'", "xz"),
        ("cluster != '1'", "w"),
        ("cluster in ['0']", "w"),
        ("cluster not in ['0', '5']", "xz"),
        ("cluster == 1", "xz"),
        ("cluster.isin(['1'])", "xz"),
        ("number == '0'", "wy"),
        ("mixed == '1'", "xz"),
        ("mixed == 1", "xz"),
        ("stage == 1", "xz"),
        ("stage in [1, '3']", "xyz"),
        ("flag == 'True'", "wz"),
        ("primary in ['False']", "x"),
        ("loose == 'True'", "wz"),
        ("cluster == number", "wxz"),
        ("disease.notna() and not primary", "x"),
        ("disease < 'g'", "x"),
        ("disease == 'never seen'", ""),
        ("primary", "wyz"),
        ("flag", "wz"),
        ("loose", "wz"),
        ("kind", "wyz"),
        ("kind == True", "wyz"),
        ("not primary or age >= 4", "xz"),
        ("primary & (age > 1)", "z"),
        ("~primary | (age == 1)", "wx"),
        ("1 < age <= 4", "xz"),
        ("age * 2 + 1 > 4", "xz"),
        ("-age < -3", "z"),
        ("age in [1, 4]", "wz"),
        ("age.between(1, 2)", "wx"),
        ("`cell type`.str.contains('cell')", "wx"),
        ("`cell type`.str.contains('(ab)', regex=False)", "y"),
        ("`cell type`.str.lower() == 'b cell'", "x"),
        ("`cell type`.str.startswith('T') or disease == 'flu'", "wx"),
        ("disease.str.len() > 3", "wz"),
        ("stage > '1'", "wy"),
        ("index == 'x'", "x"),
        ("index.isin(['w', 'z'])", "wz"),
        ("True", "wxyz"),
        ("age == None", ""),
    ],
)
def test_which_rows(frame, expression: str, rows: str):
    mask = select_rows(frame, expression, where="a.h5ad")
    assert mask.dtype == bool
    assert "".join(frame.index[mask]) == rows


def test_pieces_give_what_the_whole_gives(frame):
    for expression in ("disease == 'normal'", "age > 1", "flag", "disease.str.len() > 3"):
        pieces = [select_rows(frame.iloc[i : i + 1], expression, where="") for i in range(len(frame))]
        assert np.concatenate(pieces).tolist() == select_rows(frame, expression, where="").tolist()
    assert select_rows(frame.iloc[:0], "disease == 'normal' and flag", where="").tolist() == []


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1), st.lists(st.integers(-3, 3), min_size=1))
def test_as_plain_python_would(texts: list[str | None], numbers: list[int]):
    size = min(len(texts), len(numbers))
    rows = list(zip(texts[:size], numbers[:size], strict=True))
    frame = pd.DataFrame(rows, columns=["text", "number"])
    expected = [text == "a" or not (number > 0 and text != "b" and text is not None) for text, number in rows]
    assert select_rows(frame, "text == 'a' or not (number > 0 and text != 'b')", where="").tolist() == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "disease.__class__",
        "disease.map(print)",
        "(lambda: 1)()",
        "[x for x in disease]",
        "disease.str.__len__()",
        "@where == 1",
        "disease := 1",
        "age.mean() > 1",
        "age ** 9 > 1",
        "disease == ",
        "disease is None",
        "f'{disease}' == 'flu'",
        "[disease] == 'flu'",
        "1 in [1]",
        "age[0] == 1",
        "disease; primary",
        "x" * 20_000,
    ],
)
def test_what_is_no_selection_is_refused(frame, expression: str):
    with pytest.raises(CorpusError, match=r"^a.h5ad: the selection `") as caught:
        select_rows(frame, expression, where="a.h5ad")
    assert caught.value.remedy
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("disease", "`it` is neither true nor false"),
        ("disease and primary", "`disease` is neither true nor false"),
        ("age > 'a'", "its values do not fit"),
        ("age.str.lower() == 'a'", "its values do not fit"),
        ("`cell type`.str.contains('(')", "its values do not fit"),
    ],
)
def test_types_that_do_not_fit_are_told(frame, expression: str, problem: str):
    with pytest.raises(CorpusError) as caught:
        select_rows(frame, expression, where="a.h5ad")
    assert problem in caught.value.problem


def test_an_unknown_column_is_named_with_the_nearest(frame):
    with pytest.raises(CorpusError) as caught:
        select_rows(frame, "diseases == 'normal'", where="a.h5ad")
    assert "a.h5ad: the selection `diseases == 'normal'` names 'diseases'" in caught.value.problem
    assert caught.value.remedy.startswith("Did you mean 'disease'?")
    assert "Columns there: disease, primary" in caught.value.remedy


def test_a_column_called_index_goes_before_the_names():
    frame = pd.DataFrame({"index": [1, 2]}, index=["a", "b"])
    assert select_rows(frame, "index == 2", where="").tolist() == [False, True]


def test_the_columns_that_a_selection_needs():
    names = selected_columns("`cell type`.isna() and (age > 1 or not `age`) and index != 'a'", where="")
    assert names == ("age", "cell type", "index")
