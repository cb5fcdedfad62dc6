"""``scGPTConfig``: the arguments of the model card, and the source of the weights; every wrong argument is named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from cytoray.config import Config
from cytoray.errors import ConfigError

EmptyCells = Literal["nan", "error"]
ConfigType = TypeVar("ConfigType", bound=Config)


class scGPTConfig(Config):
    """How cells become embeddings. With ``model``, arguments that are left out take the values of the weights.

    Raises ConfigError that names each wrong argument and what is allowed.
    """

    model: str | Path | None = Field(
        None,
        description="Weights: a bundle's or public checkpoint's folder, the s3:// URI of either, models:/NAME@ALIAS, "
        "models:/NAME/VERSION or run:NAME; None: random weights, useful for trials only.",
    )
    store: str | Path | None = Field(None, description="Root of everything cytoray keeps, for a run:NAME.")
    tracking_uri: str | None = Field(
        None, description="MLflow server of a models:/ name; default: $MLFLOW_TRACKING_URI."
    )
    cache_folder: str | Path = Field(
        "~/.cache/cytoray/models", description="Local folder for bundles from MLflow or s3://."
    )
    batch_size: int = Field(24, ge=1, description="Maximum number of cells in a minibatch; no result depends on it.")
    emb_mode: Literal["cell", "cls", "gene"] = Field(
        "cell",
        description="Kind of embedding: mean over the cell's genes, hidden state of <cls>, or one vector per gene.",
    )
    nlayers: int = Field(12, ge=1, le=1024, description="Transformer layers.")
    nheads: int = Field(8, ge=1, description="Attention heads; must divide embsize.")
    embsize: int = Field(512, ge=1, le=65_536, description="Embedding width D.")
    d_hid: int = Field(512, ge=1, le=262_144, description="Hidden width of the feed-forward.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of random weights and in fine-tuning.")
    n_layers_cls: int = Field(3, ge=1, le=64, description="Linear layers of the fine-tuning head.")
    pad_token: Literal["<pad>"] = Field("<pad>", description="The only supported padding token.")
    mask_value: float = Field(-1.0, allow_inf_nan=False, description="Value that stands in for a hidden expression.")
    pad_value: float = Field(-2.0, allow_inf_nan=False, description="Value of padding; with random weights of <cls>.")
    max_length: int = Field(
        1200,
        ge=2,
        description="Maximum number of tokens per cell in training, <cls> included; longer cells are sampled.",
    )
    inference: Literal["by_gene", "drawn"] = Field(
        "by_gene",
        description="Tokens of a cell at inference. by_gene: ties go by gene, and all genes are used up to "
        "inference_length; drawn: ties and samples are drawn by binning_seed and the content of the cell.",
    )
    inference_length: int = Field(8192, ge=2, description="Maximum tokens of a cell with inference by_gene.")
    binning_seed: int = Field(123, ge=0, description="Seed of tie breaking and sampling.")
    ties: Literal["keyed", "global_rng"] = Field(
        "keyed",
        description="How ties between bins are broken: by binning_seed and cell, or as in the original, by NumPy's "
        "global generator when the data are processed.",
    )
    empty_cells: EmptyCells = Field("nan", description="Cells without a known gene: NaN in all results, or an error.")
    seed: int = Field(0, ge=0, description="Seed of random weights, of a new head and of training.")
    device: str = Field(
        "cpu",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="cpu, cuda, cuda:N, mps, or auto: a GPU if there is one, else the CPU.",
    )
    world_size: int = Field(8, ge=1, description="Accepted as in helical, without effect: this face is one process.")
    accelerator: bool = Field(False, description="Accepted as in helical, without effect.")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise mistakes(error, type(self)) from None

    @property
    def given(self) -> frozenset[str]:
        """The arguments that the user set."""
        return frozenset(self.model_fields_set)

    @field_validator("device", mode="before")
    @classmethod
    def _named_device(cls, device: Any) -> Any:
        """Accept a ``torch.device`` as well as its name."""
        return str(device) if type(device).__name__ == "device" else device

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.embsize % self.nheads:
            raise ValueError(f"embsize {self.embsize} is not a multiple of nheads {self.nheads}")
        return self


def checked(kind: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Validate ``values`` as ``kind``; raise ConfigError that names each wrong argument."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise mistakes(error, kind) from None


def mistakes(error: ValidationError, kind: type[Config]) -> ConfigError:
    """Combine all mistakes in one error: argument, allowed values, given value."""
    lines, arguments = [], []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        arguments.append(name)
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            lines.append(f"unknown argument {name}" + (f" (did you mean {near[0]}?)" if near else ""))
        else:
            text = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {text}, got {detail['input']!r}" if name else text)
    meant = [f"{name}: {kind.model_fields[name].description}" for name in arguments if name in kind.model_fields]
    unknown = any(name and name not in kind.model_fields for name in arguments)
    remedy = f"Arguments: {', '.join(kind.model_fields)}." if unknown else " ".join(dict.fromkeys(meant))
    return ConfigError(f"{kind.__name__}: {'; '.join(lines)}.", remedy=remedy, arguments=arguments)
