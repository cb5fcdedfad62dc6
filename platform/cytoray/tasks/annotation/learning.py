"""Fine-tune a model on labelled cells for cell-type annotation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from cytoray import storage
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import ConfigError, CorpusError
from cytoray.model.bundle import LABEL_TREE, Attachment, ModelBundle
from cytoray.model.bundle_files import canonical
from cytoray.registry.opening import OpenedModel
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tasks.annotation.evaluation import held_out_stability
from cytoray.tasks.annotation.fitting import AttachAnnotator
from cytoray.tasks.learning import Learning, open_initial, run_learning
from cytoray.tasks.starting import inherited_tokenizer, translate_corpus
from cytoray.tokens.label_tree import LabelTree
from cytoray.tokens.labels import missing_spellings_warning
from cytoray.training.export import ExportSpec
from cytoray.training.initial import InitialModel
from cytoray.training.objectives import ClassificationObjective
from cytoray.training.trainer import TrainingSpec
from cytoray.training.validation import held_in, open_held_out

logger = logging.getLogger(__name__)


def run_finetuning(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune as a stage; returns the result of the run, its bundle and its card as JSON data."""
    return run_learning(config, prepare)


def prepare(config: FinetuneConfig) -> Learning:
    """Prepare to fine-tune the model that ``config.initial`` names on the labelled cells of a corpus.

    Vocabulary and tokenizer are the model's: keys of ``config.tokenizer`` that are not set are inherited, and genes of
    the corpus that the model does not have are left out. Raises ConfigError if a key contradicts the model's,
    ModelError if it needs more of a cell than genes and values.
    """
    opened = open_initial(config)
    pretrained = opened.bundle
    config = config.model_copy(update={"tokenizer": inherited_tokenizer(config, pretrained.tokenizer_config)})
    options = StreamOptions(config.tokenizer, config.train.seed, config.train.cells_per_step, config.label_key)
    options = replace(options, translation=translate_corpus(opened))
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    if len(stream.labels) < 2:
        raise CorpusError(
            f"Corpus {config.corpus!r}: {config.label_key!r} has only the label {stream.labels[0]!r}.",
            remedy="Set label_key to a column with at least two kinds of cells.",
        )
    if warning := missing_spellings_warning(stream.labels, where=f"Corpus {config.corpus!r}, obs/{config.label_key}"):
        logger.warning(warning)
    model = pretrained.model.config.model_copy(update={"num_labels": len(stream.labels)})
    pad_id = pretrained.vocabulary.pad_id
    tree = None if config.label_tree is None else read_label_tree(config.label_tree)
    objective = ClassificationObjective(pad_id, below_labels(config, tree, stream.labels))
    held_out = open_held_out(options, config, like=stream)
    initial = initial_weights(opened, labels=stream.labels)
    training = TrainingSpec(config, stream, model, pad_id, objective, initial, held_out)
    spec = ExportSpec(model, pretrained.vocabulary, stream.labels, parent=opened.digest)
    if tree is not None:
        spec = replace(spec, convert=AttachTree(tree))
    if config.annotator:
        spec = replace(spec, complete=AttachAnnotator(config, stream.labels))
    return Learning(training, spec, stability=lambda bundle: held_out_stability(config, bundle))


@dataclass(frozen=True)
class AttachTree:
    """Attaches the label tree to a bundle, so that its answers can name what several labels have in common."""

    tree: LabelTree

    def __call__(self, bundle: ModelBundle) -> ModelBundle:
        """Return the bundle with the tree."""
        attachment = Attachment(canonical(dict(self.tree.parents)))
        return replace(bundle, attachments={**bundle.attachments, LABEL_TREE: attachment})


def below_labels(
    config: FinetuneConfig, tree: LabelTree | None, labels: tuple[str, ...]
) -> tuple[tuple[bool, ...], ...] | None:
    """Return which labels lie below others, (K, K) of ``LabelTree.below``; None without a tree of these labels."""
    if tree is None:
        return None
    below = tree.below(labels)
    if below.sum() == len(labels):
        logger.warning("%s puts no label of the corpus below another, so training does not change", config.label_tree)
        return None
    return tuple(map(tuple, below.tolist()))


def read_label_tree(uri: str) -> LabelTree:
    """Read a label tree from a file or s3://; ConfigError if it is missing, not text or not a tree."""
    data = storage.find_bytes(uri)
    if data is None:
        raise ConfigError(f"label_tree: {uri} does not exist.", remedy="Check the path.", key="label_tree")
    try:
        return LabelTree.parse(data.decode("utf-8-sig"), source=uri)
    except UnicodeDecodeError as error:
        problem = f"label_tree: {uri} is not UTF-8 text."
        raise ConfigError(problem, remedy="Save it as CSV.", key="label_tree") from error


def initial_weights(opened: OpenedModel, *, labels: tuple[str, ...]) -> InitialModel:
    """Return the weights to start from; without the classifier, unless it is one of the same labels."""
    bundle = opened.bundle
    weights = {
        name: tensor
        for name, tensor in bundle.model.state_dict().items()
        if bundle.labels == labels or not name.startswith("cls_decoder.")
    }
    return InitialModel(opened.uri, opened.digest, weights)
