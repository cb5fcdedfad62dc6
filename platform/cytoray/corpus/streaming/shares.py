"""Deal the cells of a step to ranks with about equal numbers of tokens, since all wait for the slowest.

Up to ``TEAM_RANKS`` neighbouring ranks are a team. A team has a slice of each step, whose row groups all of its ranks
read; it is dealt by length: the longest cell to the first rank, the next to the second, ..., and back from the last.
Minibatches of a fixed number of cells are dealt whole, and all ranks are one team.
"""

# T steps, B cells of a team's slice of a step, b cells of a rank's share of it

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from cytoray.tokens.cells import Int64

TEAM_RANKS = 4  # reading and decoding a cell takes a tenth of the time of filling it


@dataclass(frozen=True)
class Team:
    """``num_ranks`` ranks, from ``first`` on, seen by one of them: its ``place`` among them."""

    first: int
    num_ranks: int
    place: int

    @staticmethod
    def of(rank: int, world_size: int, *, whole: bool = False) -> Team:
        """Return the team of a rank; teams are as equal in size as possible. With ``whole`` all ranks are one."""
        if whole:
            return Team(0, world_size, rank)
        num_teams = -(-world_size // TEAM_RANKS)
        borders = [team * world_size // num_teams for team in range(num_teams + 1)]
        first, last = next(team for team in itertools.pairwise(borders) if team[0] <= rank < team[1])
        return Team(first, last - first, rank - first)

    def pick(self, tokens: Int64) -> Int64:
        """Return this rank's share: indices (T, b), ascending in each step, into the flattened ``tokens`` (T, B)."""
        turns = np.arange(tokens.shape[1]) % (2 * self.num_ranks)
        dealt_to = np.minimum(turns, 2 * self.num_ranks - 1 - turns)
        longest_first = np.argsort(-tokens, axis=1, kind="stable")
        mine = np.sort(longest_first[:, dealt_to == self.place], axis=1)
        starts: Int64 = np.arange(len(tokens), dtype=np.int64)[:, None] * tokens.shape[1]
        return starts + mine

    def pick_minibatches(self, num_cells: int, *, cells_per_minibatch: int) -> Int64:
        """Positions (b,) in a step of ``num_cells`` cells of this rank's minibatches, ascending; the team is all ranks.

        Minibatch m of M is the cells m, m + M, m + 2 M, ... of the step, whatever the number of ranks: neighbours in a
        step come from the same row group, and so end up in different minibatches.
        """
        num_minibatches = num_cells // cells_per_minibatch
        assert num_minibatches % self.num_ranks == 0, "every rank has as many minibatches"
        own = num_minibatches // self.num_ranks
        positions = np.arange(num_cells, dtype=np.int64)
        mine: Int64 = positions[(positions % num_minibatches) // own == self.place]
        return mine
