from __future__ import annotations

import gc

import numpy as np

from cytoray.corpus.streaming.blocks import MAX_SPARE, BlockPool

WANTED = [(1000, np.dtype(np.uint16)), (333, np.dtype(np.int8)), (0, np.dtype(np.int8)), (7, np.dtype(np.float32))]


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_arrays_are_of_the_wanted_lengths_and_types_and_do_not_overlap():
    arrays = BlockPool().empty(WANTED)
    assert [(len(array), array.dtype) for array in arrays] == WANTED
    for number, array in enumerate(arrays):
        array[:] = number + 1
    assert [set(array.tolist()) for array in arrays] == [{1}, {2}, set(), {4}]
    assert all(array.flags.aligned and array.flags.writeable for array in arrays)


def test_a_block_is_used_again_only_when_nobody_holds_any_part_of_it():
    pool = BlockPool()
    first = pool.empty(WANTED)
    place, kept = address(first[0]), first[1].reshape(3, 111)[1:, ::2]  # a view of a view
    kept[:] = 9
    del first
    gc.collect()
    second = pool.empty(WANTED)
    assert address(second[0]) != place
    second[1][:] = 5
    assert (kept == 9).all()
    del kept
    assert address(pool.empty(WANTED)[0]) == place


def test_no_more_blocks_are_kept_than_are_useful():
    pool = BlockPool()
    held = [pool.empty(WANTED) for _ in range(3 * MAX_SPARE)]
    del held
    assert len(pool._spare) == MAX_SPARE
