"""Read and write the public scGPT layout: a folder with ``best_model.pt``, ``args.json`` and ``vocab.json``."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cytoray.drafts import draft_folder
from cytoray.errors import ConflictError, ModelError, NotFoundError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.public_args import (
    PublicArgs,
    assumed_decoder,
    build_args,
    check_args,
    default_labels,
    extras,
    read_args,
    resolve_config,
)
from cytoray.model.public_layout import (
    GENES,
    AttentionLayout,
    Shapes,
    layout_name,
    released_names,
    released_order,
    shown_fields,
)
from cytoray.model.public_report import CheckpointReport, as_stored, compare, listing, precisions
from cytoray.model.public_weights import read_tensors
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

__all__ = [
    "AttentionLayout",
    "CheckpointReport",
    "PublicCheckpoint",
    "export_bundle",
    "load_public_checkpoint",
    "save_public_checkpoint",
]

WEIGHTS, ARGS, VOCABULARY = "best_model.pt", "args.json", "vocab.json"


@dataclass(frozen=True, eq=False)
class PublicCheckpoint:
    """A model of the public layout, ready for use, with a report of its loading."""

    model: ScGPT  # in eval mode, fp32, on the CPU
    vocabulary: GeneVocabulary
    tokenizer_config: TokenizerConfig
    report: CheckpointReport
    args: dict[str, Any]  # args.json as stored; empty without one
    labels: tuple[str, ...] = ()  # names of the classifier's outputs, if the checkpoint has them

    def to_bundle(self, labels: Sequence[str] = ()) -> ModelBundle:
        """The model as a bundle whose lineage names its weights, equal for equal weights.

        Without ``labels`` the classifier's outputs are named as in the checkpoint, or else by their numbers. Raises
        ModelError unless each output has one distinct name.
        """
        names = tuple(labels) or self.labels or default_labels(self.model.config.num_labels)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        digest = hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
        lineage = {"source": "public scGPT checkpoint", "source_weights_digest": digest}
        return ModelBundle(self.model, self.vocabulary, self.tokenizer_config, names, lineage)


def load_public_checkpoint(
    folder: Path, *, overrides: Mapping[str, Any] | None = None, allow_missing: bool = False
) -> PublicCheckpoint:
    """Load a folder in the public scGPT layout; the architecture is read from its tensors, the rest from ``args.json``.

    ``overrides`` are fields of ModelConfig that tensors do not show, such as ``num_heads`` or ``cell_embedding``. With
    ``allow_missing`` a head or condition that is incomplete or has another shape keeps its initial values (always
    the same ones), which is reported; gene, value and transformer tensors must always be complete. Values that are
    assumed since nothing gives them are named in a UserWarning. Nothing in the folder can run code. Raises
    NotFoundError if a file is missing, ModelError for anything damaged or inconsistent.
    """
    folder, overrides = Path(folder), dict(overrides or {})
    _check_folder(folder, needs_args="num_heads" not in overrides)
    args, settings = read_args(folder / ARGS) if (folder / ARGS).exists() else ({}, PublicArgs())
    vocabulary, notes = _read_vocabulary(folder / VOCABULARY)
    stored, found_notes = read_tensors(folder / WEIGHTS)
    tensors, renamed, prefix_notes = _rename(stored, file=folder / WEIGHTS)
    shown = shown_fields(Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    _check_vocabulary(vocabulary, shown["vocabulary_size"], file=folder / VOCABULARY)
    check_args(settings, shown=shown, file=folder / ARGS)
    config, config_notes = resolve_config(shown, settings, overrides=overrides, file=folder / ARGS)
    tokenizer_config, assumed = settings.tokenizer_config(shown, file=folder / ARGS)
    assumed += assumed_decoder(shown, settings, overrides=overrides)
    with torch.device("meta"):
        expected = ScGPT(config, pad_id=vocabulary.pad_id).state_dict()
    report = compare(tensors, expected, file=folder / WEIGHTS, allow_missing=allow_missing)
    used = {name: as_stored(tensors[name], expected[name], name=name) for name in report.matched}
    report = replace(
        report,
        renamed=tuple((old, new) for old, new in renamed if new in used),
        notes=(*notes, *found_notes, *prefix_notes, *config_notes, *precisions(tensors, used)),
        assumed=assumed,
    )
    if assumed:
        text = f"{folder / ARGS} does not give what results depend on: {', '.join(assumed)} is assumed."
        warnings.warn(
            f"{text} Add the keys to the file, or override fields of the model (models import --set FIELD=VALUE).",
            UserWarning,
            stacklevel=2,
        )
    model = _build(config, pad_id=vocabulary.pad_id, tensors=used)
    return PublicCheckpoint(model, vocabulary, tokenizer_config, report, args, settings.cytoray.labels)


def names_heads(folder: Path) -> bool:
    """Whether the ``args.json`` of a folder gives the number of attention heads, which tensors do not show."""
    file = Path(folder) / ARGS
    return file.exists() and read_args(file)[1].nheads is not None


def save_public_checkpoint(
    model: ScGPT,
    vocabulary: GeneVocabulary,
    tokenizer_config: TokenizerConfig,
    folder: Path,
    *,
    layout: AttentionLayout = "flash",
    args: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as ``export_bundle`` does; labels are numbers."""
    bundle = ModelBundle(model, vocabulary, tokenizer_config, default_labels(model.config.num_labels))
    export_bundle(bundle, folder, layout=layout, args=args)


def export_bundle(
    bundle: ModelBundle,
    folder: Path,
    *,
    layout: AttentionLayout = "flash",
    args: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle in the public scGPT layout as ``folder``, which appears only when complete.

    ``args`` supplies the keys of ``args.json`` about training, such as ``lr``; they are null otherwise. Settings
    without a key are stored under ``cytoray``. Raises ConflictError if ``folder`` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConflictError(f"{folder} already exists.", remedy="Choose another folder; nothing is overwritten.")
    state = {name: _plain(tensor) for name, tensor in bundle.model.state_dict().items()}
    config, tokenizer = bundle.model.config, bundle.tokenizer_config
    shown = shown_fields(Shapes({name: tuple(tensor.shape) for name, tensor in state.items()}))
    written = build_args(config, tokenizer, layout=layout, base=args or {})
    if own := extras(config, tokenizer, shown=shown, args=written, labels=bundle.labels):
        written["cytoray"] = own
    text = json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False)
    with draft_folder(folder) as draft:
        (draft / ARGS).write_text(text, encoding="utf-8")
        (draft / VOCABULARY).write_text(bundle.vocabulary.to_json(), encoding="utf-8")
        torch.save({layout_name(name, layout): state[name] for name in released_order(state)}, draft / WEIGHTS)


def _check_folder(folder: Path, *, needs_args: bool) -> None:
    """Raise NotFoundError that names the missing and the present files."""
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "missing"
        raise NotFoundError(f"{folder} is {kind}.", remedy=f"Give the folder with {WEIGHTS}, {ARGS} and {VOCABULARY}.")
    wanted = [WEIGHTS, *([ARGS] if needs_args else []), VOCABULARY]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not missing:
        return
    present = sorted(path.name for path in folder.iterdir())
    remedy = "Give the folder of a public scGPT checkpoint."
    if missing == [ARGS]:
        remedy = f"Copy {ARGS} from the source, or give the number of attention heads as num_heads."
    raise NotFoundError(
        f"{folder} has no {' and no '.join(missing)}; it holds {listing(present) or 'nothing'}.",
        remedy=remedy,
        missing=missing,
        present=present[:10],
    )


def _read_vocabulary(file: Path) -> tuple[GeneVocabulary, tuple[str, ...]]:
    text = file.read_bytes()
    try:
        vocabulary = GeneVocabulary.from_json(text)
        num_given = len(json.loads(text))
    except (ModelError, RecursionError) as error:
        reason = error.problem if isinstance(error, ModelError) else "It is nested too deep."
        raise ModelError(f"{file}: {reason}", remedy="Copy the file again from its source.", file=str(file)) from error
    added = vocabulary.tokens[num_given:]
    return vocabulary, (f"{file.name} lacks {', '.join(added)}: appended at the end",) if added else ()


def _check_vocabulary(vocabulary: GeneVocabulary, num_rows: int, *, file: Path) -> None:
    if vocabulary.size != num_rows:
        raise ModelError(
            f"{file} has {vocabulary.size} tokens with the special ones, the gene table ({GENES}) has {num_rows} rows.",
            remedy="Give the vocab.json that was saved with these weights.",
            tokens=vocabulary.size,
            rows=num_rows,
        )


def _rename(
    stored: Mapping[str, Tensor], *, file: Path
) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Tensors by released name, (old, new) of those that had another, and a note on their prefix."""
    tensors: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    names, prefix = released_names(stored, file=file)
    for old, tensor in stored.items():
        new = names[old]
        if new in tensors:
            raise ModelError(
                f"{file}: {origins[new]} and {old} are both {new}.", remedy="Keep one of them.", tensor=new
            )
        tensors[new], origins[new] = tensor, old
    notes = (f"the prefix {prefix!r} was removed from the names",) if prefix else ()
    return tensors, tuple((old, new) for new, old in origins.items() if new != old), notes


def _build(config: ModelConfig, *, pad_id: int, tensors: Mapping[str, Tensor]) -> ScGPT:
    """Build the model around its tensors; missing ones get the initial values of seed 0."""
    with torch.device("meta"):
        model = ScGPT(config, pad_id=pad_id)
    if len(tensors) < len(model.state_dict()):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = ScGPT(config, pad_id=pad_id)
    model.load_state_dict(dict(tensors), strict=len(tensors) == len(model.state_dict()), assign=True)
    return model.eval()


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU: numbers in fp32, counters unchanged."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()
