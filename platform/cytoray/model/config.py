"""The shape of the transformer and the few choices that change what it computes."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config

AttentionBackend = Literal["auto", "cell", "sdpa", "varlen", "flex"]
Pooling = Literal["cls", "mean", "weighted"]
NumberLoss = Literal["squared", "huber"]  # of a head that predicts numbers
# The original takes any class of torch.nn by name; these are its element-wise ones that need no arguments.
DecoderActivation = Literal[
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid",
    "Mish", "PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink",
]  # fmt: skip


class ModelConfig(Config):
    """Everything needed to build a ``ScGPT``; the defaults are those of the released whole-human model."""

    vocabulary_size: int = Field(gt=0, le=10_000_000, description="Rows of the gene table, special tokens included.")
    width: int = Field(512, gt=0, le=65_536, description="Embedding width D (scGPT's embsize).")
    num_heads: int = Field(8, gt=0, description="Attention heads; must divide width.")
    feedforward_width: int = Field(512, gt=0, le=262_144, description="Hidden width of the feed-forward (d_hid).")
    num_layers: int = Field(12, gt=0, le=1024, description="Transformer layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout on value embeddings and residual branches.")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on attention weights; the original uses the same as elsewhere (0.2)."
    )
    attention_backend: AttentionBackend = Field(
        "auto",
        description="How attention is computed: cell (cell by cell, no mask), sdpa (padded, masked), varlen or flex "
        "(GPU, packed); auto chooses by device and length. Results agree to rounding.",
    )
    value_style: Literal["continuous", "category", "scaling"] = Field(
        "continuous",
        description="How a value becomes a vector: by a small network, by a table of bins, or as a factor of the gene.",
    )
    num_value_bins: int = Field(
        0, ge=0, le=2**15, description="Rows of the table of bins with value_style category: n_bins + 2; else 0."
    )
    token_norm: Literal["none", "batch", "domain"] = Field(
        "none",
        description="Batch norm on the sum of a token's embeddings: none, one for all cells, or one for each batch "
        "label without weights (DSBN).",
    )
    norm_counts_padding: bool = Field(
        False, description="Quirk of the original: padding counts in the statistics of token_norm; for its parity only."
    )
    num_batch_labels: int = Field(
        0, ge=0, le=100_000, description="Number of experimental batches of token_norm domain, the decoders or the "
        "discriminator; 0 = none."
    )  # fmt: skip
    decoders_see_batch: bool = Field(False, description="Whether the expression decoders take the batch label.")
    batch_discriminator: bool = Field(False, description="Whether the model has an adversarial batch classifier (DAB).")
    num_modalities: int = Field(
        0, ge=0, le=1000, description="Rows of the table of modalities, special tokens included; 0 = one modality."
    )
    num_perturbation_flags: int = Field(
        0, ge=0, le=100, description="Rows of the table of perturbation flags (3 in the original); 0 = none."
    )
    expression_decoder: Literal["value", "affine"] = Field(
        "value", description="Predict expression itself, or factor and offset of the token's value (perturbation)."
    )
    adaptive_bias: bool = Field(
        False, description="With the affine decoder: the offset is a multiple of the cell's mean value above zero."
    )
    decoder_activation: DecoderActivation | None = Field(
        None,
        description="With the affine decoder: activation on factor and offset, before adaptive_bias; a class of "
        "torch.nn.",
    )
    zero_probability: bool = Field(
        False, description="Whether the decoders also predict the probability of not being zero (explicit_zero_prob)."
    )
    cell_conditioned_decoder: Literal["none", "inner product", "inner product, detach", "concat query", "sum query"] = (
        Field("inner product", description="Decoder of a gene's expression from the cell embedding (GEPC/MVC).")
    )
    generative: bool = Field(
        True, description="Whether the model has a flag for unknown genes (generative pretraining)."
    )
    num_labels: int = Field(0, ge=0, le=1_000_000, description="Classes of the cell classifier; 0 = no classifier.")
    num_classifier_layers: int = Field(
        3, gt=0, le=64, description="Linear layers of the classifier, the last included (n_layers_cls)."
    )
    num_discriminator_layers: int = Field(
        3, gt=0, le=64, description="Linear layers of the discriminator, the last included."
    )
    cell_embedding: Pooling = Field(
        "cls",
        description="A cell's embedding: hidden state of its first token, <cls>; mean over its genes; or their sum "
        "weighted by value, of length 1.",
    )
    pooling_counts_padding: bool = Field(
        False,
        description="Quirk of the original: mean and weighted pool <cls> and padding too; for its parity only.",
    )
    unknown_out_proj: bool = Field(
        True,
        description="Attention's output projection on unknown genes; the released weights were trained with false.",
    )

    @property
    def condition_width(self) -> int:
        """Width of the expression decoder's input: D, or 2 D with the batch label or modality."""
        return self.width * (2 if self.decoders_see_batch or self.num_modalities else 1)

    @property
    def needed_conditions(self) -> tuple[str, ...]:
        """Further inputs that the model needs of each cell, beside genes and values."""
        needs = {
            "batch labels": self.token_norm == "domain",
            "modalities": self.num_modalities > 0,
            "perturbation flags": self.num_perturbation_flags > 0,
        }
        return tuple(name for name, needed in needs.items() if needed)

    @property
    def needed_to_embed(self) -> tuple[str, ...]:
        """Those of ``needed_conditions`` that cell embeddings and labels depend on; decoders alone see modalities."""
        return tuple(name for name in self.needed_conditions if name != "modalities")

    @field_validator("decoder_activation", mode="before")
    @classmethod
    def _activation_by_name(cls, name: Any) -> Any:
        """Find the class of torch.nn whatever the case: ``relu`` is ``ReLU``."""
        classes = {known.lower(): known for known in get_args(DecoderActivation)}
        return classes.get(name.lower(), name) if isinstance(name, str) else name

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if (self.value_style == "category") != (self.num_value_bins > 0):
            raise ValueError("value_style category and num_value_bins go together")
        wants_labels = self.token_norm == "domain" or self.decoders_see_batch or self.batch_discriminator
        if wants_labels and not self.num_batch_labels:
            raise ValueError(
                "token_norm domain, decoders_see_batch and batch_discriminator need num_batch_labels above 0"
            )
        if self.attention_dropout and self.attention_backend in ("varlen", "flex"):
            raise ValueError(f"attention_backend {self.attention_backend} has no attention_dropout; use sdpa or cell")
        if self.zero_probability and self.cell_conditioned_decoder in ("concat query", "sum query"):
            raise ValueError(f"cell_conditioned_decoder {self.cell_conditioned_decoder} has no zero_probability")
        if self.adaptive_bias and self.expression_decoder != "affine":
            raise ValueError("adaptive_bias needs expression_decoder affine")
        if self.decoder_activation is not None and self.expression_decoder != "affine":
            raise ValueError("decoder_activation needs expression_decoder affine")
        return self
