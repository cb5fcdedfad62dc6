"""Configuration of a training run: data, model, optimisation, workers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config, Location
from cytoray.model.config import ModelConfig
from cytoray.runs import NAME
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tracking import TrackingConfig
from cytoray.tracking.places import lasting_path

CORPUS = r"^[A-Za-z0-9][A-Za-z0-9._-]*(@[1-9][0-9]*)?$"  # NAME is its latest version, NAME@VERSION an earlier one


class ShapeConfig(Config):
    """Size of the transformer; the vocabulary and the labels come from the corpus."""

    width: int = Field(512, gt=0, description="Embedding width D.")
    num_heads: int = Field(8, gt=0, description="Attention heads.")
    feedforward_width: int = Field(512, gt=0, description="Hidden width of the feed-forward.")
    num_layers: int = Field(12, gt=0, description="Transformer layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout on values and residual branches.")
    cell_embedding: Literal["cls", "mean"] = Field("cls", description="Pooling of a cell.")

    def build(self, *, vocabulary_size: int, num_labels: int) -> ModelConfig:
        """Return the full model configuration."""
        return ModelConfig(vocabulary_size=vocabulary_size, num_labels=num_labels, **self.model_dump())


class OptimizerConfig(Config):
    """AdamW with warm-up and cosine decay, a pure function of the step."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    final_share: float = Field(0.0, ge=0, le=1, description="Learning rate at the last step, as a share of the peak.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's averages.")
    epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    gradient_clipping: float = Field(1.0, gt=0, description="Bound on the global gradient norm.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate per layer below the heads, which have the full one."
    )
    freeze_layers: int = Field(
        0, ge=0, description="Number of first transformer layers that are frozen, with the gene embeddings."
    )


class TrainConfig(Config):
    """Length of the run, size of a step, checkpoints."""

    num_steps: int = Field(gt=0, description="Optimiser steps.")
    cells_per_step: int = Field(64, gt=0, description="Cells per optimiser step, over all workers.")
    accumulation: int = Field(1, gt=0, description="Minimum number of micro-batches per worker and step.")
    micro_batch_tokens: int = Field(
        65_536, gt=0, description="Maximum real tokens per micro-batch; a larger share is split further."
    )
    log_every: int = Field(
        10,
        gt=0,
        description="Steps whose losses are fetched from the device and journalled together; fewer if they take long.",
    )
    checkpoint_every: int = Field(100, gt=0, description="Steps between checkpoints; the last step always has one.")
    keep_checkpoints: int = Field(
        2, gt=0, description="Newest committed checkpoints kept, besides the best of a run with validation."
    )
    seed: int = Field(42, ge=0, description="Seed of order, unknown ratios, initial weights and dropout.")
    ledger: bool = Field(False, description="Record beside the checkpoints which cells each step used.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep a running average of the weights, which is validated and exported."
    )
    max_skipped_steps: int = Field(
        3,
        ge=0,
        description="Consecutive steps that may be skipped because a gradient is not finite; one more ends the run.",
    )


class ValidationConfig(Config):
    """Held-out cells: never trained on, and evaluated at each checkpoint, always in the same way."""

    select: str = Field(
        min_length=1, description="Expression over obs that holds cells out, by donor or data set: donor == 'D7'."
    )
    max_cells: int = Field(512, gt=0, description="Maximum number of held-out cells used.")
    seed: int = Field(0, ge=0, description="Seed of the choice of cells and of their hidden genes.")
    patience: int | None = Field(
        None, ge=1, description="Number of checkpoints without a lower validation error after which the run ends."
    )


class WorkersConfig(Config):
    """The processes that train."""

    num_workers: int | tuple[int, int] = Field(
        2, description="Ray Train workers; [min, max] continues with fewer when some are lost."
    )
    use_gpu: bool = Field(False, description="One GPU per worker.")
    cpus_per_worker: float = Field(0.5, gt=0, description="Logical CPUs reserved in Ray per worker.")
    threads_per_worker: int = Field(1, gt=0, description="Torch threads per worker.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimiser, 2 gradients too, 3 weights too."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Compute precision; the optimiser keeps fp32.")
    max_failures: int = Field(2, ge=0, description="Restarts from the last checkpoint before giving up.")
    collective_timeout_s: int = Field(
        300,
        gt=0,
        description="Limit on a collective, and on writing a checkpoint part; when exceeded, workers restart.",
    )

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> Self:
        if not self.sizes or self.sizes[0] < 1:
            raise ValueError("num_workers must be a number above 0 or [min, max]")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("bf16 needs zero_stage 1, 2 or 3, which keep fp32 weights beside it")
        return self

    @property
    def sizes(self) -> range:
        """The allowed numbers of workers."""
        if isinstance(self.num_workers, int):
            return range(self.num_workers, self.num_workers + 1)
        return range(self.num_workers[0], self.num_workers[1] + 1)

    @property
    def most(self) -> int:
        """The maximum number of workers."""
        return self.sizes[-1]


class WholeCellConfig(Config):
    """Whole-cell decoding (WCED): the cell embedding of a thinned cell predicts the expression of the whole one."""

    weight: float = Field(1.0, gt=0, description="Weight of the loss.")
    masked_weight: float = Field(
        1.0, ge=0, description="Weight of the masked expression beside it; 0: the hidden genes are not predicted."
    )
    num_queries: int = Field(512, ge=2, description="Genes to decode per cell: expressed ones, and as many zeros.")
    thinning: tuple[float, float] = Field(
        (0.2, 0.8), description="Smallest and largest share of a cell's molecules that the encoder sees."
    )
    min_share: float = Field(
        0.005, ge=0, lt=1, description="Genes that a smaller share of cells expresses are not decoded."
    )
    clip: float = Field(5.0, gt=0, description="Bound on the targets, in standard deviations of the gene.")
    statistics_cells: int = Field(
        20_000, gt=1, description="Maximum number of training cells from which means and deviations are computed."
    )

    @model_validator(mode="after")
    def _thinning_is_a_range(self) -> Self:
        low, high = self.thinning
        if not 0 < low <= high <= 1:
            raise ValueError("thinning must be two shares above 0 and up to 1, the smaller one first")
        return self


class GenerativeConfig(Config):
    """The pretraining objective: predict the expression of hidden genes from the rest of their cell."""

    style: Literal["generative", "masked"] = Field(
        "generative",
        description="generative: hidden genes see the known ones and themselves; masked: their values are replaced.",
    )
    unknown_ratios: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75), min_length=1, description="Shares of genes to predict from the rest; one is drawn per step."
    )
    second_pass_after: int | None = Field(
        0,
        ge=0,
        description="From this step, also predict the genes from the cell embedding alone (second pass); null: never.",
    )
    whole_cell: WholeCellConfig | None = Field(
        None,
        exclude_if=lambda whole_cell: whole_cell is None,  # which leaves the fingerprints of older runs as they were
        description="Decode whole cells from the embeddings of thinned ones, in place of the prediction of hidden "
        "genes from the cell embedding and of the second pass; null: do not.",
    )

    def has_second_pass(self, step: int) -> bool:
        """Whether the objective has two passes at this step."""
        return self.style == "generative" and self.second_pass_after is not None and step >= self.second_pass_after

    @model_validator(mode="after")
    def _ratios_are_shares(self) -> Self:
        if any(not 0 < ratio < 1 for ratio in self.unknown_ratios):
            raise ValueError("unknown_ratios must lie between 0 and 1")
        if self.whole_cell is not None and self.style != "generative":
            raise ValueError("whole_cell needs style generative")
        return self


class RunConfig(Config):
    """Settings of every training run."""

    places: ClassVar[frozenset[str]] = frozenset({"store", "tracking", "allow_changes"})
    # Keys that may differ when a run continues, since they change results by no more than the rounding of sums.
    free: ClassVar[frozenset[str]] = frozenset(
        {
            "workers.cpus_per_worker",
            "workers.threads_per_worker",
            "workers.zero_stage",
            "workers.max_failures",
            "workers.collective_timeout_s",
            "train.log_every",
            "train.checkpoint_every",
            "train.keep_checkpoints",
            "train.ledger",
            "train.max_skipped_steps",
        }
    )
    # Keys that may differ as well, since a run must survive the loss of a worker, but that decide which cells share a
    # micro-batch. Dropout masks are drawn once per micro-batch, so with dropout another value draws other masks.
    redrawing: ClassVar[frozenset[str]] = frozenset(
        {"workers.num_workers", "train.accumulation", "train.micro_batch_tokens"}
    )

    # Keys that name files; their content is part of what the run is, wherever the file is.
    inputs: ClassVar[frozenset[str]] = frozenset()

    store: Location = Field(description="Root of everything cytoray keeps: s3://bucket/prefix or a local folder.")
    run: str = Field(pattern=NAME, description="Name of the run; the same name continues the same run.")
    corpus: str = Field(pattern=CORPUS, description="The committed corpus to train on: NAME, or NAME@VERSION.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="From counts to tokens.")
    train: TrainConfig = Field(description="Steps and cells.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimisation.")
    workers: WorkersConfig = Field(WorkersConfig(), description="Processes.")
    validation: ValidationConfig | None = Field(None, description="Held-out cells, evaluated at each checkpoint.")
    tracking: TrackingConfig = Field(description="MLflow and the run journal.")
    allow_changes: tuple[str, ...] = Field(
        (), description="Keys that may differ from those of the run so far, such as optimizer.learning_rate."
    )
    kind: str = Field(description="Which stage this file configures.")

    @field_validator("store")
    @classmethod
    def _store_outlives_the_job(cls, store: str) -> str:
        return store if "://" in store else lasting_path(store)

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        if self.train.cells_per_step < self.workers.most:
            raise ValueError(
                f"train.cells_per_step ({self.train.cells_per_step}) leaves some of the "
                f"{self.workers.most} workers without a cell"
            )
        if self.train.ema_decay is not None and self.workers.zero_stage == 3:
            raise ValueError("train.ema_decay needs whole weights on every worker: workers.zero_stage 0, 1 or 2")
        return self

    @property
    def has_dropout(self) -> bool:
        """Whether dropout masks are drawn; assumed if the model comes from elsewhere."""
        return True


class PretrainConfig(RunConfig):
    """Pretraining on a corpus."""

    kind: Literal["pretrain"] = Field("pretrain", description="Which stage this file configures.")
    model: ShapeConfig = Field(ShapeConfig(), description="Size of the transformer.")
    objective: GenerativeConfig = Field(GenerativeConfig(), description="Pretraining objective.")

    @property
    def has_dropout(self) -> bool:
        """Whether dropout masks are drawn."""
        return self.model.dropout > 0
