"""Settings that convert counts to tokens."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Config

MOST_SOFT_BINS = 500  # whose positions fit into 16 bits


class TokenizerConfig(Config):
    """Settings that convert counts to tokens; saved with every model as its ``preprocessing.json``."""

    n_bins: int = Field(51, gt=1, lt=2**15, description="Number of expression bins; bin 0 means not expressed.")
    max_length: int = Field(
        1200, gt=1, description="Maximum number of tokens per cell, <cls> included; longer cells are sampled."
    )
    cls_value: float = Field(-2.0, description="Value of the <cls> token.")
    pad_value: float = Field(-2.0, description="Value of padding.")
    mask_value: float = Field(-1.0, description="Value that replaces a hidden expression value.")
    seed: int = Field(0, ge=0, description="Seed of tie-breaking and sampling.")
    ties: Literal["keyed", "global_rng"] = Field(
        "keyed",
        description="How ties between bins are broken: keyed: by (seed, cell); global_rng: by NumPy's global "
        "generator, in the order of cells and of their genes (ascending ids), as in the original.",
    )
    values: Literal["hard", "soft"] = Field(
        "hard",
        exclude_if=lambda values: values == "hard",  # which leaves the digests of older bundles as they were
        description="hard: whole bins, ties drawn at random; soft: the position among the bins, not rounded, in the "
        "middle of ties. Public weights need hard.",
    )
    depth_token: float | None = Field(
        None,
        gt=1,
        exclude_if=lambda total: total is None,
        description="Total count at which the value of a second token, <eoc>, is 1: it is the logarithm of the cell's "
        "total divided by that of this number; null: no such token, as public weights need.",
    )

    @property
    def num_special(self) -> int:
        """Number of tokens before a cell's genes: ``<cls>`` and perhaps that of its depth."""
        return 1 if self.depth_token is None else 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.values == "soft" and (self.n_bins > MOST_SOFT_BINS or self.ties == "global_rng"):
            raise ValueError(f"values soft needs n_bins up to {MOST_SOFT_BINS}, and ties keyed")
        if self.max_length <= self.num_special:
            raise ValueError("max_length leaves no room for a gene")
        return self
