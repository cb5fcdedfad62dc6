"""Configurations of the quickstart's stages, also written as YAML so that each can be run as a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.quickstart.data import VALIDATION_KEY, SplitData
from cytoray.serving.config import ServeConfig
from cytoray.stages.config import PromoteConfig
from cytoray.tasks.annotation.config import EvaluateConfig, FinetuneConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig, ValidationConfig

MODEL_NAME = "cytoray-quickstart"
TINY = ShapeConfig(width=64, num_heads=4, feedforward_width=64, num_layers=2, dropout=0.0, cell_embedding="mean")
SMALL = 1_000  # training cells
# 400 genes per cell: enough to distinguish blood cells, and a step takes less than half a second on one core.
TOKENS = TokenizerConfig(max_length=401)


@dataclass(frozen=True)
class Plan:
    """The configurations of all stages."""

    ingest: IngestConfig
    pretrain: PretrainConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    promote: PromoteConfig
    serve: ServeConfig

    def write(self, folder: Path) -> None:
        """Write each configuration as ``<stage>.yaml``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in vars(self).items():
            assert isinstance(config, Config)
            (folder / f"{name}.yaml").write_text(config.to_yaml(), encoding="utf-8")


def _train_config(num_steps: int, *, cells_per_step: int) -> TrainConfig:
    """Return training options with a checkpoint half-way."""
    return TrainConfig(num_steps=num_steps, cells_per_step=cells_per_step, checkpoint_every=max(1, num_steps // 2))


def build_plan(split: SplitData, *, store: str, folder: Path, port: int, num_steps: int) -> Plan:
    """Configure all stages for one split of cells; its id is part of the names, so other data make other runs."""
    tracking = TrackingConfig(
        uri=f"sqlite:///{folder / 'mlflow.db'}",
        experiment=f"cytoray-quickstart-{split.identity}",
        artifact_location=storage.join(store, "mlflow"),
        journal_folder=str(folder / "journal"),
    )
    ingest = IngestConfig(
        store=store,
        corpus=f"cells-{split.identity}",
        sources=(SourceConfig(uri=split.train_uri),),
        tokenizer=TOKENS,
        binning="stored",
    )
    pretrain = PretrainConfig(
        store=store,
        run=f"pretrain-{split.identity}",
        corpus=ingest.corpus,
        model=TINY,
        tokenizer=TOKENS,
        train=_train_config(num_steps, cells_per_step=64),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        tracking=tracking,
    )
    # About 17 epochs of a few hundred cells, or 7 of a few thousand: a few minutes on two cores.
    finetune_steps = (5 if split.num_train < SMALL else 8) * num_steps
    finetune = FinetuneConfig(
        store=store,
        run=f"finetune-{split.identity}",
        corpus=ingest.corpus,
        tokenizer=TOKENS,
        train=_train_config(finetune_steps, cells_per_step=32),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
        tracking=tracking,
        initial_run=pretrain.run,
        label_key=split.label_key,
        validation=ValidationConfig(select=f"{VALIDATION_KEY} == 'yes'"),
    )
    return Plan(ingest, pretrain, finetune, **_model_stages(finetune, split, folder=folder, port=port))


def _model_stages(finetune: FinetuneConfig, split: SplitData, *, folder: Path, port: int) -> dict[str, Any]:
    """Configure the stages that use the fine-tuned model."""
    model, cache = f"run:{finetune.run}", str(folder / "models")
    common: dict[str, Any] = {"store": finetune.store, "tracking": finetune.tracking, "cache_folder": cache}
    return {
        "evaluate": EvaluateConfig(
            **common,
            model=model,
            data=SourceConfig(uri=split.held_out_uri),
            label_key=split.label_key,
            baseline_corpus=finetune.corpus,
            folder=str(folder / "report"),
        ),
        "promote": PromoteConfig(**common, model=model, name=MODEL_NAME),
        "serve": ServeConfig(
            model_uri=f"models:/{MODEL_NAME}@champion",
            tracking=finetune.tracking,
            cache_folder=cache,
            num_cpus=0.5,
            max_replicas=2,
            port=port,
        ),
    }
