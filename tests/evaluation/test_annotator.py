"""The annotator that a bundle carries: its file, its doubts, and when a transformer joins it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from cytoray.errors import ModelError
from cytoray.evaluation.annotator import BLEND, TRANSFORMER, Annotator, HeldOut, fit_annotator, join_transformer
from cytoray.evaluation.annotator_file import from_bytes, to_bytes
from cytoray.evaluation.conformal import area_under_roc
from cytoray.evaluation.voters import Expression

NUM_GENES, LABELS = 120, ("a", "b", "c")


def draw(num_cells: int, *, seed: int, kinds: int = 3) -> tuple[Expression, np.ndarray]:
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(1).gamma(0.6, 1.0, NUM_GENES) * np.ones((4, 1))
    for kind in range(4):
        rates[kind, 15 * kind : 15 * kind + 15] *= 6
    codes = rng.integers(0, kinds, num_cells)
    return Expression(sparse.csr_matrix(rng.poisson(rates[codes]).astype(np.float32))), codes


@pytest.fixture(scope="module")
def fitted() -> tuple[Annotator, HeldOut]:
    cells, codes = draw(240, seed=2)
    return fit_annotator(cells, [LABELS[code] for code in codes], labels=LABELS)


def test_the_file_gives_the_same_answers_and_the_same_bytes(fitted: tuple[Annotator, HeldOut]):
    data = to_bytes(fitted[0])
    again = from_bytes(data, num_genes=NUM_GENES)
    cells, _ = draw(30, seed=3)
    first, second = fitted[0].annotate(cells), again.annotate(cells)
    for name in ("probabilities", "baseline", "in_set", "distances", "unseen_p"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert to_bytes(again) == data


def test_an_answer_does_not_depend_on_the_other_cells(fitted: tuple[Annotator, HeldOut]):
    counts, _ = draw(20, seed=4)
    normalised = counts.expression[:10]
    together = Expression.of(sparse.vstack([normalised, counts.values[10:]], format="csr"))
    mixed = fitted[0].annotate(together).probabilities
    np.testing.assert_allclose(mixed, fitted[0].annotate(counts).probabilities, atol=1e-5)


def test_damaged_and_foreign_files_are_refused(fitted: tuple[Annotator, HeldOut]):
    data = to_bytes(fitted[0])
    with pytest.raises(ModelError, match="cannot be read"):
        from_bytes(data[:500], num_genes=NUM_GENES)
    with pytest.raises(ModelError, match="genes that the vocabulary lacks"):
        from_bytes(data, num_genes=20)
    newer = data.replace(b'\\"format\\": 1', b'\\"format\\": 7')
    assert newer != data, json.dumps(str(data[:200]))
    with pytest.raises(ModelError, match="format 7"):
        from_bytes(newer, num_genes=NUM_GENES)


def test_a_type_that_was_not_learned_is_far(fitted: tuple[Annotator, HeldOut]):
    cells, codes = draw(300, seed=5, kinds=4)
    found = fitted[0].annotate(cells)
    assert (found.probabilities[codes < 3].argmax(axis=1) == codes[codes < 3]).mean() > 0.95
    assert area_under_roc(-found.unseen_p, codes == 3) > 0.7
    assert 0.35 < found.unseen_p[codes < 3].mean() < 0.75, "of known types p-values are spread evenly"
    assert (found.unseen_p[codes < 3] < 0.05).mean() < 0.1
    covered = found.in_set[np.flatnonzero(codes < 3), codes[codes < 3]].mean()
    assert covered > 0.85


@pytest.mark.parametrize(("right", "joins"), [(1.0, True), (0.0, False)])
def test_a_transformer_joins_if_it_helps(fitted: tuple[Annotator, HeldOut], right: float, joins: bool):
    annotator, held_out = fitted
    rows = np.arange(0, 240, 2)
    rng = np.random.default_rng(0)
    poor = HeldOut(held_out.codes, np.log(rng.dirichlet(np.ones(3), 240)))  # a blend that knows nothing
    answers = np.full((120, 3), 0.05)
    told = held_out.codes[rows] if right else rng.integers(0, 3, 120)
    answers[np.arange(120), told] = 0.9
    before = poor if right else held_out
    joined = join_transformer(annotator, before, rows=rows, answers=np.log(answers))
    assert joined.uses_transformer is joins
    assert joined.joined is not None
    assert (BLEND if not joins else TRANSFORMER) in joined.joined.product.weights
    cells, _ = draw(5, seed=6)
    transformer = np.log(np.full((5, 3), [0.98, 0.01, 0.01]))
    changed = joined.annotate(cells, transformer=transformer).probabilities
    same = np.allclose(changed, annotator.annotate(cells).probabilities)
    assert same is not joins


def test_few_new_cells_do_not_judge_a_transformer(fitted: tuple[Annotator, HeldOut]):
    rows = np.arange(20)
    assert join_transformer(*fitted, rows=rows, answers=np.zeros((20, 3))) is fitted[0]
