"""Settings of batches, of the queue and of the health of a replica."""

from __future__ import annotations

from pydantic import Field

from cytoray.config import Config


class BatchingConfig(Config):
    """How a replica combines the cells of requests into batches, and how much work it accepts."""

    target_batch_s: float = Field(
        0.2,
        gt=0,
        description="Predicted time in seconds that a batch may take: about as long as a small request waits beside "
        "large ones. A single cell may take longer, and so may a batch whose duration hardly depends on its cells.",
    )
    max_batch_tokens: int = Field(
        65536, ge=1, description="Maximum number of tokens of a batch of more than one cell, padding included."
    )
    max_wait_s: float = Field(
        1.0,
        gt=0,
        description="Time in seconds after which waiting cells come before those of other lengths that would fill a "
        "batch better.",
    )
    max_backlog_s: float = Field(
        30.0,
        gt=0,
        description="Maximum predicted time in seconds that a request would wait for others; beyond it requests are "
        "refused at once, with the code `overloaded`, and so are those that would wait for over half of their time.",
    )
    max_queued_tokens: int = Field(
        32 * 2**20, ge=1, description="Maximum number of tokens that wait; it limits the memory of the queue."
    )
    interactive_cells: int = Field(
        16, ge=0, description="Requests of at most so many cells are interactive, unless the caller says otherwise."
    )
    interactive_share: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Share of the model's time for interactive requests while others wait as well.",
    )
    parallel_batches: int = Field(
        1,
        ge=1,
        description="Batches in progress at the same time. 2 keep a GPU busy while the next batch is prepared; more "
        "than 1 is of no use on a CPU.",
    )
    stall_s: float = Field(
        60.0,
        gt=0,
        description="Time in seconds, beyond ten times the predicted one, after which a batch that has not finished "
        "makes the replica unhealthy.",
    )
