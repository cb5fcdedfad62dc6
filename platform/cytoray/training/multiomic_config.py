"""Settings of multi-omic training, in a module without torch: configuration files are checked before it is imported."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from cytoray.config import Config
from cytoray.tokens.features import RNA


class ModalityTokensConfig(Config):
    """A further modality of the corpus whose features become tokens."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Its name in the corpus, such as protein or peaks.")
    max_tokens: int = Field(
        512,
        ge=1,
        description="Maximum number of its tokens per cell. If it has no more features, each cell has all of them, "
        "zeros included; of larger modalities those above zero, sampled anew in each epoch if they are more.",
    )


class MultiomicConfig(Config):
    """Settings of multi-omic training; the defaults are those of scGPT's recipe where it has the setting."""

    modalities: tuple[ModalityTokensConfig, ...] = Field(
        min_length=1, description="Further modalities; cells in which one was not measured have no tokens of it."
    )
    mask_ratio: float = Field(0.4, gt=0, lt=1, description="Share of each modality's tokens hidden in each cell.")
    hide_whole: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of cells of which one modality, drawn (the genes are one too), is hidden as a whole, so "
        "that the model learns to predict it from the others.",
    )
    feature_weight: float = Field(
        1.0, ge=0, description="Weight of each further modality's losses beside those of the genes."
    )
    batch_key: str | None = Field(
        None,
        description="Column of obs with the experimental batch: decoders see it, and an adversarial classifier (DAB) "
        "removes it from the cell embedding; cells without one are skipped. Default: no batches.",
    )
    adversarial_weight: float = Field(1.0, ge=0, description="Weight of the adversarial batch classifier (DAB).")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [RNA, *(modality.name for modality in self.modalities)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"modality {twice!r} occurs twice (the genes are called {RNA})")
        return self
