"""The report of the quickstart: a table of stages, the scores beside the baselines, and next steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cytoray.evaluation.report import scores_table
from cytoray.tasks.annotation.evaluation import AnnotationReport


@dataclass
class StageRow:
    """One line of the table, which the stage fills in."""

    name: str
    seconds: float = 0.0
    num_cells: int | None = None
    where: str = ""
    note: str = ""

    def fill(self, num_cells: int | None, where: str, *, note: str = "", skipped: bool = False) -> None:
        """Fill in the number of cells, the location of the result, and a note; ``skipped`` if it already existed."""
        self.num_cells, self.where = num_cells, where
        self.note = "already done, skipped" if skipped else note


@dataclass
class StageLog:
    """The stages so far."""

    rows: list[StageRow] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageRow]:
        """Time a stage; it is added only if the block does not raise."""
        row, started = StageRow(name), time.monotonic()
        yield row
        row.seconds = time.monotonic() - started
        self.rows.append(row)


def show_summary(log: StageLog, report: AnnotationReport, *, separation: str, url: str, folder: Path) -> None:
    """Print the tables and the next steps on stdout."""
    console = Console(width=None if Console().is_terminal else 140)
    console.print(_stages(log.rows))
    console.print(_scores(report))
    console.print(separation, soft_wrap=True)
    console.print(f"plots     {report.files['confusion']}\n          {report.files['umap']}", soft_wrap=True)
    console.print(f"queried   {url}/v1/annotate and {url}/v1/embed (OpenAPI: {url}/docs)", soft_wrap=True)
    console.print("\nNext:")
    configs = folder / "configs"
    console.print(
        f"  cytoray serve --config {configs}/serve.yaml           # the same service, until Ctrl-C", soft_wrap=True
    )
    console.print(f"  open {url}/ in a browser: drop a file of cells and explore the answers", soft_wrap=True)
    console.print(
        f"  python -m jobs.finetune --config {configs}/finetune.yaml  # any stage as a job, here or on a cluster",
        soft_wrap=True,
    )
    console.print("  cytoray quickstart --data YOUR.h5ad --label-key CELL_TYPE_COLUMN", soft_wrap=True)


def _stages(rows: list[StageRow]) -> Table:
    table = Table(title="cytoray quickstart")
    for name, justify in (("stage", "left"), ("time", "right"), ("cells/s", "right"), ("result", "left"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        skipped = row.note.startswith("already done")
        rate = f"{row.num_cells / row.seconds:,.0f}" if row.num_cells and row.seconds and not skipped else ""
        table.add_row(row.name, f"{row.seconds:.1f} s", rate, row.where, row.note)
    return table


def _scores(report: AnnotationReport) -> Table:
    cells = report.scores["cytoray"].num_cells
    table = Table(title=f"annotation of {cells:,} held-out cells")
    for name in ("", "accuracy", "macro precision", "macro recall", "macro F1"):
        table.add_column(name, justify="right" if name else "left")
    for score in scores_table(report.scores):
        values = (score.accuracy, score.macro_precision, score.macro_recall, score.macro_f1)
        table.add_row(score.name, *(f"{value:.3f}" for value in values))
    return table
