"""Fine-tune scGPT's generator of perturbed cells on a screen, through the distributed loop."""

# C cells, G genes of the panel, P values of the perturbation's column, V genes of the default vocabulary

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cytoray import progress
from cytoray.corpus.manifest import CorpusManifest, load_manifest
from cytoray.corpus.stream import open_stream, sample_described_cells
from cytoray.corpus.streaming.members import MemberOptions, ObsColumn, ObsWeights
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.pairs import PairOptions
from cytoray.errors import CorpusError, ModelError
from cytoray.evaluation.perturbation.baselines import predict_mean
from cytoray.evaluation.perturbation.effects import CONTROL, PerturbedCells, measure_effects
from cytoray.evaluation.perturbation.significance import error_weights, t_scores
from cytoray.evaluation.variable_genes import most_variable, standardised_variances
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.runs import BundleRecord
from cytoray.tasks.perturbation.config import FinetunePerturbationConfig
from cytoray.tasks.perturbation.corpus_screen import CONDITION, Screen, read_screen
from cytoray.tasks.perturbation.generator import find_generator, keep_earlier_targets
from cytoray.tasks.starting import inherited_tokenizer, translate_corpus
from cytoray.tokens.features import extend_vocabulary, feature_token
from cytoray.tokens.preprocessing import log1p, normalise_total
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.export import ExportSpec, export_bundles
from cytoray.training.initial import InitialModel
from cytoray.training.perturbation import HeldOutEffects, PerturbationObjective, perturbation_model
from cytoray.training.report import save_card
from cytoray.training.result import TrainingResult
from cytoray.training.trainer import TrainingSpec, run_training
from cytoray.training.validation import held_in, open_held_out

logger = logging.getLogger(__name__)
TASK = "perturbation"
ENCODERS = ("encoder.", "value_encoder.", "transformer_encoder.")  # all that the original loads of a pretrained model


def run_finetuning(config: FinetunePerturbationConfig) -> dict[str, Any]:
    """Fine-tune as a stage; returns the result of the run, its bundle and its card as JSON data."""
    with progress.stage("finetune-perturbation", total=config.train.num_steps, unit="steps") as advance:
        result, bundle = finetune(config, advance=advance)
    card = save_card(config, result, bundle=bundle, scores=held_out_scores(result))
    return result.summary() | {"bundle": bundle.uri, "bundle_digest": bundle.digest, "card": card}


def finetune(
    config: FinetunePerturbationConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Fine-tune the model that ``config.initial`` names on the screen of a corpus; ``advance`` counts steps.

    The bundle lists perturbations, panel and conditions. Raises CorpusError for a corpus without controls or with
    unknown targets, ModelError for a model whose tokens need more than genes, values and flags.
    """
    opened = open_model(
        config.initial_uri, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
    )
    base, recipe = opened.bundle, config.perturbation
    if needed := [name for name in base.model.config.needed_conditions if name != "perturbation flags"]:
        raise ModelError(
            f"{opened.uri} needs {' and '.join(needed)} for each cell already.",
            remedy="Start from a model of genes and values.",
        )
    manifest = load_manifest(config.store, config.corpus)
    screen = read_screen(config.store, manifest, recipe, base.vocabulary)
    new = [name for name in screen.conditions if feature_token(CONDITION, name) not in base.vocabulary]
    vocabulary = extend_vocabulary(base.vocabulary, {CONDITION: new})
    measured = Measured.read(config, opened, manifest, screen)
    panel = tuple(sorted({*measured.genes, *targets_of(screen, vocabulary)}))
    tokenizer = inherited_tokenizer(config, base.tokenizer_config)
    length = min(recipe.max_tokens, len(panel))
    config = config.model_copy(update={"tokenizer": tokenizer.model_copy(update={"max_length": length})})
    options = perturbation_stream(config, screen, vocabulary, panel)
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    model = perturbation_model(base.model.config, vocabulary_size=vocabulary.size, dropout=recipe.dropout)
    spec = TrainingSpec(
        config,
        stream,
        model,
        vocabulary.pad_id,
        build_objective(config, screen, measured, vocabulary, panel),
        initial_weights(opened, model, seed=config.train.seed),
        open_held_out(options, config, like=stream),
    )
    result = run_training(spec, advance=advance)
    columns = {recipe.perturbation_key: screen.names}
    features = {CONDITION: screen.conditions} if screen.conditions else {}
    genes = tuple(vocabulary.tokens[gene] for gene in panel)
    conditions = Conditions(task=TASK, columns=columns, features=features, panel=genes)
    earlier = find_generator(base, opened.uri)
    convert = None if earlier is None else functools.partial(keep_earlier_targets, initial=tuple(earlier.trained_on))
    export = ExportSpec(model, vocabulary, parent=opened.digest, conditions=conditions, convert=convert)
    return result, export_bundles(config, result, export)


def perturbation_stream(
    config: FinetunePerturbationConfig, screen: Screen, vocabulary: GeneVocabulary, panel: Sequence[int]
) -> StreamOptions:
    """Return the stream: perturbed cells, each with a control of its batch, and flags of the genes that are hit."""
    recipe = config.perturbation
    hit = {name: target_ids(screen, name, vocabulary) for name in screen.names}
    batches = () if recipe.batch_key is None else (ObsColumn(recipe.batch_key, values=screen.batches),)
    names = screen.names if recipe.control_cells else tuple(screen.perturbations)
    return StreamOptions(
        config.tokenizer,
        config.train.seed,
        config.train.cells_per_step,
        weights=ObsWeights(recipe.perturbation_key) if recipe.balanced else None,
        panel=tuple(panel),
        pairs=PairOptions(recipe.perturbation_key, recipe.control, match=recipe.batch_key, perturbed=hit),
        columns=(ObsColumn(recipe.perturbation_key, values=names), *batches),
        translation=Translation.to(vocabulary),
    )


def target_ids(screen: Screen, name: str, vocabulary: GeneVocabulary) -> tuple[int, ...]:
    """Return the ids of the genes and conditions that a perturbation hits; none of the control."""
    if name == screen.control:
        return ()
    each = screen.perturbations[name]
    tokens = (*each.genes, *(feature_token(CONDITION, other) for other in each.others))
    return tuple(vocabulary.index[token] for token in tokens)


def targets_of(screen: Screen, vocabulary: GeneVocabulary) -> set[int]:
    """Return the ids of all genes and conditions that some perturbation hits."""
    return {gene for name in screen.perturbations for gene in target_ids(screen, name, vocabulary)}


@dataclass(frozen=True, eq=False)
class Measured:
    """The genes of the panel that were measured, and cells of the screen over them."""

    genes: tuple[int, ...]  # ids in the model's vocabulary, ascending
    seen: PerturbedCells  # not held out, over ``genes``; codes are those of the screen's perturbations
    held_out: PerturbedCells | None

    @staticmethod
    def read(
        config: FinetunePerturbationConfig, opened: OpenedModel, manifest: CorpusManifest, screen: Screen
    ) -> Measured:
        """Read cells of the corpus and choose the genes that vary most among those that are not held out."""
        held_out = config.validation
        kept = None if held_out is None else f"not ({held_out.select})"
        values, labels = _read_cells(config, manifest, screen, kept)
        translation = translate_corpus(opened)
        table = np.arange(values.shape[1]) if translation is None else translation.table
        known = np.flatnonzero(table >= 0)
        expressed = known[np.asarray(values[:, known].sum(axis=0)).ravel() > 0]
        hit = np.isin(table[expressed], list(targets_of_genes(screen, opened.bundle.vocabulary)))
        most = most_variable(standardised_variances(values[:, expressed]), config.num_genes)
        columns = np.unique(np.concatenate([expressed[most], expressed[hit]]))
        columns = columns[np.argsort(table[columns], kind="stable")]
        columns = columns[np.unique(table[columns], return_index=True)[1]]
        if len(columns) < 2:
            raise CorpusError(
                f"Corpus {config.corpus!r}: {len(columns)} genes that {opened.uri} knows vary over its cells.",
                remedy="Give cells of raw counts, with genes that the model knows.",
            )
        genes = tuple(table[columns].tolist())
        seen = _cells_of(values, columns, labels, screen)
        if held_out is None:
            return Measured(genes, seen, None)
        values, labels = _read_cells(config, manifest, screen, held_out.select)
        return Measured(genes, seen, _cells_of(values, columns, labels, screen))


def targets_of_genes(screen: Screen, vocabulary: GeneVocabulary) -> set[int]:
    """Return the ids of all genes that some perturbation hits."""
    return {vocabulary.index[gene] for gene in screen.genes}


def _read_cells(
    config: FinetunePerturbationConfig, manifest: CorpusManifest, screen: Screen, select: str | None
) -> tuple[sparse.csr_matrix, dict[str, tuple[str, ...]]]:
    """Read selected cells of the screen: values (C, V), and their columns."""
    recipe = config.perturbation
    batches = () if recipe.batch_key is None else (ObsColumn(recipe.batch_key, values=screen.batches),)
    options = MemberOptions((ObsColumn(recipe.perturbation_key, values=screen.names), *batches), select)
    sample = sample_described_cells(
        config.store, manifest, options, max_cells=config.max_panel_cells, seed=config.train.seed
    )
    shape = (sample.cells.num_cells, GeneVocabulary.load_default().size)
    matrix = sparse.csr_matrix((sample.cells.values, sample.cells.gene_ids, sample.cells.indptr), shape=shape)
    labels = {"perturbation": sample.columns[recipe.perturbation_key]}
    if recipe.batch_key is not None:
        labels["batch"] = sample.columns[recipe.batch_key]
    return matrix, labels


def _cells_of(
    values: sparse.csr_matrix, columns: npt.NDArray[np.int64], labels: Mapping[str, Sequence[str]], screen: Screen
) -> PerturbedCells:
    """Cells over some genes, log-normalised over all of them; batches are coded by their place in the screen."""
    expression = log1p(normalise_total(values))[:, columns]
    order = {name: code for code, name in enumerate(screen.batches or ("",))}
    batches = [order[name] for name in labels.get("batch", [""] * values.shape[0])]
    index = {name: code for code, name in enumerate(screen.perturbations)} | {screen.control: CONTROL}
    codes = [index[name] for name in labels["perturbation"]]
    names = tuple(screen.perturbations)
    return PerturbedCells(expression, np.array(codes, np.int64), names, np.array(batches, np.int64))


def build_objective(
    config: FinetunePerturbationConfig,
    screen: Screen,
    measured: Measured,
    vocabulary: GeneVocabulary,
    panel: Sequence[int],
) -> PerturbationObjective:
    """Return the objective: what is predicted, weights by perturbation and gene, and the effects that are held out."""
    places = np.searchsorted(panel, measured.genes)
    predicted = np.isin(panel, measured.genes)
    weights = np.zeros((len(screen.names), len(panel)), np.float32)
    weights[:, places] = 1.0
    own = np.stack([np.isin(measured.genes, target_ids(screen, name, vocabulary)) for name in screen.names])
    if config.perturbation.loss == "weighted":
        for code, found in _change_weights(measured.seen, own).items():
            found[own[code]] = found.max()  # their loss is learnt like the largest change
            weights[code, places] = found / max(float(found.mean()), 1e-12)
    held_out = _held_out_effects(config, measured, own, places=places, size=len(panel))
    ids = np.array(panel, np.int64)
    key = config.perturbation.perturbation_key
    return PerturbationObjective(vocabulary.pad_id, key, ids, predicted, weights, held_out)


def _held_out_effects(
    config: FinetunePerturbationConfig,
    measured: Measured,
    own: npt.NDArray[np.bool_],
    *,
    places: npt.NDArray[np.int64],
    size: int,
) -> HeldOutEffects | None:
    """Effects that are held out, against the controls of all cells, over the panel; None if no cell is held out."""
    cells = measured.held_out
    if cells is None or not len(cells.present):
        return None
    codes, everything = cells.present, cells.joined_with(measured.seen)
    kept = np.concatenate([np.ones(len(cells.codes), bool), measured.seen.codes == CONTROL])
    truth = measure_effects(everything.take(np.flatnonzero(kept)).without_empty()).deltas
    mean = predict_mean(measure_effects(measured.seen.without_empty()), 1)[0]
    weights = np.ones_like(truth)
    if config.perturbation.loss == "weighted":
        found = _change_weights(everything, own)
        weights = np.stack([found[code] for code in codes.tolist()])
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    truth, mean, weights, scored = (_spread(values, places, size) for values in (truth, mean, weights, ~own[codes]))
    return HeldOutEffects(codes, truth, mean, weights, scored.astype(bool))


def _change_weights(cells: PerturbedCells, own: npt.NDArray[np.bool_]) -> dict[int, npt.NDArray[np.float64]]:
    """Weights (G,) of the genes for each perturbation that has cells, by code: by how much they change, own ones 0."""
    codes = cells.present
    found = error_weights(t_scores(measure_effects(cells.without_empty())), ~own[codes])
    return dict(zip(codes.tolist(), found, strict=True))


def _spread(values: npt.NDArray[Any], places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float64]:
    """Return ``values`` of the measured genes at their places in the panel, 0 elsewhere."""
    spread = np.zeros((*values.shape[:-1], size))
    spread[..., places] = values
    return spread


def initial_weights(opened: OpenedModel, model: ModelConfig, *, seed: int) -> InitialModel:
    """Return the weights to start from: seeded ones, and those that the initial model shares.

    Of a generator of perturbed cells that is every part, of any other model its encoders alone, as in the original.
    """
    torch.manual_seed(seed)
    weights = ScGPT(model, pad_id=opened.bundle.vocabulary.pad_id).state_dict()
    continues = opened.bundle.model.config.num_perturbation_flags > 0
    loaded = []
    for name, tensor in opened.bundle.model.state_dict().items():
        if name not in weights or not (continues or name.startswith(ENCODERS)):
            continue
        if name == "encoder.embedding.weight":
            table = weights[name] * float(tensor.std()) / float(weights[name].std())  # of new conditions
            table[: len(tensor)] = tensor
            weights[name] = table
        elif weights[name].shape == tensor.shape:
            weights[name] = tensor
        else:
            continue
        loaded.append(name)
    logger.info(
        "%s: %d tensors are loaded (%s), the other %d start at random",
        opened.uri, len(loaded), "all that fit" if continues else "the encoders", len(weights) - len(loaded),
    )  # fmt: skip
    return InitialModel(opened.uri, opened.digest, weights)


def held_out_scores(result: TrainingResult) -> dict[str, dict[str, float]]:
    """Return the figures of the best checkpoint on held-out perturbations, beside those of the mean of the others."""
    points = [dict(point) for point in result.checkpoint.state.validation if "delta_error" in point]
    if not points:
        return {}
    best = min(points, key=lambda point: point["delta_error"])
    names = ("pearson_delta", "delta_error")
    return {
        "generator": {name: best[name] for name in names},
        "mean of seen": {name: best[f"mean_of_seen_{name}"] for name in names},
    }
