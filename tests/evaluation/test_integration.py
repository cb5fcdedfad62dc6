"""Metrics of integration: against scikit-learn and hand-made cells, and None with a reason where they mean nothing."""

import json

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

from cytoray.errors import CorpusError
from cytoray.evaluation.integration import IntegrationOptions, neighbour_overlap, score_integration
from cytoray.evaluation.integration import neighbours as neighbours_module
from cytoray.evaluation.integration.clustering import leiden
from cytoray.evaluation.integration.mixing import (
    batch_variance,
    graph_connectivity,
    kbet_per_label,
    median_lisi,
    pcr_comparison,
)
from cytoray.evaluation.integration.neighbours import find_neighbours
from cytoray.evaluation.integration.silhouettes import batch_silhouettes, label_silhouettes, silhouettes

FAST = IntegrationOptions(resolutions=(0.4, 1.0), kmeans_starts=2)


def two_types(num_cells=240, *, shift=0.0, seed=0):
    """Cells of two types in two batches, the second batch shifted along the third axis."""
    rng = np.random.default_rng(seed)
    labels, batches = np.arange(num_cells) % 2, np.arange(num_cells) // 2 % 2
    points = rng.normal(size=(num_cells, 4))
    points[:, 0] += 12 * labels
    points[:, 2] += shift * batches
    return points, np.array(["B", "T"])[labels], np.array(["a", "b"])[batches]


# Neighbours and silhouettes


def test_neighbours_are_those_of_a_tree_and_every_cell_is_its_own_first():
    points = np.random.default_rng(0).normal(size=(300, 5)) + 1000

    found = find_neighbours(points, num_neighbours=12)

    distances, indices = NearestNeighbors(n_neighbors=12, algorithm="kd_tree").fit(points).kneighbors(points)
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, atol=1e-9)
    assert np.array_equal(found.indices[:, 0], np.arange(300))


def test_a_cell_stays_its_own_neighbour_among_more_equal_cells_than_neighbours():
    points = np.concatenate([np.full((40, 3), 7.3), np.random.default_rng(0).normal(size=(20, 3))])

    found = find_neighbours(points, num_neighbours=5)

    assert np.array_equal(found.indices[:, 0], np.arange(60))
    assert (found.distances[:40] == 0).all()
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


@pytest.mark.parametrize("chunk_bytes", [64 * 2**20, 1000])
def test_silhouettes_equal_those_of_scikit_learn_in_any_chunks(monkeypatch, chunk_bytes):
    monkeypatch.setattr(neighbours_module, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(1)
    points, groups = rng.normal(size=(150, 6)) + 50, rng.integers(0, 4, 150)
    groups[0] = 4  # alone in its group

    for metric in ("euclidean", "cosine"):
        expected = silhouette_samples(points, groups, metric=metric)
        assert np.allclose(silhouettes(points, groups, metric=metric), expected)


def test_between_term_of_bras_is_the_mean_over_all_other_cells():
    points, groups = np.array([[0.0], [2.0], [10.0], [12.0], [100.0]]), np.array([0, 0, 1, 1, 2])

    found = silhouettes(points, groups, between="mean_other")

    between = (10 + 12 + 100) / 3
    assert found[0] == pytest.approx((between - 2) / between)
    assert found[4] == 0  # alone in its group


def test_label_silhouette_is_the_mean_over_cells_and_each_label_has_its_own():
    points, labels = np.array([[0.0], [1.0], [10.0], [11.0], [12.0]]), np.array([0, 0, 1, 1, 1])

    mean, each = label_silhouettes(points, labels)

    samples = (silhouette_samples(points, labels) + 1) / 2
    assert mean == pytest.approx(samples.mean())
    assert each == pytest.approx([samples[:2].mean(), samples[2:].mean()])


def test_batch_silhouettes_leave_out_labels_of_one_batch():
    points, labels, batches = np.arange(8.0)[:, None] + 1, np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1] * 4)
    batches[4:6] = 0

    found = batch_silhouettes(points, labels, batches, metric="euclidean", between="nearest")

    assert np.isfinite(found).tolist() == [True, False, False]  # label 2 has as many batches as cells


# Mixing


def test_lisi_counts_the_groups_around_a_cell():
    rng = np.random.default_rng(0)
    near, groups = find_neighbours(rng.normal(size=(900, 3)), num_neighbours=90), np.arange(900) % 3

    assert 2.6 < median_lisi(near, groups) < 3  # thirty neighbours, effectively, are not all in equal shares
    apart = find_neighbours(rng.normal(size=(900, 3)) + 100 * groups[:, None], num_neighbours=90)
    assert median_lisi(apart, groups) == pytest.approx(1, abs=1e-6)


def test_lisi_does_not_depend_on_the_unit_of_distance():
    points, groups = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 2

    small, large = (median_lisi(find_neighbours(points * unit, num_neighbours=30), groups) for unit in (1e-3, 1e5))

    assert small == pytest.approx(large, abs=1e-3)


def test_connectivity_is_the_share_of_the_largest_piece():
    points = np.concatenate([np.random.default_rng(0).normal(size=(60, 2)) + offset for offset in (0, 500, 1000)])
    labels = np.repeat([0, 0, 1], 60)
    labels[:20] = 1  # of the first clump; label 1 has 20 and 60, label 0 has 40 and 60

    found = graph_connectivity(find_neighbours(points, num_neighbours=15), labels)

    assert found == pytest.approx([0.6, 0.75])


def test_kbet_accepts_mixed_batches_and_rejects_separate_ones():
    rng = np.random.default_rng(0)
    labels, batches = np.repeat([0, 1, 2, 3], [200, 200, 200, 8]), rng.integers(0, 2, 608)
    batches[400:600] = 1
    points = rng.normal(size=(608, 3)) + 100 * labels[:, None]
    points[200:400, 0] += 4 * batches[200:400]

    found = kbet_per_label(find_neighbours(points, num_neighbours=50).connectivities(), labels, batches)

    assert found[0] > 0.85
    assert found[1] < 0.1
    assert np.isnan(found[2:]).all()  # one batch; 8 cells


def test_kbet_is_zero_for_a_label_in_many_small_pieces():
    rng = np.random.default_rng(0)
    points, batches = rng.normal(size=(240, 2)) + 1000 * (np.arange(240) // 24)[:, None], np.arange(240) % 2
    near = find_neighbours(points, num_neighbours=20)

    assert kbet_per_label(near.connectivities(), np.zeros(240, np.int64), batches).tolist() == [0.0]


def test_batch_variance_is_that_of_a_regression_on_all_components():
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 3, 200)
    points = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=(3, 6))[batches]

    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    design = np.eye(3)[batches]
    fitted = design @ np.linalg.lstsq(design, left * values, rcond=None)[0]
    explained = (fitted**2).sum(axis=0) / values**2
    assert batch_variance(points, batches) == pytest.approx((explained * values**2).sum() / (values**2).sum())


def test_pcr_is_zero_where_batches_moved_apart():
    rng = np.random.default_rng(0)
    batches = np.arange(100) % 2
    points = rng.normal(size=(100, 3)) + batches[:, None]
    centred = points - np.stack([points[batches == batch].mean(axis=0) for batch in (0, 1)])[batches]

    assert pcr_comparison(points, centred, batches) == pytest.approx(1)
    assert pcr_comparison(points, points, batches) == 0
    assert pcr_comparison(points, points + 5 * batches[:, None], batches) == 0


def test_leiden_finds_the_clumps_and_leaves_the_generators_of_others_alone():
    points, labels, _ = two_types()
    graph = find_neighbours(points, num_neighbours=15).connectivities()
    np.random.seed(0)  # noqa: NPY002

    first = leiden(graph, resolution=0.1)

    assert np.array_equal(first, leiden(graph, resolution=0.1))
    assert len({(label, cluster) for label, cluster in zip(labels, first, strict=True)}) == 2
    assert np.random.random() == np.random.RandomState(0).random_sample()  # noqa: NPY002


# Scores


def test_a_shift_between_batches_costs_batch_metrics_and_its_removal_restores_them():
    shifted, labels, batches = two_types(shift=8)
    mixed, _, _ = two_types()

    bad = score_integration(shifted, batches=batches, labels=labels, before=shifted, options=FAST)
    good = score_integration(mixed, batches=batches, labels=labels, before=shifted, options=FAST)

    for name in ("bras", "asw_batch", "ilisi", "kbet", "pcr_comparison", "batch", "total"):
        assert getattr(good, name) > getattr(bad, name) + 0.1, name
    assert bad.ilisi < 0.05
    assert good.pcr_comparison > 0.9
    assert good.nmi_kmeans == good.ari_kmeans == 1
    assert good.reasons == {}


def test_totals_are_the_means_that_their_names_promise():
    points, labels, batches = two_types(shift=1)
    s = score_integration(points, batches=batches, labels=labels, before=points * 2, options=FAST)

    bio = np.mean([s.isolated_labels, s.nmi_kmeans, s.ari_kmeans, s.asw_label, s.clisi])
    batch = np.mean([s.bras, s.ilisi, s.kbet, s.graph_connectivity, s.pcr_comparison])
    assert (s.bio, s.batch, s.total) == pytest.approx((bio, batch, 0.6 * bio + 0.4 * batch))
    assert s.avg_bio == pytest.approx(np.mean([s.nmi_leiden, s.ari_leiden, s.asw_label]))
    assert s.avg_batch == pytest.approx(np.mean([s.asw_batch, s.graph_connectivity]))


def test_isolated_labels_are_those_in_the_fewest_batches():
    points, labels, batches = two_types(shift=1)
    batches[labels == "T"] = "a"

    s = score_integration(points, batches=batches, labels=labels, options=FAST)

    per_label = {row.label: row for row in s.per_label}
    assert s.isolated_labels == pytest.approx(per_label["T"].asw)
    assert (per_label["T"].num_batches, per_label["T"].kbet, per_label["T"].bras) == (1, None, None)
    assert s.bras == pytest.approx(per_label["B"].bras)


def test_dictionary_survives_json_unchanged():
    points, labels, batches = two_types(40)
    document = score_integration(points, batches=batches, labels=labels, options=FAST).to_dict()

    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {"total", "avg_bio", "avg_batch", "kbet", "per_label", "reasons"} <= document.keys()


def test_one_batch_has_biology_but_no_batch_score():
    points, labels, _ = two_types()

    s = score_integration(points, batches=["only"] * len(points), labels=labels, before=points, options=FAST)

    assert (s.batch, s.total, s.avg_batch, s.ilisi, s.bras, s.pcr_comparison) == (None,) * 6
    assert s.reasons["ilisi"] == s.reasons["isolated_labels"] == "all cells are of one batch"
    assert s.bio > 0.9
    assert s.avg_bio > 0.9


def test_one_label_has_a_batch_score_but_no_biology():
    points, _, batches = two_types()

    s = score_integration(points, batches=batches, labels=["T"] * len(points), before=points + 1, options=FAST)

    assert (s.bio, s.avg_bio, s.total, s.clisi) == (None,) * 4
    assert s.reasons["clisi"] == "all cells have one label"
    assert s.batch > 0.3


def test_without_labels_only_what_needs_none_is_scored():
    points, _, batches = two_types()

    s = score_integration(points, batches=batches, before=points)

    assert s.ilisi is not None
    assert s.pcr_comparison == 0
    assert s.reasons["kbet"] == "no cell-type labels were given"
    assert (s.bio, s.total, s.num_labels, s.per_label) == (None, None, 0, ())


def test_batches_that_are_the_cell_types_are_reported():
    points, labels, _ = two_types()

    s = score_integration(points, batches=labels, labels=labels, options=FAST)

    assert "confounded" in s.warnings[0]
    assert s.reasons["bras"] == "no label has cells in two batches"
    assert s.kbet is None


@pytest.mark.parametrize("num_cells", [1, 2, 3, 5, 7, 12])
def test_few_cells_of_one_dimension_are_no_crash(num_cells):
    points = np.arange(float(num_cells))[:, None]
    labels, batches = [f"type {i % 2}" for i in range(num_cells)], [f"batch {i % 3}" for i in range(num_cells)]

    s = score_integration(points, batches=batches, labels=labels, before=points, options=FAST)

    values = [getattr(s, name) for name in ("bras", "ilisi", "clisi", "kbet", "nmi_kmeans", "graph_connectivity")]
    assert all(value is None or np.isfinite(value) for value in values)
    assert json.dumps(s.to_dict(), allow_nan=False)


def test_cells_that_are_all_equal_are_no_crash():
    labels, batches = ["x", "y"] * 20, ["a"] * 20 + ["b"] * 20

    s = score_integration(np.zeros((40, 3)), batches=batches, labels=labels, before=np.zeros((40, 3)), options=FAST)

    assert s.pcr_comparison is None
    assert s.reasons["pcr_comparison"] == "batches explained no variance before"
    assert json.dumps(s.to_dict(), allow_nan=False)


def test_more_cells_than_can_be_compared_are_sampled_with_a_warning():
    points, labels, batches = two_types(400)
    options = IntegrationOptions(resolutions=(1.0,), max_cells=100)

    s = score_integration(points, batches=batches, labels=labels, options=options)

    assert (s.num_cells, s.warnings) == (100, ("Scored on 100 of 400 cells, drawn at random.",))
    assert s == score_integration(points, batches=batches, labels=labels, options=options)


@pytest.mark.parametrize("missing", [None, float("nan"), "nan", ""])
def test_missing_names_are_an_error_with_their_row(missing):
    points, labels, batches = two_types(40)
    named = [*labels[:7], missing, *labels[8:]]

    with pytest.raises(CorpusError, match=r"1 of 40 cells have a missing cell-type label \(the first in row 7\)"):
        score_integration(points, batches=batches, labels=named)


def test_values_that_are_not_finite_are_an_error_with_their_row():
    points, labels, batches = two_types(40)
    points[3, 1] = np.nan

    with pytest.raises(CorpusError, match=r"1 cells with values that are not finite \(the first in row 3\)"):
        score_integration(points, batches=batches, labels=labels)


# Over-correction


def test_overlap_is_one_for_shifted_batches_and_low_for_shuffled_cells():
    points, _, batches = two_types(400)
    shifted = points + 9 * (batches == "b")[:, None]
    shuffled = shifted.copy()
    in_b = np.flatnonzero(batches == "b")
    shuffled[in_b] = shuffled[np.random.default_rng(0).permutation(in_b)]

    kept, broken = (neighbour_overlap(points, after, batches=batches) for after in (shifted, shuffled))

    assert (kept.mean, kept.per_batch, kept.warning) == (1.0, {"a": 1.0, "b": 1.0}, None)
    assert broken.per_batch["a"] == 1
    assert broken.per_batch["b"] < 0.3
    assert broken.mean == pytest.approx((broken.per_batch["a"] + broken.per_batch["b"]) / 2)
    assert broken.warning.startswith("Over-correction: in 1 of 2 batches")
    assert "(b 0." in broken.warning


def test_overlap_counts_shared_neighbours():
    before, after = np.arange(13.0)[:, None], np.arange(13.0)[:, None]
    after[[0, 12]] = after[[12, 0]]  # the two ends change places

    found = neighbour_overlap(before, after, batches=["only"] * 13, num_neighbours=2)

    assert found.mean == pytest.approx((9 * 1 + 2 * 0.5 + 2 * 0) / 13)  # cells beside an end lose the end


def test_batches_of_fewer_than_four_cells_are_not_compared():
    points = np.random.default_rng(0).normal(size=(13, 2))

    found = neighbour_overlap(points, points, batches=["big"] * 10 + ["small"] * 3)

    assert found.per_batch == {"big": 1.0, "small": None}
    assert found.mean == 1.0


def test_graphs_leave_the_neighbours_of_few_cells_as_they_are():
    neighbours = find_neighbours(np.random.default_rng(0).normal(size=(38, 4)), num_neighbours=90)
    before = neighbours.indices.copy()

    neighbours.nearest(50).connectivities()

    np.testing.assert_array_equal(neighbours.indices, before)


@pytest.mark.parametrize(("num_cells", "is_warned"), [(20, False), (60, True)])
def test_a_small_batch_gives_no_warning_by_itself(num_cells: int, is_warned: bool):
    rng = np.random.default_rng(0)
    points, batches = rng.normal(size=(200 + num_cells, 5)), ["big"] * 200 + ["other"] * num_cells
    shuffled = np.concatenate([points[:200], rng.permutation(points[200:])])

    found = neighbour_overlap(points, shuffled, batches=batches)

    assert found.per_batch["other"] < 0.5
    assert (found.warning is not None) == is_warned
