"""Fine-tune a model to predict a column of numbers in obs, through the distributed loop."""

# K distinct numbers, C cells of an epoch

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError
from cytoray.model.bundle import ModelBundle
from cytoray.model.targets import HEAD, LABEL_TYPE, NUMBER, REGRESSION, Scale
from cytoray.tasks.learning import Learning, open_initial, run_learning
from cytoray.tasks.regression.config import FinetuneRegressionConfig
from cytoray.tasks.starting import inherited_tokenizer, translate_corpus
from cytoray.tokens.keys import Float64
from cytoray.training.export import ExportSpec
from cytoray.training.initial import InitialModel
from cytoray.training.regression import RegressionObjective
from cytoray.training.trainer import TrainingSpec
from cytoray.training.validation import held_in, open_held_out


def run_finetuning(config: FinetuneRegressionConfig) -> dict[str, Any]:
    """Fine-tune as a stage; returns the result of the run, its bundle and its card as JSON data."""
    return run_learning(config, prepare)


def prepare(config: FinetuneRegressionConfig) -> Learning:
    """Prepare to fine-tune the model that ``config.initial`` names on the numbers of a corpus.

    They are standardised by the cells that are trained on; the bundle's head gives them as they are in obs. Raises
    CorpusError for a column that has other values than numbers, or one number only.
    """
    opened = open_initial(config)
    base = opened.bundle
    config = config.model_copy(update={"tokenizer": inherited_tokenizer(config, base.tokenizer_config)})
    options = StreamOptions(config.tokenizer, config.train.seed, config.train.cells_per_step, config.target_key)
    options = replace(options, translation=translate_corpus(opened))
    every = open_stream(config.store, config.corpus, options)  # held-out cells have numbers of their own
    stream = open_stream(config.store, config.corpus, held_in(every.coded(options), config))
    values_K = parse_numbers(every.labels, where=f"Corpus {config.corpus!r}, obs/{config.target_key}")
    scale = measure(stream, values_K)
    model = base.model.config.model_copy(update={"num_labels": 1})
    pad_id = base.vocabulary.pad_id
    standardised_K = scale.standardise(torch.from_numpy(values_K)[:, None])[:, 0].double().numpy()
    objective = RegressionObjective(pad_id, standardised_K, config.number_loss)
    body = {name: tensor for name, tensor in base.model.state_dict().items() if not name.startswith("cls_decoder.")}
    initial = InitialModel(opened.uri, opened.digest, body)
    held_out = open_held_out(options, config, like=every)
    training = TrainingSpec(config, stream, model, pad_id, objective, initial, held_out)
    labels, convert = (config.target_key,), GiveNumbers(scale)
    spec = ExportSpec(model, base.vocabulary, labels, parent=opened.digest, convert=convert)
    return Learning(training, spec)


@dataclass(frozen=True)
class GiveNumbers:
    """Converts a bundle whose head gives standardised numbers to one that gives the numbers."""

    scale: Scale

    def __call__(self, bundle: ModelBundle) -> ModelBundle:
        """Convert it in place; return it with the lineage of a regression."""
        assert bundle.model.cls_decoder is not None, "a model with a head"
        self.scale.release(bundle.model.cls_decoder)
        return replace(bundle, lineage={**bundle.lineage, HEAD: REGRESSION, LABEL_TYPE: NUMBER})


def parse_numbers(texts: tuple[str, ...], *, where: str) -> Float64:
    """Return the finite numbers (K,) that the texts are; CorpusError that names ``where`` otherwise."""
    numbers = [_number(text) for text in texts]
    if wrong := [text for text, number in zip(texts, numbers, strict=True) if not math.isfinite(number)]:
        shown = ", ".join(map(repr, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        raise CorpusError(
            f"{where}: {len(wrong)} of {len(texts)} distinct values are not finite numbers: {shown}.",
            remedy="Name a column of numbers, or use `cytoray finetune` for classes.",
        )
    if len(set(numbers)) < 2:
        raise CorpusError(f"{where}: every cell has the number {texts[0]}.", remedy="Name a column that varies.")
    return np.array(numbers)


def measure(stream: CorpusStream, values_K: Float64) -> Scale:
    """Return the scale of the numbers of the cells of a stream, ``values_K`` by code."""
    members = stream.members
    (column,) = members.columns
    counts_K = np.zeros(len(values_K), np.int64)
    for unit in range(len(members.counts)):
        counts_K += np.bincount(members.codes(column, unit, members.rows(unit)), minlength=len(values_K))
    return Scale.of(torch.from_numpy(np.repeat(values_K, counts_K))[:, None])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
