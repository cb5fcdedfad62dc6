"""Configuration of fine-tuning for annotation, and of its evaluation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cytoray.config import Location
from cytoray.corpus.config import SourceConfig
from cytoray.tasks.config import FromModelConfig, ModelStageConfig
from cytoray.training.config import CORPUS


class FinetuneConfig(FromModelConfig):
    """Fine-tuning a model for cell-type annotation."""

    inputs: ClassVar[frozenset[str]] = frozenset({"label_tree"})

    kind: Literal["finetune"] = Field("finetune", description="Which stage this file configures.")
    label_key: str = Field(description="Column of obs with the cell types; cells without one are skipped.")
    label_tree: Location | None = Field(
        None,
        description="CSV or TSV table with the columns label and parent: a cell may then be anything below its label "
        "(hierarchical cross-entropy). null: labels exclude each other.",
    )
    annotator: bool = Field(
        True,
        description="Whether the bundle also carries tuned logistic regression and its companions, and the transformer "
        "joins their blend if the cells of validation say that it helps. false: its classifier answers alone.",
    )


class EvaluateConfig(ModelStageConfig):
    """Configuration of evaluate: score an annotation model on held-out labelled cells."""

    kind: Literal["evaluate"] = Field("evaluate", description="Which stage this file configures.")
    data: SourceConfig = Field(description="Held-out cells.")
    label_key: str = Field(description="Column of obs with the true cell types.")
    baseline_corpus: str = Field(pattern=CORPUS, description="Corpus that logistic regression is trained on.")
    folder: Location = Field("report", description="Local folder for scores.json and the plots.")
    plots: tuple[Literal["png", "svg", "pdf"], ...] = Field(
        ("png",), min_length=1, description="Formats of the plots; the report shows the first."
    )
