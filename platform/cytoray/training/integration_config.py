"""Settings of batch integration, in a module without torch: configuration files are checked before it is imported."""

from __future__ import annotations

from pydantic import Field

from cytoray.config import Config


class IntegrationConfig(Config):
    """Settings of batch integration; the defaults are those of scGPT's recipe."""

    batch_key: str = Field(description="Column of obs with the experimental batch; cells without one are skipped.")
    mask_ratio: float = Field(0.4, gt=0, lt=1, description="Share of the panel's genes hidden in each cell.")
    cells_per_minibatch: int = Field(
        64,
        gt=1,
        description="Cells whose embeddings are compared, and normalised together; train.cells_per_step must be a "
        "multiple of it times the number of workers. train.accumulation and train.micro_batch_tokens have no effect.",
    )
    similarity_threshold: float = Field(0.8, ge=0, lt=1, description="Cosine from which cells are pushed away (ECS).")
    similarity_weight: float = Field(10.0, ge=0, description="Weight of elastic cell similarity (ECS).")
    adversarial_weight: float = Field(1.0, ge=0, description="Weight of the adversarial batch classifier (DAB).")
    adversarial_ramp: bool = Field(
        True,
        description="Whether that weight grows from 0 as 2 / (1 + exp(-10 p)) - 1 with the share p of steps done; "
        "false: constant, as in the original.",
    )
