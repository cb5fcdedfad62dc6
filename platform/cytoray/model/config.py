"""The shape of the transformer and the few choices that change what it computes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Config


class ModelConfig(Config):
    """Everything needed to build a ``ScGPT``; the defaults are the released whole-human model's."""

    vocabulary_size: int = Field(gt=0, le=10_000_000, description="Rows of the gene table, special tokens included.")
    width: int = Field(512, gt=0, le=65_536, description="Embedding width D (scGPT's embsize).")
    num_heads: int = Field(8, gt=0, description="Attention heads; must divide width.")
    feedforward_width: int = Field(512, gt=0, le=262_144, description="Hidden width of the feed-forward (d_hid).")
    num_layers: int = Field(12, gt=0, le=1024, description="Transformer layers.")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Dropout on value embeddings and residual branches; attention weights have none."
    )
    num_labels: int = Field(0, ge=0, le=1_000_000, description="Classes of the cell classifier; 0 = no classifier.")
    num_classifier_layers: int = Field(
        3, gt=0, le=64, description="Linear layers of the classifier, the last included."
    )
    cell_embedding: Literal["cls", "mean"] = Field(
        "cls", description="A cell's embedding: hidden state of <cls>, or mean over its genes (no <cls>, no padding)."
    )
    unknown_out_proj: bool = Field(
        True,
        description="Attention's output projection on unknown genes; the released weights were trained with false.",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self
