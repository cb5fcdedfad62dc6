"""ModelBundle: the folder that passes from training to serving, self-describing, verified by digests, no pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cytoray.errors import ConflictError, DigestError, ModelError, NotFoundError
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.inference import DRAWN, InferenceConfig
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

FORMAT = 1
DIGESTS = "digests.json"
FILES = ("config.json", "labels.json", "lineage.json", "model.safetensors", "preprocessing.json", "vocab.json")

Value = TypeVar("Value")


@dataclass
class ModelBundle:
    """A model with everything needed to use it on new cells and to trace its origin.

    ``digest`` is the SHA-256 of the bundle's ``digests.json``, hence of everything in it; set by saving and loading.
    Raises ModelError if the vocabulary or the labels do not fit the model.
    """

    model: ScGPT = field(repr=False)
    vocabulary: GeneVocabulary = field(repr=False)
    tokenizer_config: TokenizerConfig
    labels: tuple[str, ...] = ()
    lineage: dict[str, str] = field(default_factory=dict)
    digest: str | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        _check_fit(self.model.config, vocabulary=self.vocabulary, labels=self.labels)

    def tokenizer(self) -> CellTokenizer:
        """Tokenizer for inference."""
        return CellTokenizer(self.vocabulary, self.tokenizer_config, self.inference)


def save_bundle(bundle: ModelBundle, folder: Path) -> str:
    """Write the bundle as ``folder``, which appears only when complete, and return its digest.

    Equal content gives equal bytes and so an equal digest. Raises ConflictError if ``folder`` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConflictError(f"{folder} already exists.", remedy="Choose another folder; a bundle is never overwritten.")
    contents = _serialise(bundle)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents[DIGESTS] = _canonical({"format": FORMAT, "files": digests})
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        for name, data in contents.items():
            (draft / name).write_bytes(data)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    bundle.digest = hashlib.sha256(contents[DIGESTS]).hexdigest()
    return bundle.digest


def load_bundle(folder: Path) -> ModelBundle:
    """Load a bundle onto the CPU after verifying every byte of it; nothing in it can run code.

    Raises NotFoundError if the folder has no bundle, DigestError for changed, missing or additional files, ModelError
    for content that is intact but inconsistent.
    """
    folder = Path(folder)
    contents, digest = _read_verified(folder)
    config = _parse(ModelConfig, contents["config.json"], file=folder / "config.json")
    preprocessing = _parse(_Preprocessing, contents["preprocessing.json"], file=folder / "preprocessing.json")
    labels = _parse(tuple[str, ...], contents["labels.json"], file=folder / "labels.json")
    lineage = _parse(dict[str, str], contents["lineage.json"], file=folder / "lineage.json")
    vocabulary = GeneVocabulary.from_json(contents["vocab.json"])
    _check_fit(config, vocabulary=vocabulary, labels=labels)
    model = _build(config, pad_id=vocabulary.pad_id, weights=contents["model.safetensors"])
    tokenizer_config = TokenizerConfig(**preprocessing.model_dump(exclude={"inference"}))
    return ModelBundle(model, vocabulary, tokenizer_config, labels, lineage, digest, preprocessing.inference)


class _Preprocessing(TokenizerConfig):
    """Content of ``preprocessing.json``."""

    inference: InferenceConfig = DRAWN  # in older bundles, which do not record it


def _serialise(bundle: ModelBundle) -> dict[str, bytes]:
    state = bundle.model.state_dict()
    weights = {name: _stored(tensor) for name, tensor in state.items()}
    preprocessing = bundle.tokenizer_config.model_dump(mode="json")
    if bundle.inference != DRAWN:  # so that an older bundle, saved again, keeps its bytes and its digest
        preprocessing["inference"] = bundle.inference.model_dump(mode="json")
    return {
        "config.json": _canonical(bundle.model.config.model_dump(mode="json")),
        "labels.json": _canonical(list(bundle.labels)),
        "lineage.json": _canonical(bundle.lineage),
        "model.safetensors": safetensors.torch.save(weights),
        "preprocessing.json": _canonical(preprocessing),
        "vocab.json": bundle.vocabulary.to_json().encode(),
    }


def _stored(tensor: Tensor) -> Tensor:
    """Convert floating-point tensors to fp32; others are not changed."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind).contiguous()


def _canonical(value: Any) -> bytes:
    """Encode as JSON with sorted keys and without spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _read_verified(folder: Path) -> tuple[dict[str, bytes], str]:
    """Read every file once and compare its digest before anything is parsed; returns contents and bundle digest."""
    if not (folder / DIGESTS).is_file():
        raise NotFoundError(f"{folder} is not a model bundle: it has no {DIGESTS}.", remedy="Check the path.")
    listing = (folder / DIGESTS).read_bytes()
    expected = _parse_listing(listing, file=folder / DIGESTS)
    present = {path.name for path in folder.iterdir()} - {DIGESTS}
    if present != set(FILES):
        missing, extra = sorted(set(FILES) - present), sorted(present - set(FILES))
        raise DigestError(
            f"{folder} does not contain exactly the files of a bundle: missing {missing}, not listed {extra}.",
            remedy="Copy the complete bundle again into an empty folder.",
            missing=missing,
            extra=extra,
        )
    contents = {name: (folder / name).read_bytes() for name in FILES}
    for name, data in contents.items():
        seen = hashlib.sha256(data).hexdigest()
        if seen != expected[name]:
            raise DigestError(
                f"{folder / name} has SHA-256 {seen}, the bundle lists {expected[name]}.",
                remedy="The file was changed or damaged; copy the bundle again from its source.",
                file=name,
                expected=expected[name],
                seen=seen,
            )
    return contents, hashlib.sha256(listing).hexdigest()


def _parse_listing(listing: bytes, *, file: Path) -> dict[str, str]:
    """Return {file name: digest} of a ``digests.json``; only the canonical bytes of a known format pass."""
    try:
        content = json.loads(listing.decode())
    except ValueError as error:
        raise DigestError(f"{file} is not JSON.", remedy="Copy the bundle again from its source.") from error
    if not isinstance(content, dict) or _canonical(content) != listing:
        raise DigestError(f"{file} was changed or damaged.", remedy="Copy the bundle again from its source.")
    if content.get("format") != FORMAT:
        raise ModelError(
            f"{file} is of format {content.get('format')!r}; this version of cytoray reads format {FORMAT}.",
            remedy="Use the version of cytoray that wrote the bundle.",
        )
    files = content.get("files")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise DigestError(f"{file} does not list the files of a bundle.", remedy=f"Expected {', '.join(FILES)}.")
    return files


def _parse(kind: type[Value], data: bytes, *, file: Path) -> Value:
    """Validate JSON as ``kind``; ModelError that names the file otherwise."""
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "top level"
        raise ModelError(
            f"{file}: {where}: {detail['msg']}.", remedy="The bundle was written by another program or version."
        ) from error


def _build(config: ModelConfig, *, pad_id: int, weights: bytes) -> ScGPT:
    """Build the model from stored tensors, without drawing random initial weights first."""
    try:
        tensors = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise ModelError(f"model.safetensors cannot be read: {error}.", remedy="Export the bundle again.") from error
    with torch.device("meta"):
        model = ScGPT(config, pad_id=pad_id)
    _check_tensors(tensors, expected=model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _check_tensors(tensors: dict[str, Tensor], *, expected: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise ModelError(
            f"model.safetensors does not fit config.json: missing tensors {missing}, unexpected tensors {unexpected}.",
            remedy="Export the bundle again.",
            missing=missing,
            unexpected=unexpected,
        )
    for name, tensor in sorted(tensors.items()):
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise ModelError(
                f"Tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"config.json requires {wanted.dtype} {tuple(wanted.shape)}.",
                remedy="Export the bundle again.",
                tensor=name,
            )


def _check_fit(config: ModelConfig, *, vocabulary: GeneVocabulary, labels: tuple[str, ...]) -> None:
    """Raise ModelError if vocabulary or labels do not fit the model."""
    if config.vocabulary_size != vocabulary.size:
        raise ModelError(
            f"The vocabulary has {vocabulary.size} tokens, the model has {config.vocabulary_size}.",
            remedy="Bundle a model with the vocabulary it was trained with.",
        )
    if config.num_labels != len(labels) or len(set(labels)) != len(labels):
        raise ModelError(
            f"The model has {config.num_labels} labels, {len(labels)} names ({len(set(labels))} distinct) were given.",
            remedy="Give one distinct name for each output of the classifier, in its order.",
        )
