"""``cytoray assess TASK``: train and evaluate a task on one's own files, beside the simple method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoray.cli.common import AsJson, make_folder, print_answer

app = typer.Typer(help="Assess a task on your own labelled cells, beside the simple method.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Assess a task on your own labelled cells, beside the simple method."""


@app.command("annotation")
def annotation(
    data: Annotated[str, typer.Option(help="File of labelled cells: a path or s3://…")],
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")] = "cell_type",
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs with the batches; 5-fold then leaves out whole batches.")
    ] = None,
    protocol: Annotated[
        Literal["5-fold", "few-labels", "transfer", "leave-type-out"],
        typer.Option(help="What is held out: folds, most labels, another data set (--query), or each type in turn."),
    ] = "5-fold",
    query: Annotated[str | None, typer.Option(help="File that protocol transfer is scored on.")] = None,
    label_map: Annotated[
        Path | None, typer.Option(help="JSON or YAML table of labels, if those of data and query differ.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits and fits.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("assessment"),
    as_json: AsJson = False,
) -> None:
    """Assess cell-type annotation: tuned logistic regression, and a blend of methods that contains it."""
    from cytoray import progress
    from cytoray.evaluation.assessment import write_report
    from cytoray.evaluation.assessment_page import render_page
    from cytoray.tasks.annotation.assessment import assess_annotation, check_protocol, num_splits
    from cytoray.tasks.annotation.assessment_page import annotation_sections
    from cytoray.tasks.annotation.labelled import gene_synonym, read_label_map, read_labelled

    check_protocol(protocol, has_query=query is not None)  # before anything is read
    names = read_label_map(label_map) if label_map is not None else None
    make_folder(out)
    cells = read_labelled(data, label_key, batch_key=batch_key)
    asked = read_labelled(query, label_key) if query is not None else None
    with progress.stage("assess", total=num_splits(cells, protocol), unit="splits") as advance:
        found = assess_annotation(
            cells, protocol, query=asked, label_map=names, synonym=gene_synonym(), seed=seed, advance=advance
        )
    files = write_report(found, out, page=render_page(found, annotation_sections(found)))
    lines = [
        f"{name}: {row.product:.3f}, simple method {row.baseline:.3f}" + (f" ({row.verdict})" if row.verdict else "")
        for name, row in found.metrics.items()
        if row.product is not None and row.baseline is not None
    ]
    print_answer(found.as_dict(), [*lines, *found.warnings, str(files["report.html"])], as_json=as_json)
