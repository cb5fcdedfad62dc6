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

_POOLINGS = {"cls": "cls", "avg-pool": "mean", "w-pool": "weighted"}
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
    # Options of the original's constructor that released files do not have, but a careful author's may.
    cell_emb_style: Literal["cls", "avg-pool", "w-pool"] | None = Field(None, description="A cell's embedding.")
    mvc_decoder_style: str | None = Field(None, description="Style of the cell-conditioned decoder.")
    decoder_activation: str | None = Field(None, description="Activation of the affine decoder.")
    decoder_adaptive_bias: bool | None = Field(None, description="Whether the affine decoder's offset is adaptive.")
    pre_norm: Literal[False] | None = Field(None, description="Normalisation before each block is not supported.")
    fast_transformer_backend: Literal["flash"] | None = Field(None, description="Linear attention is not supported.")
    cytoray: Extras = Field(Extras(), description="What the other keys cannot say.")

    def tokenizer_config(self, told: Mapping[str, Any], *, file: Path) -> tuple[TokenizerConfig, tuple[str, ...]]:
        """How this model's cells become tokens, and which of it is assumed since nothing gives it.

        ``<cls>`` carries ``pad_value``, as in pretraining. A table of values holds the bins, padding and the mask.
        """
        released, rows = TokenizerConfig(), told["num_value_bins"]
        n_bins = self.n_bins or (rows - 2 if rows > 3 else released.n_bins)
        pad_value = float(n_bins) if rows else released.pad_value
        defaults: dict[str, Any] = {
            "n_bins": n_bins,
            "max_seq_len": released.max_length,
            "pad_value": pad_value,
            "mask_value": pad_value + 1,
        }
        known = {key: getattr(self, key) for key in defaults if getattr(self, key) is not None}
        own = self.cytoray.tokenizer
        assumed = [
            f"{key} {_plain(float(value))}"
            for key, value in defaults.items()
            if key not in known and key.replace("max_seq_len", "max_length") not in own
        ]
        given = defaults | known
        values = {**given, "max_length": given["max_seq_len"], "cls_value": given["pad_value"]} | own
        del values["max_seq_len"]
        try:
            config = TokenizerConfig(**values)
        except ValidationError as error:
            raise _invalid(error, where=f"{file}: cytoray.tokenizer") from error
        _check_table(config, rows, file=file)
        return config, tuple(assumed)


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
    """The model's configuration, and notes.

    Tensors come first and may not be contradicted; then ``overrides``, the key ``cytoray``, the rest of
    ``args.json`` (called ``file`` in messages), and defaults. Raises ModelError.
    """
    chosen = {**settings.cytoray.model, **overrides}
    _check_overrides(settings.cytoray.model, told=told, source=f"{file}: cytoray.model")
    _check_overrides(overrides, told=told, source="overrides")
    values, notes = _inferred(told, settings, chosen=chosen, file=file)
    detached = chosen.get("cell_conditioned_decoder") or _detached(told, settings)
    values |= {**chosen, **told} | ({"cell_conditioned_decoder": detached} if detached else {})
    try:
        config = ModelConfig(**values)
    except ValidationError as error:
        raise _invalid(error, where=f"{file}, overrides and tensors together") from error
    return config, notes


def assumed_decoder(told: Mapping[str, Any], settings: PublicArgs, *, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of a perturbation model's decoder that neither tensors nor ``args.json`` or ``overrides`` make."""
    if told["expression_decoder"] != "affine":
        return ()
    named = {*settings.cytoray.model, *overrides, *told} | {
        key.replace("decoder_adaptive", "adaptive") for key in settings.model_fields_set
    }
    fields = {"decoder_activation": "decoder_activation null", "adaptive_bias": "decoder_adaptive_bias false"}
    return tuple(text for field, text in fields.items() if field not in named)


def _check_table(config: TokenizerConfig, num_rows: int, *, file: Path) -> None:
    """Refuse tokens that have no row in the table of values, which a model of value style category has."""
    markers = {"pad_value": config.pad_value, "mask_value": config.mask_value, "cls_value": config.cls_value}
    wrong = [f"{name} {_plain(value)}" for name, value in markers.items() if not 0 <= value < num_rows]
    wrong += [f"n_bins {config.n_bins}"] if config.n_bins > num_rows else []
    if num_rows and wrong:
        raise ModelError(
            f"{file}: {', '.join(wrong)} is outside of the value table, which has {num_rows} rows "
            "(value_encoder.embedding.weight).",
            remedy=f"Set n_bins {num_rows - 2}, pad_value {num_rows - 2} and mask_value {num_rows - 1}, as in "
            "pretraining, or give the args.json that was saved with these weights.",
        )


def _inferred(
    told: Mapping[str, Any], settings: PublicArgs, *, chosen: Mapping[str, Any], file: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What ``args.json`` says where tensors are silent, with notes."""
    notes = []
    width, num_heads = told["width"], chosen.get("num_heads", settings.nheads)
    if num_heads is None:
        divisors = [str(number) for number in range(1, min(width, 64) + 1) if width % number == 0]
        raise ModelError(
            f"{file} does not give nheads, the number of attention heads, and the tensors do not show it.",
            remedy=f'Add "nheads" to the file, or pass num_heads (scGPTConfig: nheads). Of width {width} it can be '
            f"{', '.join(divisors)}; the released models have 8.",
            key="nheads",
        )
    if settings.nheads not in (None, num_heads):
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
    if told["expression_decoder"] == "affine":
        values["decoder_activation"] = settings.decoder_activation
        values["adaptive_bias"] = bool(settings.decoder_adaptive_bias)
    if settings.cell_emb_style is not None:
        values["cell_embedding"] = _POOLINGS[settings.cell_emb_style]
    if settings.dropout is not None:
        values["dropout"] = settings.dropout
    if settings.n_layers_cls is not None:
        values["num_classifier_layers"] = settings.n_layers_cls
    return values, tuple(notes)


def _detached(told: Mapping[str, Any], settings: PublicArgs) -> str | None:
    """The style of the cell-conditioned decoder that has the same tensors as another, if ``args.json`` names it."""
    style = settings.mvc_decoder_style
    return style if style == "inner product, detach" and told["cell_conditioned_decoder"] == "inner product" else None


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
    if config.expression_decoder == "affine":
        args |= {"decoder_activation": config.decoder_activation, "decoder_adaptive_bias": config.adaptive_bias}
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
        "tokenizer": _difference(tokenizer, settings.tokenizer_config(told, file=file)[0]),
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
