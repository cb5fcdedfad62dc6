"""The label-free score prefers a good correction to none and to one that destroys cell types."""

import json

import numpy as np
import pytest
from integration_cases import SYNTHETIC

from cytoray.evaluation.harmony import harmonise
from cytoray.evaluation.integration import cluster_batches, select_without_labels


def test_clusters_of_a_batch_are_matched_with_the_same_type_in_others():
    case = SYNTHETIC["blobs"]()

    clusters = cluster_batches(case.before, batches=case.batches, resolution=0.3)

    pairs = {*zip(clusters.matched.tolist(), case.labels.tolist(), strict=True)}
    assert len(pairs) == len(set(case.labels)) == len({matched for matched, _ in pairs})  # one group for one type
    for cluster in np.unique(clusters.within):
        assert len(set(case.batches[clusters.within == cluster])) == 1


def test_a_type_of_one_batch_stays_unmatched():
    rng = np.random.default_rng(0)
    types, batches = np.repeat([0, 1, 2], 100), np.tile([0, 1], 150)
    batches[types == 2] = 1
    points = rng.normal(size=(300, 5)) + 12 * np.eye(5)[types] + 0.5 * batches[:, None]

    clusters = cluster_batches(points, batches=[f"batch {code}" for code in batches], resolution=0.3)

    assert len(set(clusters.matched[types == 0])) == 1
    assert not set(clusters.matched[types == 2]) & set(clusters.matched[types != 2])


def test_of_two_clusters_near_another_only_the_mutual_best_is_matched():
    rng = np.random.default_rng(0)
    types, batches = np.repeat([0, 0, 1], [100, 10, 100]), np.repeat(["a", "b"], [100, 110])
    points = rng.normal(size=(210, 4)) + 12 * np.eye(4)[types]  # a's twenty nearest in b are of both types

    clusters = cluster_batches(points, batches=batches, resolution=0.1)

    assert len(set(clusters.matched[types == 0])) == 1
    assert not set(clusters.matched[types == 1]) & set(clusters.matched[types == 0])


def test_a_good_correction_is_preferred_to_none_and_to_mixing_everything():
    case = SYNTHETIC["blobs"]()
    clusters = cluster_batches(case.before, batches=case.batches)
    shuffled = case.before[np.random.default_rng(0).permutation(len(case.before))]
    candidates = {
        "none": case.before,
        "harmony": harmonise(case.before, batches=case.batches),
        "destroyed": shuffled,
        "one point": 1e-3 * np.random.default_rng(1).normal(size=case.before.shape),
    }

    found = {
        name: select_without_labels(points, uncorrected=case.before, batches=case.batches, clusters=clusters)
        for name, points in candidates.items()
    }

    assert max(found, key=lambda name: found[name].score) == "harmony"
    assert found["none"].overlap.mean == 1
    assert found["destroyed"].overlap.warning
    assert found["harmony"].batch > found["none"].batch + 0.1
    assert found["harmony"].bio > found["destroyed"].bio + 0.3


def test_the_score_is_the_weighted_mean_of_its_parts():
    case = SYNTHETIC["uneven"]()
    clusters = cluster_batches(case.before, batches=case.batches)
    s = select_without_labels(case.embedding, uncorrected=case.before, batches=case.batches, clusters=clusters)

    assert s.bio == pytest.approx((s.overlap.mean + s.silhouette) / 2)
    assert s.batch == pytest.approx((s.ilisi + s.bras) / 2)
    assert s.score == pytest.approx(0.6 * s.bio + 0.4 * s.batch)
    assert json.loads(json.dumps(s.to_dict(), allow_nan=False)) == s.to_dict()


def test_one_batch_or_few_cells_have_no_score():
    points = np.random.default_rng(0).normal(size=(40, 3))
    for cells, batches in ((points, ["only"] * 40), (points[:3], ["a", "b", "b"])):
        clusters = cluster_batches(cells, batches=batches)
        assert select_without_labels(cells, uncorrected=cells, batches=batches, clusters=clusters).score is None
