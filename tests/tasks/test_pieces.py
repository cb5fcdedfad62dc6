"""Pieces of a long computation: what is put in comes out, and only for what it was computed for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cytoray.tasks.pieces import Pieces


@dataclass(frozen=True, eq=False)
class Inner:
    points: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outer:
    inner: Inner
    flags: np.ndarray
    scores: dict[str, float | None]
    rows: list[dict[str, int]]


def make_outer() -> Outer:
    points = np.array([[0.1, np.nan], [1 / 3, -0.0]])
    return Outer(
        Inner(points, ("a", "ä/../b")), np.array([True, False]), {"x": 1 / 3, "y.z": None, "": np.inf}, [{"n": 3}]
    )


def test_a_value_comes_back_bit_for_bit_with_its_types(tmp_path: Path):
    first, reused = Pieces(str(tmp_path / "p"), "key").compute("one", make_outer, kinds=(Outer, Inner))
    again, reused_again = Pieces(str(tmp_path / "p"), "key").compute("one", pytest.fail, kinds=(Outer, Inner))
    assert (reused, reused_again) == (False, True)
    expected = make_outer()
    for found in (first, again):
        assert found.inner.points.tobytes() == expected.inner.points.tobytes()
        assert (found.inner.names, found.scores, found.rows) == (expected.inner.names, expected.scores, expected.rows)
        assert found.flags.dtype == bool
        assert found.flags.tolist() == [True, False]


@pytest.mark.parametrize(("key", "name"), [("other", "one"), ("key", "two")])
def test_another_key_or_name_is_another_piece(tmp_path: Path, key: str, name: str):
    Pieces(str(tmp_path), "key").compute("one", lambda: 1)
    assert Pieces(str(tmp_path), key).compute(name, lambda: 2) == (2, False)
    assert Pieces(str(tmp_path), "key").compute("one", lambda: 3) == (1, True)


@pytest.mark.parametrize("damage", [b"", b"short", bytes(500)])
def test_a_damaged_piece_is_computed_again_and_that_is_logged(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
):
    Pieces(str(tmp_path), "key").compute("one", lambda: np.arange(9))
    (piece,) = tmp_path.iterdir()
    piece.write_bytes(damage)
    found, reused = Pieces(str(tmp_path), "key").compute("one", lambda: np.arange(3))
    assert (found.tolist(), reused) == ([0, 1, 2], False)
    assert f"{piece} (one) is damaged and is computed again" in caplog.text
    assert Pieces(str(tmp_path), "key").compute("one", pytest.fail)[1]


def test_without_a_folder_nothing_is_kept_and_all_can_be_removed(tmp_path: Path, s3_uri: str):
    assert Pieces().compute("one", lambda: [1, 2]) == ([1, 2], False)
    Pieces().remove()
    for folder in (str(tmp_path / "p"), f"{s3_uri}/p"):
        Pieces(folder, "key").compute("one", lambda: 1)
        assert Pieces(folder, "key").compute("one", lambda: 2) == (1, True)
        Pieces(folder, "other").remove()
        assert Pieces(folder, "key").compute("one", lambda: 2) == (2, False)
