"""``args.json`` of the public scGPT layout: read, checked against the tensors, and written."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from cytoray.config import Config
from cytoray.errors import ModelError
from cytoray.model.config import ModelConfig
from cytoray.model.public_layout import GENES, LAYERS, AttentionLayout
from cytoray.tokens.tokenizer import TokenizerConfig

_DEFAULT_HEADS = 8  # of every released model
# Keys of the released file that tell of a training run, not of the model: null where nobody says more.
_RUN_KEYS = (
    "data_source", "save_dir", "load_model", "n_hvg", "valid_size_or_ratio", "dist_backend", "grad_accu_steps",
    "dist_url", "mask_ratio", "vocab_path", "rank", "batch_size", "eval_batch_size", "epochs", "lr",
    "scheduler_interval", "scheduler_factor", "warmup_ratio_or_step", "fp16", "log_interval", "save_interval",
    "world_size", "distributed", "local_rank", "gpu",
)  # fmt: skip


class Extras(Config):
    """What ``args.json`` has no key for, written by cytoray under the key ``cytoray``."""

    model: dict[str, Any] = Field({}, description="Fields of ModelConfig that differ from what a reader infers.")
    tokenizer: dict[str, Any] = Field({}, description="Likewise of TokenizerConfig.")
    labels: tuple[str, ...] = Field((), description="Names of the classifier's outputs.")


class PublicArgs(Config):
    """The keys of ``args.json`` that a reader uses; null and absent are one, other keys are passed over."""

    model_config = ConfigDict(extra="ignore")

    embsize: int | None = Field(None, gt=0, description="Width D.")
    nheads: int | None = Field(None, gt=0, description="Attention heads.")
    d_hid: int | None = Field(None, gt=0, description="Width of the feed-forward.")
    nlayers: int | None = Field(None, gt=0, description="Transformer layers.")
    n_layers_cls: int | None = Field(None, gt=0, le=64, description="Linear layers of the classifier.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout.")
    pad_token: Literal["<pad>"] | None = Field(None, description="The only padding token there is.")
    n_bins: int | None = Field(None, gt=1, lt=2**15, description="Expression bins.")
    max_seq_len: int | None = Field(None, gt=1, description="Most tokens of a cell.")
    pad_value: float | None = Field(None, allow_inf_nan=False, description="Value of padding.")
    mask_value: float | None = Field(None, allow_inf_nan=False, description="Value of a hidden gene.")
    input_style: str | None = Field(None, description="What values are; binned in all released models.")
    input_emb_style: Literal["continuous", "category", "scaling"] | None = Field(None, description="Value encoder.")
    cytoray: Extras = Field(Extras(), description="What the other keys cannot say.")

    def tokenizer_config(self, *, file: Path) -> TokenizerConfig:
        """How this model's cells become tokens; ``<cls>`` carries ``pad_value``, as in pretraining."""
        given = {
            "n_bins": self.n_bins,
            "max_length": self.max_seq_len,
            "pad_value": self.pad_value,
            "cls_value": self.pad_value,
            "mask_value": self.mask_value,
        }
        values = {name: value for name, value in given.items() if value is not None} | self.cytoray.tokenizer
        try:
            return TokenizerConfig(**values)
        except ValidationError as error:
            raise _invalid(error, where=f"{file}: cytoray.tokenizer") from error


def read_args(file: Path) -> tuple[dict[str, Any], PublicArgs]:
    """Return ``args.json`` as it is and as it is understood; ModelError that names the key if one is wrong."""
    data = file.read_bytes()
    try:
        args = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}).", remedy="Copy the file again.", file=str(file)) from error
    if not isinstance(args, dict):
        raise ModelError(f"{file} is not an object of keys and values.", remedy="Copy the file again.", file=str(file))
    try:
        return args, PublicArgs.model_validate_json(json.dumps(args), strict=True)
    except ValidationError as error:
        raise _invalid(error, where=str(file)) from error


def check_args(settings: PublicArgs, *, told: Mapping[str, Any], file: Path) -> None:
    """Refuse an ``args.json`` that says another thing than the tensors do."""
    first = f"{LAYERS}.0.linear1.weight"
    rules = {
        "embsize": ("width", GENES),
        "d_hid": ("feedforward_width", first),
        "nlayers": ("num_layers", f"{LAYERS}.{told['num_layers'] - 1}.*, the last of them"),
        "input_emb_style": ("value_style", "value_encoder.*"),
    }
    if told["num_labels"]:
        rules["n_layers_cls"] = ("num_classifier_layers", "cls_decoder._decoder.*")
    for key, (field, tensor) in rules.items():
        said = getattr(settings, key)
        if said is not None and said != told[field]:
            raise ModelError(
                f"{file}: {key} is {said!r}, but the tensors say {told[field]!r} ({tensor}).",
                remedy="Give the args.json that was saved with these weights, or all of the weights.",
                file=str(file),
                key=key,
                said=said,
                told=told[field],
            )


def resolve_config(
    told: Mapping[str, Any], settings: PublicArgs, *, overrides: Mapping[str, Any], file: Path
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model's configuration and notes on what was assumed.

    Tensors come first and may not be contradicted; then ``overrides``, the key ``cytoray``, the rest of
    ``args.json`` (called ``file`` in messages), and defaults. Raises ModelError.
    """
    chosen = {**settings.cytoray.model, **overrides}
    _check_overrides(settings.cytoray.model, told=told, source=f"{file}: cytoray.model")
    _check_overrides(overrides, told=told, source="overrides")
    values, notes = _assumed(told, settings, chosen=chosen)
    detached = chosen.get("cell_conditioned_decoder")
    values |= chosen | dict(told) | ({"cell_conditioned_decoder": detached} if detached else {})
    try:
        config = ModelConfig(**values)
    except ValidationError as error:
        raise _invalid(error, where=f"{file}, overrides and tensors together") from error
    return config, notes


def _assumed(
    told: Mapping[str, Any], settings: PublicArgs, *, chosen: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What ``args.json`` or habit says where tensors are silent, with notes."""
    notes = []
    width, num_heads = told["width"], chosen.get("num_heads", settings.nheads)
    if num_heads is None:
        num_heads = _DEFAULT_HEADS
        notes.append(f"no nheads is given: {num_heads} heads are assumed, as in the released models")
    elif settings.nheads not in (None, num_heads):
        notes.append(f"args.json says nheads {settings.nheads}; {num_heads} was asked for")
    if isinstance(num_heads, int) and num_heads > 0 and width % num_heads:
        raise ModelError(
            f"{num_heads} attention heads (nheads) do not divide width {width} ({GENES}).",
            remedy="Give the number of heads that the model was trained with, as num_heads.",
            key="nheads",
        )
    if settings.input_style not in (None, "binned"):
        notes.append(f"args.json says input_style {settings.input_style}; this tokenizer bins")
    if told["value_style"] == "scaling":
        notes.append("there is no value encoder: a value is taken as a factor of its gene's embedding")
    values: dict[str, Any] = {"num_heads": num_heads}
    if told["generative"]:
        values["unknown_out_proj"] = False  # the weights were trained so
    if settings.dropout is not None:
        values["dropout"] = settings.dropout
    if settings.n_layers_cls is not None:
        values["num_classifier_layers"] = settings.n_layers_cls
    return values, tuple(notes)


def _check_overrides(overrides: Mapping[str, Any], *, told: Mapping[str, Any], source: str) -> None:
    for field, value in overrides.items():
        if field not in ModelConfig.model_fields:
            near = difflib.get_close_matches(field, list(ModelConfig.model_fields), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ModelError(f"{source}: there is no field {field!r} of a model.", remedy=hint.strip(), key=field)
        pair = (told.get(field, value), value)
        if pair[0] != value and pair != ("inner product", "inner product, detach"):
            raise ModelError(
                f"{source}: {field} is {value!r}, but the tensors say {pair[0]!r}.",
                remedy=f"Leave {field} out: the tensors tell it.",
                key=field,
                said=value,
                told=pair[0],
            )


def build_args(
    config: ModelConfig, tokenizer: TokenizerConfig, *, layout: AttentionLayout, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Every key of the released ``args.json``, in its own words; ``base`` supplies what the model does not tell."""
    args: dict[str, Any] = {**dict.fromkeys(_RUN_KEYS), "trunc_by_sample": True, "no_cce": True, "USE_CCE": False}
    args |= {key: value for key, value in base.items() if key != "cytoray"}
    args |= {
        "pad_token": "<pad>",
        "input_style": "binned",
        "input_emb_style": config.value_style,
        "n_bins": tokenizer.n_bins,
        "max_seq_len": tokenizer.max_length,
        "training_tasks": "both" if config.generative else "pcpt",
        "no_cls": not config.num_labels,
        "fast_transformer": layout != "torch",
        "nlayers": config.num_layers,
        "nheads": config.num_heads,
        "embsize": config.width,
        "d_hid": config.feedforward_width,
        "dropout": config.dropout,
        "n_layers_cls": config.num_classifier_layers,
        "mask_value": _plain(tokenizer.mask_value),
        "pad_value": _plain(tokenizer.pad_value),
        "USE_CLS": bool(config.num_labels),
        "MVC": config.cell_conditioned_decoder != "none",
        "USE_GENERATIVE_TRAINING": config.generative,
    }
    return args


def extras(
    config: ModelConfig,
    tokenizer: TokenizerConfig,
    *,
    told: Mapping[str, Any],
    args: Mapping[str, Any],
    labels: tuple[str, ...],
) -> dict[str, Any]:
    """What a reader of tensors and ``args`` would not find out, for the key ``cytoray``; empty parts are left out."""
    file = Path("args.json")
    settings = PublicArgs.model_validate_json(json.dumps(args), strict=True)
    inferred, _ = resolve_config(told, settings, overrides={}, file=file)
    parts = {
        "model": _difference(config, inferred),
        "tokenizer": _difference(tokenizer, settings.tokenizer_config(file=file)),
        "labels": [] if labels == default_labels(config.num_labels) else list(labels),
    }
    return {name: part for name, part in parts.items() if part}


def default_labels(num_labels: int) -> tuple[str, ...]:
    """Names of a classifier's outputs where nobody names them: their numbers."""
    return tuple(map(str, range(num_labels)))


def _difference(wanted: Config, inferred: Config) -> dict[str, Any]:
    found = inferred.model_dump(mode="json")
    return {name: value for name, value in wanted.model_dump(mode="json").items() if value != found[name]}


def _plain(value: float) -> float | int:
    """A whole number without a point, as the released file has it."""
    return int(value) if value.is_integer() else value


def _invalid(error: ValidationError, *, where: str) -> ModelError:
    detail = error.errors()[0]
    key = ".".join(map(str, detail["loc"]))
    return ModelError(
        f"{where}: {key + ': ' if key else ''}{detail['msg'].removeprefix('Value error, ')}.",
        remedy="Mend this key or leave it out.",
        key=key,
    )
