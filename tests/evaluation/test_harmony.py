"""Harmony moves batches together and keeps what lies within them; the numbers are held against harmonypy."""

import numpy as np
import pytest
from integration_cases import SYNTHETIC, Case

from cytoray.errors import CorpusError
from cytoray.evaluation.harmony import HarmonyOptions, harmonise
from cytoray.evaluation.integration import neighbour_overlap
from cytoray.evaluation.integration.mixing import batch_variance


@pytest.fixture(scope="module")
def few() -> Case:
    """A third of the cells of the blobs: 234."""
    case = SYNTHETIC["blobs"]()
    return Case(case.embedding[::3], case.before[::3], case.batches[::3], case.labels[::3])


def test_batches_come_together_and_cell_types_stay_apart():
    case = SYNTHETIC["blobs"]()
    codes = np.unique(case.batches, return_inverse=True)[1]
    types = np.unique(case.labels, return_inverse=True)[1]

    corrected = harmonise(case.before, batches=case.batches)

    assert batch_variance(corrected, codes) < 0.1 * batch_variance(case.before, codes)
    assert batch_variance(corrected, types) > batch_variance(case.before, types)
    assert neighbour_overlap(case.before, corrected, batches=case.batches).warning is None


@pytest.mark.parametrize("name", ["blobs", "uneven"])
def test_components_correlate_with_those_of_harmonypy(name):
    pandas = pytest.importorskip("pandas")
    harmonypy = pytest.importorskip("harmonypy", reason="harmonypy 0.0.10 is no dependency of cytoray")
    case = SYNTHETIC[name]()
    points = case.before.astype(float)

    oracle = harmonypy.run_harmony(points, pandas.DataFrame({"batch": case.batches}), "batch", theta=2.0, verbose=False)

    ours, theirs = harmonise(points, batches=case.batches), np.asarray(oracle.Z_corr).T
    assert min(np.corrcoef(ours[:, k], theirs[:, k])[0, 1] for k in range(points.shape[1])) > 0.99


def test_the_correction_within_one_cluster_is_a_ridge_regression():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [50, 30, 20])
    points = rng.normal(size=(100, 4)) + 3
    options = HarmonyOptions(num_clusters=1, ridge=5.0, max_rounds=1)

    corrected = harmonise(points, batches=[f"batch {code}" for code in codes], options=options)

    design = np.column_stack([np.ones(100), np.eye(3)[codes]])
    terms = np.linalg.solve(design.T @ design + np.diag([0, 5.0, 5.0, 5.0]), design.T @ points)
    assert np.allclose(corrected, points - design[:, 1:] @ terms[1:])


def test_the_same_seed_gives_the_same_cells_and_another_nearly_the_same(few):
    first, second, other = (
        harmonise(few.before, batches=few.batches, options=HarmonyOptions(seed=seed)) for seed in (0, 0, 1)
    )

    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] > 0.99


def test_names_and_order_of_batches_do_not_matter(few):
    renamed = np.array([{"batch 0": "z", "batch 1": "y", "batch 2": "x"}[name] for name in few.batches])

    assert np.allclose(harmonise(few.before, batches=few.batches), harmonise(few.before, batches=renamed))


def test_a_larger_theta_mixes_more(few):
    codes = np.unique(few.batches, return_inverse=True)[1]
    none, much = (
        batch_variance(harmonise(few.before, batches=few.batches, options=HarmonyOptions(theta=theta)), codes)
        for theta in (0.0, 4.0)
    )
    assert much < none


def test_one_batch_is_returned_as_it_is():
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert np.array_equal(harmonise(points, batches=["only"] * 50), points)


@pytest.mark.parametrize("num_cells", [2, 3, 20])
def test_few_cells_and_zeros_are_no_crash(num_cells):
    points = np.random.default_rng(0).normal(size=(num_cells, 3))
    points[0] = 0
    batches = ["a", *["b"] * (num_cells - 1)]

    assert np.isfinite(harmonise(points, batches=batches)).all()
    assert np.isfinite(harmonise(np.zeros_like(points), batches=batches)).all()


def test_bad_input_is_an_error_that_says_where():
    points = np.random.default_rng(0).normal(size=(10, 3))
    points[4] = np.inf

    with pytest.raises(CorpusError, match=r"the first in row 4"):
        harmonise(points, batches=["a", "b"] * 5)
    with pytest.raises(CorpusError, match=r"missing batch label"):
        harmonise(np.ones((3, 2)), batches=["a", None, "b"])
    with pytest.raises(CorpusError, match=r"sigma and ridge above 0"):
        harmonise(np.ones((2, 2)), batches=["a", "b"], options=HarmonyOptions(ridge=0.0))
