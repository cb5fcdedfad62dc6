"""Costly results are kept as long as the object they belong to, and no longer."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from cytoray.corpus.streaming.members import Members
from cytoray.corpus.streaming.order import ReadingOrder
from cytoray.corpus.streaming.recent import Recent


def test_results_are_made_once_and_the_oldest_is_forgotten():
    recent, made = Recent(2), []

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "aabacab"] == list("AABACAB")
    assert made == list("abcb")


def test_orders_and_members_do_not_outlive_their_use():
    order = ReadingOrder(np.array([30, 20]), seed=1, cells_per_step=5)
    starts = np.array([0, 30, 50])
    members = Members(starts, np.diff(starts), 1)
    order.cells(0, 10)
    members.draws(1, 0)
    seen = [weakref.ref(order), weakref.ref(members)]
    del order, members
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
