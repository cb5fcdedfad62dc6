"""ModelBundle: the folder that passes from training to serving, self-describing, verified by digests, no pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cytoray.errors import ModelError
from cytoray.model.bundle_files import (
    ATTACHMENTS,
    CONDITIONS,
    DIGESTS,
    Attachment,
    canonical,
    check_attachment_names,
    digest_files,
    read_verified,
    write_files,
)
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.targets import HEAD, REGRESSION
from cytoray.model.transformer import ScGPT
from cytoray.tokens.features import FeatureTokens, feature_token, find_features
from cytoray.tokens.inference import DRAWN, InferenceConfig
from cytoray.tokens.label_tree import LabelTree
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

__all__ = [
    "ATTACHMENTS",
    "DIGESTS",
    "Attachment",
    "Conditions",
    "ModelBundle",
    "compute_digest",
    "compute_weights_digest",
    "load_bundle",
    "save_bundle",
]
Value = TypeVar("Value")
LABEL_TREE = "label_tree.json"  # an attachment: the parent of each label


@dataclass
class ModelBundle:
    """A model with everything needed to use it on new cells and to trace its origin.

    ``digest`` is the SHA-256 of the bundle's ``digests.json``, hence of everything in it; set by saving and loading.
    ``attachments`` are files by name that belong to the model, such as an index; those of a loaded bundle are read
    from its folder when they are asked for. Raises ModelError if the parts do not fit the model.
    """

    model: ScGPT = field(repr=False)
    vocabulary: GeneVocabulary = field(repr=False)
    tokenizer_config: TokenizerConfig
    labels: tuple[str, ...] = ()
    lineage: dict[str, str] = field(default_factory=dict)
    digest: str | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    conditions: Conditions | None = None
    attachments: Mapping[str, Attachment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_fit(self.model.config, vocabulary=self.vocabulary, labels=self.labels, conditions=self.conditions)
        check_attachment_names(self.attachments)

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels that the model chooses among; empty if it has no head, or one that predicts numbers."""
        return () if self.lineage.get(HEAD) == REGRESSION else self.labels

    @property
    def label_tree(self) -> LabelTree | None:
        """The tree of labels that the model was trained with, read from its attachment; None without one."""
        if LABEL_TREE not in self.attachments:
            return None
        parents = _parse(dict[str, str], self.attachments[LABEL_TREE].read(), file=Path(LABEL_TREE))
        return LabelTree(parents)

    def tokenizer(self) -> CellTokenizer:
        """Tokenizer of genes for inference: of the panel, if the model has one."""
        if self.conditions is None or self.conditions.panel is None:
            return CellTokenizer(self.vocabulary, self.tokenizer_config, self.inference)
        panel = tuple(self.vocabulary.index[gene] for gene in self.conditions.panel)
        room = {"max_length": max(self.inference.max_length, len(panel) + 1)}
        return CellTokenizer(self.vocabulary, self.tokenizer_config, self.inference.model_copy(update=room), panel)

    def features(self) -> tuple[FeatureTokens, ...]:
        """Further modalities whose features are tokens of the model, in the order of their codes from 2 on."""
        if self.conditions is None or not self.conditions.context:
            return ()
        context = self.conditions.context
        return find_features(self.vocabulary, {name: self.conditions.features[name] for name in context}, context)


def save_bundle(bundle: ModelBundle, folder: Path) -> str:
    """Write the bundle as ``folder``, which appears only when complete, and return its digest.

    Equal content gives equal bytes and so an equal digest. Raises ConflictError if ``folder`` exists.
    """
    bundle.digest = write_files(Path(folder), _serialise(bundle), bundle.attachments)
    return bundle.digest


def compute_digest(bundle: ModelBundle) -> str:
    """Return the digest that saving the bundle would give it, without writing anything."""
    return digest_files(_serialise(bundle), bundle.attachments)


def compute_weights_digest(bundle: ModelBundle) -> str:
    """Return the SHA-256 of all that embeddings depend on: weights, vocabulary, preprocessing and conditions.

    Other labels, lineage or attachments do not change it, so that what was made with a model stays tied to it.
    """
    others = {"labels.json", "lineage.json"}
    contents = {name: data for name, data in _serialise(bundle).items() if name not in others}
    return hashlib.sha256(
        canonical({name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    ).hexdigest()


def load_bundle(folder: Path) -> ModelBundle:
    """Load a bundle onto the CPU after verifying every byte of it; nothing in it can run code.

    Attachments are verified too, but stay in the folder: keep it for as long as they are used. Raises NotFoundError if
    the folder has no bundle, DigestError for changed, missing or additional files, ModelError for content that is
    intact but does not fit together.
    """
    folder = Path(folder)
    files = read_verified(folder)
    contents = files.contents
    config = _parse(ModelConfig, contents["config.json"], file=folder / "config.json")
    preprocessing = _parse(_Preprocessing, contents["preprocessing.json"], file=folder / "preprocessing.json")
    labels = _parse(tuple[str, ...], contents["labels.json"], file=folder / "labels.json")
    lineage = _parse(dict[str, str], contents["lineage.json"], file=folder / "lineage.json")
    conditions = None
    if CONDITIONS in contents:
        conditions = _parse(Conditions, contents[CONDITIONS], file=folder / CONDITIONS)
    vocabulary = GeneVocabulary.from_json(contents["vocab.json"])
    _check_fit(config, vocabulary=vocabulary, labels=labels, conditions=conditions)
    return ModelBundle(
        _build(config, pad_id=vocabulary.pad_id, weights=contents["model.safetensors"]),
        vocabulary,
        TokenizerConfig(**preprocessing.model_dump(exclude={"inference"})),
        labels,
        lineage,
        files.digest,
        preprocessing.inference,
        conditions,
        files.attachments,
    )


class _Preprocessing(TokenizerConfig):
    """Content of ``preprocessing.json``."""

    inference: InferenceConfig = DRAWN  # in older bundles, which do not record it


def _serialise(bundle: ModelBundle) -> dict[str, bytes]:
    state = bundle.model.state_dict()
    weights = {name: _stored(tensor) for name, tensor in state.items()}
    preprocessing = bundle.tokenizer_config.model_dump(mode="json")
    if bundle.inference != DRAWN:  # so that an older bundle, saved again, keeps its bytes and its digest
        preprocessing["inference"] = bundle.inference.model_dump(mode="json")
    contents = {
        "config.json": canonical(bundle.model.config.model_dump(mode="json")),
        "labels.json": canonical(list(bundle.labels)),
        "lineage.json": canonical(bundle.lineage),
        "model.safetensors": safetensors.torch.save(weights),
        "preprocessing.json": canonical(preprocessing),
        "vocab.json": bundle.vocabulary.to_json().encode(),
    }
    if bundle.conditions is not None:
        contents[CONDITIONS] = canonical(bundle.conditions.model_dump(mode="json"))
    return contents


def _stored(tensor: Tensor) -> Tensor:
    """Convert floating-point tensors to fp32; others are not changed."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind).contiguous()


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
    with _Uninitialised():
        model = ScGPT(config, pad_id=pad_id)
    _check_tensors(tensors, expected=model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model.eval()


class _Uninitialised(TorchFunctionMode):
    """Modules are built without drawing weights.

    The memory that they do not write is never used. On the device "meta", torch would import its tracer for a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


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


def _check_fit(
    config: ModelConfig, *, vocabulary: GeneVocabulary, labels: tuple[str, ...], conditions: Conditions | None
) -> None:
    """Refuse parts that do not belong together."""
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
    if conditions is not None and conditions.context:
        _check_features(config, vocabulary, conditions)
    panel = () if conditions is None or conditions.panel is None else conditions.panel
    if unknown := [gene for gene in panel if gene not in vocabulary]:
        raise ModelError(
            f"The vocabulary does not have {len(unknown)} genes of the panel: {', '.join(unknown[:5])}.",
            remedy="Name genes of the panel as the vocabulary does.",
            unknown=unknown[:20],
        )


def _check_features(config: ModelConfig, vocabulary: GeneVocabulary, conditions: Conditions) -> None:
    """Refuse features that are not tokens, and a model with another number of modalities."""
    for modality in conditions.context:
        names = [feature_token(modality, feature) for feature in conditions.features[modality]]
        if unknown := [name for name in names if name not in vocabulary]:
            raise ModelError(
                f"The vocabulary does not have {len(unknown)} features of {modality}: {', '.join(unknown[:5])}.",
                remedy="Bundle a model with the vocabulary that was extended by its features.",
                unknown=unknown[:20],
            )
    if config.num_modalities != 2 + len(conditions.context):
        raise ModelError(
            f"The model has {config.num_modalities} modalities, expected {2 + len(conditions.context)}: special "
            f"tokens, genes, {', '.join(conditions.context)}.",
            remedy="Bundle a model with the conditions that it was trained under.",
        )
