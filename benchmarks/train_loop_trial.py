"""What all sides of ``train_loop`` train: one corpus of real cells, one model, one objective, one order of cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from benchmarks.real_cells import DATA, FILES
from cytoray.cluster import connected
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tracking import TrackingConfig
from cytoray.training.config import (
    GenerativeConfig,
    OptimizerConfig,
    PretrainConfig,
    ShapeConfig,
    TrainConfig,
    WorkersConfig,
)

RATIO = 0.5  # of genes unknown; a run draws among three shares, which would make few steps differ by chance
MICRO_BATCH_TOKENS = 4_096  # what fits the caches of a core, as in train_step
UNREACHABLE = "http://127.0.0.1:9"  # no MLflow: it would take turns with the workers on two cores
CORPUS = "cells"
WARM_UP_STEPS = 2  # left out of every figure


@dataclass(frozen=True)
class Trial:
    """One side's work: ``num_steps`` steps of ``cells_per_step`` cells with a model of this shape."""

    folder: str  # of the store, and of the journals
    shape: ShapeConfig
    cells_per_step: int
    num_steps: int
    threads: int = 1  # of the process, or of each worker

    def config(self, run: str, *, num_workers: int, checkpoint_every: int | None = None) -> PretrainConfig:
        """Configure the run as in cytoray, with default settings; by default it is saved once, at its end."""
        return PretrainConfig(
            store=f"{self.folder}/store",
            run=run,
            corpus=CORPUS,
            model=self.shape,
            objective=GenerativeConfig(unknown_ratios=(RATIO,)),
            train=TrainConfig(
                num_steps=self.num_steps,
                cells_per_step=self.cells_per_step,
                micro_batch_tokens=MICRO_BATCH_TOKENS,
                checkpoint_every=checkpoint_every or self.num_steps,
            ),
            optimizer=OptimizerConfig(),
            workers=WorkersConfig(num_workers=num_workers, threads_per_worker=self.threads),
            tracking=TrackingConfig(uri=UNREACHABLE, journal_folder=f"{self.folder}/journal/{run}"),
        )

    def open_stream(self) -> CorpusStream:
        """The cells in the order in which such a run takes them."""
        config = self.config("stream", num_workers=1)
        ratios = config.objective.unknown_ratios
        options = StreamOptions(
            config.tokenizer, config.train.seed, self.cells_per_step, style="generative", ratios=ratios
        )
        return open_stream(config.store, CORPUS, options)


def ingest_cells(folder: Path) -> str:
    """Ingest the real cells that are at hand, else synthetic ones; returns where they come from."""
    paths = [path for name in FILES if (path := DATA / name).exists()]
    origin = " + ".join(path.name for path in paths)
    if not paths:
        paths, origin = common.synthetic_files(4_000, num_files=1), "synthetic: no real cells at hand"
    sources = tuple(SourceConfig(uri=str(path)) for path in paths)
    with connected(num_cpus=2):
        from cytoray.corpus.ingest import ingest  # imports Ray, which must wait for its authentication

        ingest(IngestConfig(store=str(folder / "store"), corpus=CORPUS, sources=sources, tokenizer=TokenizerConfig()))
    return origin
