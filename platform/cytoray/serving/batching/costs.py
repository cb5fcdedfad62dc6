"""Predict how long a batch takes, as a + b * tokens + c * squared tokens, fitted to the batches that were measured.

The squares are those of the tokens of each cell, the work of attention. Because the prediction is linear, the
backlog of a queue follows from the sums of its tokens and squares.
"""

# N measured batches

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Float64 = npt.NDArray[np.float64]
WINDOW = 16  # batches remembered of each length of cells
HALF_LIFE, LEAST_WEIGHT = 4, 1e-3  # in batches: a change of speed counts soon, other lengths are not forgotten
RIDGE = np.array([1e-2, 1e-4, 1e-4])  # a single batch says that cells take time, not that each batch does
FIRST_TOKENS = 4096  # of the first batch of a kind: one minibatch of the predictor
GROWTH = 2  # a batch is at most so many times as large as the largest one measured
FAMILIAR_S = 0.5  # of work that is as fast as predicted, which a pace starts from
KEPT = 0.9  # share of the batches before that counts along with one
SLOWEST = 4
FRESH_S = 10.0  # a prediction without a measurement for so long is not used to refuse anything


class Coefficients(NamedTuple):
    """The parameters of a prediction, in seconds; none is negative."""

    fixed: float
    per_token: float
    per_square: float


UNKNOWN = Coefficients(1e-3, 1e-6, 0.0)  # optimistic: a model is tried before its requests are refused


class Sample(NamedTuple):
    """A measured batch."""

    tokens: int
    squares: int
    seconds: float
    number: int = 0  # of batches before it


class CostModel:
    """The cost of one kind of work, learned while it is done."""

    def __init__(self, prior: Coefficients = UNKNOWN) -> None:
        self.prior = self.coefficients = prior
        self.is_measured = False
        self._measured_at = float("-inf")
        self._largest = FIRST_TOKENS // GROWTH
        self._ceiling = 2**62  # tokens that fit into memory
        self._samples: dict[int, deque[Sample]] = {}
        self._unused = self._used = 0  # samples since the last fit, and in it
        self._number = 0

    @property
    def most_tokens(self) -> int:
        """The tokens that the next batch may have: an unknown model is tried with few."""
        return min(GROWTH * self._largest, self._ceiling)

    def predict(self, tokens: int, squares: int) -> float:
        """Predict the seconds of a batch."""
        fixed, per_token, per_square = self.coefficients
        return fixed + per_token * tokens + per_square * squares

    def marginal(self, tokens: int, squares: int) -> float:
        """Predict by how many seconds cells prolong a batch."""
        _, per_token, per_square = self.coefficients
        return per_token * tokens + per_square * squares

    def is_fresh(self, now: float) -> bool:
        """Whether the prediction rests on recent measurements."""
        return now - self._measured_at <= FRESH_S

    def learn(self, sample: Sample, *, bucket: int, now: float) -> None:
        """Learn from a batch; ``bucket``: that of its longest cell."""
        self._number += 1
        self._samples.setdefault(bucket, deque(maxlen=WINDOW)).append(sample._replace(number=self._number))
        self._largest = max(self._largest, sample.tokens)
        self._measured_at, self.is_measured = now, True
        self._unused += 1
        if 8 * self._unused >= self._used:  # fitting takes about 0.1 ms, a batch sometimes little more
            rows = [row for samples in self._samples.values() for row in samples]
            self.coefficients = fit(np.array(rows, np.float64), prior=self.prior)
            self._unused, self._used = 0, len(rows)

    def shrink(self, tokens: int) -> None:
        """Limit batches to half of ``tokens``, which did not fit into memory."""
        self._ceiling = min(self._ceiling, max(tokens // 2, 1))


class Pace:
    """Seconds that pass for each predicted second of cells, while there is work.

    Batches take time whatever they hold, parsing and answering share the processor with the model, and several batches
    may run at the same time.
    """

    def __init__(self, *, parallel_batches: int) -> None:
        self._least = 1 / parallel_batches
        self._passed, self._predicted = FAMILIAR_S * self._least, FAMILIAR_S
        self._since: float | None = None  # when the last batch ended, while there is work

    @property
    def value(self) -> float:
        """The ratio; between that of a perfect prediction and ``SLOWEST`` times it, as a machine may be suspended."""
        return min(max(self._passed / self._predicted, self._least), SLOWEST * self._least)

    def begin(self, now: float) -> None:
        """Count from ``now``, unless there was work before."""
        self._since = now if self._since is None else self._since

    def count(self, predicted_s: float, now: float, *, is_busy: bool) -> None:
        """Count a batch that has ended; ``is_busy``: whether there is more work."""
        passed = 0.0 if self._since is None else now - self._since
        most = 2 * SLOWEST * self._least * max(predicted_s, FAMILIAR_S)
        self._passed = KEPT * self._passed + (1 - KEPT) * FAMILIAR_S * self._least + min(passed, most)
        self._predicted = KEPT * self._predicted + (1 - KEPT) * FAMILIAR_S + predicted_s
        self._since = now if is_busy else None


class Costs:
    """The cost models of all kinds of work; one that was never measured is taken to cost what the costliest does."""

    def __init__(self) -> None:
        self._models: dict[Hashable, CostModel] = {}

    def of(self, kind: Hashable) -> CostModel:
        """Return the model of a kind."""
        if kind not in self._models:
            self._models[kind] = CostModel(self._costliest())
        return self._models[kind]

    def most_fixed(self) -> float:
        """Return the seconds of an empty batch of the kind that takes longest."""
        return max((model.coefficients.fixed for model in self._models.values()), default=0.0)

    def learn(self, kind: Hashable, sample: Sample, *, bucket: int, now: float) -> None:
        """Learn from a batch of a kind."""
        model = self.of(kind)
        is_first = not model.is_measured
        model.learn(sample, bucket=bucket, now=now)
        if is_first:
            for other in self._models.values():
                if not other.is_measured:
                    other.prior = other.coefficients = self._costliest()

    def _costliest(self) -> Coefficients:
        measured = [model.coefficients for model in self._models.values() if model.is_measured]
        return max(measured, key=lambda found: found.per_token + 1000 * found.per_square, default=UNKNOWN)


def fit(samples: Float64, *, prior: Coefficients) -> Coefficients:
    """Fit to samples (N, 4): weighted least squares of relative errors, near ``prior`` if samples are few.

    Relative errors, as absolute ones would neglect small batches and follow a single slow one.
    """
    tokens, squares, seconds, numbers = samples.T
    weights = np.sqrt(np.maximum(0.5 ** ((numbers.max() - numbers) / HALF_LIFE), LEAST_WEIGHT))
    rows = np.stack([np.ones_like(tokens), tokens, squares], axis=1) / np.maximum(seconds, 1e-6)[:, None]
    scale = rows.mean(axis=0)
    ridge = np.sqrt(RIDGE)
    left = np.vstack([rows / scale * weights[:, None], np.diag(ridge)])
    right = np.concatenate([weights, ridge * np.array(prior) * scale])
    solution, _ = nnls(left, right)
    return Coefficients(*(solution / scale).tolist())
