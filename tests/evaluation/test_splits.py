from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoray.errors import ConfigError
from cytoray.evaluation.splits import few_labels, grouped_folds, leave_one_label_out, stratified_folds

LABELS = ["B"] * 50 + ["T"] * 100 + ["platelet"] * 3 + ["lonely"]


@given(st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=80), st.integers(2, 9), st.integers(0, 5))
def test_folds_cover_every_cell_once_and_share_each_label(labels, num_folds, seed):
    folds = stratified_folds(labels, num_folds=num_folds, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(len(labels)))
    for fold in folds:
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(len(labels)))
    for label in set(labels):
        counts = [sum(labels[row] == label for row in fold.test) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_a_label_with_two_cells_is_never_missing_from_training():
    for fold in stratified_folds(LABELS, num_folds=5, seed=3):
        assert {"B", "T", "platelet"} <= {LABELS[row] for row in fold.train}


def test_folds_depend_on_the_seed_alone():
    same, again, other = (stratified_folds(LABELS, num_folds=4, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(same, again, strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(same, other, strict=True))


def test_groups_are_never_divided():
    groups = np.repeat(["d1", "d2", "d3", "d4", "d5"], [40, 10, 10, 10, 30])
    folds = grouped_folds(groups, num_folds=3, seed=0)
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
    assert sorted(len(fold.test) for fold in folds) == [30, 30, 40]


def test_one_group_cannot_be_split():
    with pytest.raises(ConfigError, match="1 groups cannot be split into 3 folds"):
        grouped_folds(["donor"] * 9, num_folds=3, seed=0)


def test_few_labels_keep_two_cells_of_each_label_that_has_more():
    split = few_labels(LABELS, fraction=0.02, seed=0)
    kept = [LABELS[row] for row in split.train]
    assert {label: kept.count(label) for label in set(kept)} == {"B": 2, "T": 2, "platelet": 2, "lonely": 1}
    assert np.array_equal(np.union1d(split.train, split.test), np.arange(len(LABELS)))
    assert not np.intersect1d(split.train, split.test).size


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction is"):
        few_labels(LABELS, fraction=fraction, seed=0)


def test_a_label_left_out_is_all_in_the_test_with_some_of_the_others():
    splits = leave_one_label_out(LABELS, num_folds=5, seed=0)
    assert [split.name for split in splits] == ["B", "T", "lonely", "platelet"]
    for split in splits:
        assert split.name not in {LABELS[row] for row in split.train}
        assert {LABELS[row] for row in split.test} > {split.name}


def test_leaving_a_label_out_needs_three():
    with pytest.raises(ConfigError, match="at least three labels; these cells have 2"):
        leave_one_label_out(["A", "B", "A"], num_folds=2, seed=0)
