"""Run the stages one after the other, check the result of each, and report what was made."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from cytoray import progress, storage
from cytoray.cluster import available, is_shared, start
from cytoray.corpus.ingest import ingest
from cytoray.corpus.reading import read_labelled_cells
from cytoray.errors import CytorayError, ServingError, TrainingError
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.quickstart.data import EMBEDDED_LABEL_KEY, SplitData, embedded_data, put_split_data
from cytoray.quickstart.embeddings import Separation, measure_separation
from cytoray.quickstart.plan import Plan, build_plan
from cytoray.quickstart.report import StageLog, show_summary
from cytoray.stages import run
from cytoray.tasks.annotation.evaluation import AnnotationReport, evaluate_configured, held_out_stability
from cytoray.tasks.annotation.learning import prepare
from cytoray.tasks.learning import learn
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import RunConfig
from cytoray.training.pretraining import pretrain
from cytoray.training.report import save_card
from cytoray.training.trainer import TrainingResult

logger = logging.getLogger(__name__)
MARKER = ".cytoray-quickstart"
NUM_QUERIES = 64
TOLERANCE = 1e-5
SERVE_HOST = "127.0.0.1"


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of the command line."""

    folder: Path
    store: str | None = None
    data: str | None = None
    label_key: str | None = None
    port: int = 8000
    num_cpus: int = 2
    max_cells: int = 10_000
    num_steps: int = 60
    fresh: bool = False


def run_quickstart(options: QuickstartOptions) -> None:
    """Run all stages, from a file of cells to a served model; raises CytorayError if a check fails."""
    if (options.data is None) != (options.label_key is None):
        raise CytorayError(
            "--data and --label-key must be used together.", remedy="Give the file and its column of cell types."
        )
    from cytoray.serving.app import check_port

    check_port(SERVE_HOST, port=options.port)  # now, not after minutes of training
    folder = _prepare_folder(options)
    store = storage.join(options.store or str(folder / "store"), "quickstart")
    if options.fresh:
        storage.delete_prefix(store)
    log = StageLog()
    with log.stage("data") as row:
        split = _split(options, storage.join(store, "raw"))
        row.fill(split.num_train + split.num_held_out, split.train_uri, skipped=split.skipped)
    logger.info("data: %s", split.description)
    plan = build_plan(split, store=store, folder=folder, port=options.port, num_steps=options.num_steps)
    plan.write(folder / "configs")
    with available(num_cpus=options.num_cpus):
        _train(plan, split, log)
        report, separation = _evaluate_and_register(plan, log)
        url = _serve_and_ask(plan, report, log)
    show_summary(log, report, separation=separation.text(), url=url, folder=folder)


def _prepare_folder(options: QuickstartOptions) -> Path:
    """Return the local folder; ``--fresh`` empties it if the quickstart made it."""
    folder = options.folder.expanduser().absolute()
    if options.fresh and folder.exists():
        if not (folder / MARKER).exists() and any(folder.iterdir()):
            raise CytorayError(
                f"{folder} was not made by the quickstart, so --fresh will not empty it.",
                remedy="Choose another folder with --folder.",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder


def _split(options: QuickstartOptions, prefix: str) -> SplitData:
    """Put the user's cells, or the example cells, into the store."""
    data, label_key = options.data or embedded_data(), options.label_key or EMBEDDED_LABEL_KEY
    return put_split_data(data, label_key, prefix=prefix, max_cells=options.max_cells)


def _train(plan: Plan, split: SplitData, log: StageLog) -> None:
    """Ingest, pretrain, fine-tune."""
    with log.stage("ingest") as row, progress.stage("ingest", total=split.num_train, unit="cells") as advance:
        ingested = ingest(plan.ingest, advance=advance)
        row.fill(ingested.manifest.num_cells, ingested.uri, skipped=ingested.skipped)
    steps = plan.pretrain.train.num_steps
    with log.stage("pretrain") as row, progress.stage("pretrain", total=steps, unit="steps") as advance:
        result, bundle = pretrain(plan.pretrain, advance=advance)
        save_card(plan.pretrain, result, bundle=bundle)
        row.fill(_cells(plan.pretrain), result.checkpoint.uri, note=_learned(result), skipped=result.skipped)
    steps = plan.finetune.train.num_steps
    with log.stage("finetune") as row, progress.stage("finetune", total=steps, unit="steps") as advance:
        result, bundle = learn(prepare(plan.finetune), advance=advance)
        stability = held_out_stability(plan.finetune, bundle)
        save_card(plan.finetune, result, bundle=bundle, stability=stability)
        row.fill(_cells(plan.finetune), result.checkpoint.uri, note=_learned(result), skipped=result.skipped)


def _cells(config: RunConfig) -> int:
    """Return the number of cells in all steps of a run, repetitions included."""
    return config.train.num_steps * config.train.cells_per_step


def _learned(result: TrainingResult) -> str:
    """Describe how the loss decreased; raises TrainingError if it did not."""
    losses = [point["loss"] for point in result.history]
    tenth = max(1, len(losses) // 10)
    first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    if not last < first:
        raise TrainingError(
            f"The loss of {result.checkpoint.uri} did not decrease ({first:.3f} to {last:.3f}).",
            remedy="Check that the cells are counts of human genes.",
        )
    return f"loss {first:.3g} -> {last:.3g}"


def _evaluate_and_register(plan: Plan, log: StageLog) -> tuple[AnnotationReport, Separation]:
    """Score the held-out cells, draw the plots, and register the model with the alias champion."""
    with log.stage("evaluate") as row:
        report = evaluate_configured(plan.evaluate)
        scores = report.scores["cytoray"]
        separation = _measure_pretrained(plan)
        row.fill(scores.num_cells, plan.evaluate.folder, note=f"accuracy {scores.accuracy:.3f}")
    with log.stage("register") as row:
        version = run.promote(plan.promote)
        row.fill(None, f"models:/{version.name}/{version.version}", note=f"alias {plan.promote.alias}")
    return report, separation


def _measure_pretrained(plan: Plan) -> Separation:
    """Return how well embeddings separate the held-out cells before fine-tuning."""
    pretrained = run.open_configured(plan.evaluate.model_copy(update={"model": f"run:{plan.pretrain.run}"})).bundle
    held_out = read_labelled_cells(plan.evaluate.data, plan.evaluate.label_key, vocabulary=pretrained.vocabulary)
    embeddings = CellPredictor(pretrained).predict(held_out.cells).embeddings
    return measure_separation(held_out.cells, [str(label) for label in held_out.labels], embeddings=embeddings)


def _serve_and_ask(plan: Plan, report: AnnotationReport, log: StageLog) -> str:
    """Serve the champion, send it held-out cells, and compare with the offline answers."""
    from cytoray.serving.app import run_service, stop_service

    try:
        with log.stage("serve") as row:
            start()
            url = run_service(plan.serve, **plan.serve.listening())
            row.fill(None, url, note=f"{plan.serve.min_replicas} to {plan.serve.max_replicas} replicas")
        with log.stage("query") as row:
            held_out = read_labelled_cells(plan.evaluate.data, plan.evaluate.label_key).cells
            rows = np.arange(min(NUM_QUERIES, held_out.num_cells))
            worst = compare_served(url, held_out.take(rows), report.predictions)
            row.fill(2 * len(rows), f"{url}/v1/annotate", note=f"served = offline to {worst:.0e}")
    finally:
        if is_shared():  # a Ray started here is stopped as a whole
            stop_service()
    return url


def compare_served(url: str, cells: SparseCells, offline: Predictions) -> float:
    """Send the first cells of ``offline`` to both routes; returns the largest difference, ServingError above 1e-5."""
    from cytoray.serving.client import Client

    vocabulary = GeneVocabulary.load_default()
    used, columns = np.unique(cells.gene_ids, return_inverse=True)
    matrix = sparse.csr_matrix((cells.values, columns, cells.indptr), shape=(cells.num_cells, len(used)))
    genes = [vocabulary.tokens[gene] for gene in used]
    with Client(url) as client:
        annotated, embedded = client.annotate(genes, matrix), client.embed(genes, matrix)
    assert offline.probabilities is not None, "annotation was evaluated"
    served = ((annotated.probabilities, offline.probabilities), (embedded, offline.embeddings))
    worst = max(float(np.abs(answer - truth[: len(answer)]).max()) for answer, truth in served)
    if not worst <= TOLERANCE:
        raise ServingError(
            f"Served answers differ from the offline ones by {worst:.1e}, more than {TOLERANCE:.0e}.",
            remedy="Check that the service runs the registered version.",
        )
    return worst
