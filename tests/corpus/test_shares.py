"""Ranks share a step: every cell to one of them, as many cells and about as many tokens to each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.shares import TEAM_RANKS, Team
from cytoray.tokens.tokenizer import TokenizerConfig


@given(st.integers(1, 200))
@settings(deadline=None)
def test_teams_are_neighbours_and_as_equal_in_size_as_can_be(world_size: int):
    teams = [Team.of(rank, world_size) for rank in range(world_size)]
    assert [team.first + team.place for team in teams] == list(range(world_size))
    borders = sorted({(team.first, team.first + team.num_ranks) for team in teams})
    assert [rank for first, last in borders for rank in range(first, last)] == list(range(world_size))
    sizes = [last - first for first, last in borders]
    assert max(sizes) <= TEAM_RANKS
    assert max(sizes) - min(sizes) <= 1


def shares_of(tokens: np.ndarray, num_ranks: int) -> list[np.ndarray]:
    return [Team(0, num_ranks, place).pick(tokens) for place in range(num_ranks)]


@given(
    st.integers(1, TEAM_RANKS), st.integers(0, 40), st.integers(0, 4), st.integers(1, 1200), st.integers(0, 2**32 - 1)
)
@settings(deadline=None)
def test_every_cell_of_a_step_is_dealt_once(num_ranks: int, num_cells: int, num_steps: int, longest: int, seed: int):
    tokens = np.random.default_rng(seed).integers(1, longest + 1, (num_steps, num_cells))
    shares = shares_of(tokens, num_ranks)
    for step in range(num_steps):
        dealt = np.concatenate([share[step] for share in shares])
        assert sorted(dealt.tolist()) == list(range(step * num_cells, (step + 1) * num_cells))
        assert all((np.diff(share[step]) > 0).all() for share in shares)
        sums = [tokens.ravel()[share[step]].sum() for share in shares]
        whole_rounds = num_cells % (2 * num_ranks) == 0
        assert max(sums) - min(sums) <= longest * (1 if whole_rounds else 2)
    sizes = [share.shape[1] for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_the_ranks_of_a_stream_have_about_as_many_tokens(corpus, world_size: int):
    options = StreamOptions(TokenizerConfig(), seed=3, cells_per_step=48, style="generative", ratios=(0.5,))
    stream = open_stream(corpus.store, "cells", options)
    for step in range(8):
        shares = [stream.read_step(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        tokens = np.array([share.num_tokens for share in shares])
        lengths = np.concatenate([share.lengths + share.unknown_lengths for share in shares])
        for team in (Team.of(rank, world_size) for rank in range(world_size)):
            assert np.ptp(tokens[team.first : team.first + team.num_ranks]) <= lengths.max()


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_fixed_minibatches_are_the_same_for_any_number_of_ranks(corpus, world_size: int):
    options = StreamOptions(TokenizerConfig(), seed=3, cells_per_step=48, cells_per_minibatch=8)
    stream = open_stream(corpus.store, "cells", options)
    for step in range(8):
        whole = stream.read_step(step, rank=0, world_size=1)
        wanted = [set(part.cell_ids.tolist()) for part in whole.split_minibatches()]
        shares = [stream.read_step(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        parts = [part for share in shares for part in share.split_minibatches()]
        assert [part.num_cells for part in parts] == [8] * 6
        assert [set(part.cell_ids.tolist()) for part in parts] == wanted
        assert [part.minibatches[0] for part in parts] == list(range(6))
        assert all((np.diff(part.lengths) >= 0).all() for part in parts)
        order = stream.order.cells(step, step + 1, rank=0, num_ranks=1, world_size=1)
        units = dict(zip(_ids(stream, order), order.units.ravel().tolist(), strict=True))
        most = max(len({units[cell] for cell in cells}) for cells in wanted)
        assert most == min(8, len(set(units.values()))), "minibatches are drawn from all row groups of the step"


def _ids(stream, order) -> list[int]:
    """Ids of the cells of an order."""
    cells = []
    for unit, place in zip(order.units.ravel().tolist(), order.places.ravel().tolist(), strict=True):
        cells.append(int(stream.read_unit(unit).cells.cell_ids[stream.members.rows(unit)[place]]))
    return cells
