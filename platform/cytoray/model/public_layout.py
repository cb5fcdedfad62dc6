"""Names of the public scGPT layout in its three attention layouts, and the fields that tensors determine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from cytoray.errors import ModelError

AttentionLayout = Literal["flash", "wrapper", "torch"]
Shape = tuple[int, ...]

GENES, LAYERS = "encoder.embedding.weight", "transformer_encoder.layers"
#: Required tensors; all others belong to heads or conditions, which a file may lack.
BODY = ("encoder.", "value_encoder.", "transformer_encoder.")
_HEADS = ("decoder.", "cls_decoder.", "mvc_decoder.", "grad_reverse_discriminator.")
#: Everything that a model may have beside its body.
PARTS = (*_HEADS, "flag_encoder.", "batch_encoder.", "mod_encoder.", "pert_encoder.", "bn.", "dsbn.")
# Rows of all three are [q; k; v]; only names differ.
_ATTENTION: dict[AttentionLayout, dict[str, str]] = {
    "flash": {},
    "wrapper": {
        f"{part}.{kind}": f"_impl.{part}.{kind}" for part in ("Wqkv", "out_proj") for kind in ("weight", "bias")
    },
    "torch": {"Wqkv.weight": "in_proj_weight", "Wqkv.bias": "in_proj_bias"},
}
_OURS = {theirs: ours for names in _ATTENTION.values() for ours, theirs in names.items()}
_MARK = ".self_attn."
# What torch puts into names: DataParallel and DDP, compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MAX_LAYERS = 1024


def released_names(names: Iterable[str], *, file: Path) -> tuple[dict[str, str], str]:
    """The released name of each tensor of any layout, and the prefix that was removed from them (empty if none).

    Wrappers (data-parallel, compiled, sharded) may stand anywhere in a name; a prefix of whatever modules the model
    was part of is recognised by the gene table. Raises ModelError if there are two gene tables.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    prefixes = sorted({name.removesuffix(GENES) for name in plain.values() if f".{name}".endswith(f".{GENES}")})
    if len(prefixes) > 1:
        raise ModelError(
            f"{file} holds several models: {' and '.join(prefix + GENES for prefix in prefixes)}.",
            remedy="Save the state dict of one of them.",
            prefixes=prefixes,
        )
    prefix = prefixes[0] if prefixes else ""
    return {name: _flash_name(short.removeprefix(prefix)) for name, short in plain.items()}, prefix


def _flash_name(name: str) -> str:
    """The released name of a tensor whose attention may be named in another way."""
    head, mark, tail = name.partition(_MARK)
    return head + mark + _OURS.get(tail, tail)


def layout_name(name: str, layout: AttentionLayout) -> str:
    """The name in ``layout`` of the tensor with this released name."""
    head, mark, tail = name.partition(_MARK)
    return head + mark + _ATTENTION[layout].get(tail, tail)


def released_order(names: Iterable[str]) -> list[str]:
    """Sort names in the order of the original: heads last, the classifier before the cell-conditioned decoder."""
    return sorted(names, key=lambda name: next((n for n, head in enumerate(_HEADS) if name.startswith(head)), -1))


class Shapes(dict[str, Shape]):
    """The shapes of tensors by released name, and questions about them."""

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self)

    def size(self, *choices: tuple[str, int]) -> int:
        """Size of an axis, from the first (name, axis) that exists; ModelError if none does."""
        for name, axis in choices:
            if name in self:
                if len(self[name]) <= axis:
                    raise _mismatch(f"Tensor {name} has shape {self[name]}: it has too few axes", tensor=name)
                return self[name][axis]
        raise _mismatch(f"Tensor {choices[0][0]} is missing, and the model needs it", tensor=choices[0][0])

    def count(self, prefix: str) -> int:
        """Highest number N of the names ``prefix.N.…``, plus 1."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
        return 1 + max((int(match[1]) for name in self if (match := pattern.match(name))), default=-1)


def shown_fields(shapes: Shapes) -> dict[str, Any]:
    """The fields of ModelConfig that tensors determine; the others are left out.

    Raises ModelError if a needed tensor is missing or two tensors disagree.
    """
    num_layers = shapes.count(LAYERS)
    if not num_layers:
        raise _mismatch(f"There are no tensors {LAYERS}.*, which the model requires", tensor=f"{LAYERS}.0")
    return {
        "vocabulary_size": shapes.size((GENES, 0)),
        "width": shapes.size((GENES, 1)),
        "num_layers": num_layers,
        "feedforward_width": shapes.size(*_feedforward(min(num_layers, _MAX_LAYERS))),
        "generative": shapes.has("flag_encoder."),
        **_value_fields(shapes),
        **_condition_fields(shapes),
        **_decoder_fields(shapes),
        **_classifier_fields(shapes),
    }


def _feedforward(num_layers: int) -> list[tuple[str, int]]:
    """Tensors and axes that show the feed-forward's width, in any layer."""
    places = (("linear1.weight", 0), ("linear1.bias", 0), ("linear2.weight", 1))
    return [(f"{LAYERS}.{layer}.{name}", axis) for layer in range(num_layers) for name, axis in places]


def _value_fields(shapes: Shapes) -> dict[str, Any]:
    if shapes.has("value_encoder.linear") or shapes.has("value_encoder.norm."):
        return {"value_style": "continuous", "num_value_bins": 0}
    if shapes.has("value_encoder."):
        return {"value_style": "category", "num_value_bins": shapes.size(("value_encoder.embedding.weight", 0))}
    return {"value_style": "scaling", "num_value_bins": 0}


def _condition_fields(shapes: Shapes) -> dict[str, Any]:
    norm = "domain" if shapes.has("dsbn.") else "batch" if shapes.has("bn.") else "none"
    sees_batch, discriminates = shapes.has("batch_encoder."), shapes.has("grad_reverse_discriminator.")
    fields: dict[str, Any] = {
        "token_norm": norm,
        "decoders_see_batch": sees_batch,
        "batch_discriminator": discriminates,
        "num_modalities": shapes.size(("mod_encoder.embedding.weight", 0)) if shapes.has("mod_encoder.") else 0,
        "num_perturbation_flags": shapes.size(("pert_encoder.weight", 0)) if shapes.has("pert_encoder.") else 0,
    }
    counts = {"dsbn.bns": shapes.count("dsbn.bns")} if norm == "domain" else {}
    if sees_batch:
        counts["batch_encoder.embedding.weight"] = shapes.size(("batch_encoder.embedding.weight", 0))
    if discriminates:
        counts["grad_reverse_discriminator.out_layer"] = _num_outputs(shapes, "grad_reverse_discriminator")
    return fields | _agreed("num_batch_labels", counts)


def _decoder_fields(shapes: Shapes) -> dict[str, Any]:
    affine = shapes.has("decoder.coeff_decoder.") or shapes.has("decoder.bias_decoder.")
    towers = ("decoder.", "decoder.coeff_decoder.", "decoder.bias_decoder.")
    chances = [f"{tower}zero_logit." for tower in towers] + ["mvc_decoder.W_zero_logit."]
    fields = {"decoder_activation": "PReLU"} if shapes.has("decoder.activation.") else {}
    return fields | {
        "expression_decoder": "affine" if affine else "value",
        "zero_probability": any(shapes.has(prefix) for prefix in chances),
        "cell_conditioned_decoder": _query_style(shapes),
    }


def _query_style(shapes: Shapes) -> str:
    if not shapes.has("mvc_decoder."):
        return "none"
    if not shapes.has("mvc_decoder.fc"):
        return "inner product"
    query_width = shapes.size(("mvc_decoder.gene2query.weight", 0), ("mvc_decoder.gene2query.bias", 0))
    return "sum query" if shapes.size(("mvc_decoder.fc1.weight", 1)) == query_width else "concat query"


def _classifier_fields(shapes: Shapes) -> dict[str, Any]:
    fields = {"num_labels": _num_outputs(shapes, "cls_decoder") if shapes.has("cls_decoder.") else 0}
    depths = {"cls_decoder": "num_classifier_layers", "grad_reverse_discriminator": "num_discriminator_layers"}
    for head, field in depths.items():
        if shapes.has(f"{head}."):
            # Each hidden layer is a linear one, an activation and a norm: numbers 3 i to 3 i + 2.
            fields[field] = (shapes.count(f"{head}._decoder") + 2) // 3 + 1
    return fields


def _num_outputs(shapes: Shapes, head: str) -> int:
    return shapes.size((f"{head}.out_layer.weight", 0), (f"{head}.out_layer.bias", 0))


def _agreed(field: str, shown: Mapping[str, int]) -> dict[str, int]:
    """The field, if any tensor shows it; ModelError if tensors disagree."""
    if len(set(shown.values())) > 1:
        listing = ", ".join(f"{name} says {number}" for name, number in shown.items())
        raise _mismatch(f"Tensors disagree on {field}: {listing}", tensors=dict(shown))
    return {field: next(iter(shown.values()))} if shown else {}


def _mismatch(problem: str, **details: Any) -> ModelError:
    return ModelError(f"{problem}.", remedy="Give the whole state dict of one scGPT model.", **details)
