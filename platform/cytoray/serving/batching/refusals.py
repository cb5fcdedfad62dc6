"""Errors about requests that are not computed: too much work for the time that there is."""

from __future__ import annotations

import math

from cytoray.errors import RequestError, ServingError


def overloaded(wait_s: float, *, excess: float) -> RequestError:
    """Build the error of a request that would wait for too long; ``excess``: by so many seconds."""
    retry_after_s = max(1, math.ceil(excess))
    return RequestError(
        f"The service is busy: this request would wait for about {wait_s:.0f} s.",
        remedy=f"Send it again in {retry_after_s} s, or send fewer cells.",
        code="overloaded",
        retry_after_s=retry_after_s,
    )


def queue_full(wait_s: float) -> RequestError:
    """Build the error of a request for which the queue has no memory."""
    retry_after_s = max(1, math.ceil(wait_s / 2))
    return RequestError(
        "The service is busy: its queue is full.",
        remedy=f"Send the request again in {retry_after_s} s.",
        code="overloaded",
        retry_after_s=retry_after_s,
    )


def too_long(own_s: float, left_s: float, *, num_cells: int) -> RequestError:
    """Build the error of a request that takes longer than its deadline allows, however free the model is."""
    fewer = max(1, int(0.8 * num_cells * left_s / own_s))
    remedy = f"Send at most {fewer} such cells in one request." if fewer < num_cells else "Try again later."
    return RequestError(
        f"This request would take about {own_s:.3g} s, and its answer is due in {max(left_s, 0):.3g} s.",
        remedy=remedy,
        code="deadline_exceeded",
    )


def given_up(waited_s: float) -> RequestError:
    """Build the error of a request that was given up in the queue."""
    return RequestError(
        f"After waiting for {waited_s:.3g} s the request cannot be answered within its deadline.",
        remedy="Send fewer cells in one request, or try again later.",
        code="deadline_exceeded",
    )


def stopped(why: str) -> ServingError:
    """Build the error of a request to a replica that does not answer any more."""
    return ServingError(why, remedy="Send the request again.")
