"""``cytoray reference``: build a reference of labelled cells, map new cells among them, and describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytoray.cli.attach import MODEL
from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer, tracking_of

if TYPE_CHECKING:
    from cytoray.registry.opening import OpenedModel
    from cytoray.tasks.mapping.mapper import Embed
    from cytoray.tasks.mapping.reference import Reference

app = typer.Typer(help="References: map new cells among labelled ones.", no_args_is_help=True)
Folder = Annotated[str, typer.Argument(help="Folder or s3:// prefix of the reference.", show_default=False)]
RunStore = Annotated[str | None, typer.Option("--store", envvar=STORE, help="Root of everything, for run:NAME.")]
Uri = Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")]


@app.command()
def build(
    data: Annotated[list[str], typer.Option(help="File of labelled cells, or a prefix; repeatable.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix to write; must not exist.", show_default=False)],
    model: Annotated[
        str | None, typer.Argument(help=f"{MODEL} Without it cells are compared by their genes alone.")
    ] = None,
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")] = "cell_type",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batches.")] = None,
    space: Annotated[
        Literal["auto", "components", "discriminants", "embeddings", "components and embeddings"],
        typer.Option(help="Where cells are neighbours; auto chooses on folds of the reference."),
    ] = "auto",
    index: Annotated[
        Literal["auto", "exact", "hnsw"], typer.Option(help="Kind of index; auto: exact for up to 500,000 cells.")
    ] = "auto",
    umap: Annotated[bool, typer.Option(help="Compute the map on which cells of a query are shown.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of folds and fits.", min=0)] = 0,
    store: RunStore = None,
    uri: Uri = None,
    as_json: AsJson = False,
) -> None:
    """Build a reference: an index of labelled cells, with what is needed to answer new ones."""
    from cytoray import progress, storage
    from cytoray.errors import ConfigError, ConflictError
    from cytoray.tasks.mapping.building import build_reference
    from cytoray.tasks.mapping.cells import read_reference
    from cytoray.tasks.mapping.fitting import num_steps
    from cytoray.tasks.mapping.reference import MAP, save_reference
    from cytoray.tokens.vocabulary import GeneVocabulary

    if model is None and "embeddings" in space:
        raise ConfigError(f"--space {space} needs a model.", remedy="Name the model before the options.")
    if storage.exists(storage.join(out, MAP)) or (not storage.is_remote(out) and storage.local_path(out).exists()):
        raise ConflictError(f"{out} already exists.", remedy="Choose another folder; a reference is never overwritten.")
    opened = None if model is None else _open(model, store, uri)
    vocabulary = GeneVocabulary.load_default() if opened is None else opened.bundle.vocabulary
    cells, warnings = read_reference(data, label_key, batch_key=batch_key, vocabulary=vocabulary)
    about: dict[str, Any] = {"model": None if opened is None else _describe(opened)}
    about |= {"vocabulary": vocabulary.digest(), "sources": sorted({*cells.sources}), "label_key": label_key}
    with progress.stage("build", total=num_steps() + 2, unit="steps") as advance:
        reference = build_reference(
            cells,
            embed=None if opened is None else _embed_with(opened),
            about=about,
            space=None if space == "auto" else space,
            index=None if index == "auto" else index,
            seed=seed,
            with_map=umap,
            advance=advance,
        )
    digest = save_reference(reference, out)
    known = reference.about
    answer = {"reference": out, "digest": digest, "num_cells": len(reference.meta), **known, "warnings": warnings}
    lines = [str(known["why_space"]), str(known["why"]), *warnings]
    lines.append(f"reference {out}  {len(reference.meta):,} cells, {len(reference.mapper.labels)} labels  {digest}")
    print_answer(answer, lines, as_json=as_json)


@app.command()
def query(
    reference: Annotated[
        str,
        typer.Argument(help="Folder or s3:// prefix of a reference, or a model that carries one.", show_default=False),
    ],
    data: Annotated[str, typer.Option(help="File of cells to map: a path or s3://…", show_default=False)],
    out: Annotated[str, typer.Option(help="Answers: .h5ad, .parquet or .json.", show_default=False)],
    report: Annotated[str | None, typer.Option(help="Page of pictures to write, an .html.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with known types, only compared with.")] = None,
    model: Annotated[str | None, typer.Option(help=f"The reference's model, if it has moved. {MODEL}")] = None,
    store: RunStore = None,
    uri: Uri = None,
    as_json: AsJson = False,
) -> None:
    """Map cells among those of a reference: labels with probabilities and doubts, neighbours, places on its map."""
    from cytoray import storage
    from cytoray.tasks.mapping.cells import read_query
    from cytoray.tasks.mapping.output import check_out, summary_lines, write_answers
    from cytoray.tasks.mapping.page import render_mapping
    from cytoray.tasks.mapping.querying import map_query
    from cytoray.tasks.mapping.rows import answer_rows, header
    from cytoray.tokens.vocabulary import GeneVocabulary

    check_out(out)
    known, opened = _open_reference(reference, model, (store, uri))
    vocabulary = GeneVocabulary.load_default() if opened is None else opened.bundle.vocabulary
    cells = read_query(data, vocabulary=vocabulary, label_key=label_key)
    found = map_query(known, cells, embed=None if opened is None else _embed_with(opened))
    rows, about = answer_rows(found, cells.names), header(found)
    write_answers(out, rows, about)
    lines = [*summary_lines(rows), *found.warnings, out]
    if report is not None:
        storage.write_bytes(report, render_mapping(known, rows, about, truth=cells.labels, title=data))
        lines.append(report)
    print_answer({**about, "out": out, "num_cells": len(rows)}, lines, as_json=as_json)


@app.command()
def info(folder: Folder, as_json: AsJson = False) -> None:
    """Describe a reference: its model, labels, index and how it answers."""
    from cytoray.tasks.mapping.reference import read_about

    about, digest = read_about(folder)
    shown: dict[str, Any] = {"digest": digest} | {key: about[key] for key in about if key not in ("mapper", "files")}
    lines = [f"{key}: {value}" for key, value in shown.items() if key not in ("scores", "space_scores")]
    print_answer(shown, lines, as_json=as_json)


def _open_reference(
    place: str, model: str | None, where: tuple[str | None, str | None]
) -> tuple[Reference, OpenedModel | None]:
    """Open a reference and the model that it needs, or a model that carries one; ``where``: store and MLflow."""
    from cytoray import storage
    from cytoray.errors import ConfigError
    from cytoray.model.bundle import DIGESTS, compute_weights_digest
    from cytoray.registry.opening import REGISTERED, RUN
    from cytoray.tasks.mapping.attached import attached_reference
    from cytoray.tasks.mapping.reference import load_reference
    from cytoray.tokens.vocabulary import GeneVocabulary

    opened: OpenedModel | None = None
    if place.startswith((RUN, REGISTERED)) or storage.exists(storage.join(place, DIGESTS)):
        opened = _open(place, *where)
        carried = attached_reference(opened.bundle)
        if carried is None or model is not None:
            raise ConfigError(
                f"{place} is a model " + ("that carries no reference." if carried is None else "itself."),
                remedy="Attach one with `cytoray models attach`, or name the folder of a reference."
                if carried is None
                else "Leave out --model.",
            )
        return carried, opened
    found = load_reference(place)
    made_by = found.about["model"]
    needed = made_by is not None and found.mapper.space.uses_embeddings
    if needed or model is not None or found.about["vocabulary"] != GeneVocabulary.load_default().digest():
        opened = _open(model or made_by["uri"], *where)
        found.check_model(compute_weights_digest(opened.bundle), opened.uri)
    return found, opened


def _describe(opened: OpenedModel) -> dict[str, str]:
    """Identify a model in a reference."""
    from cytoray.model.bundle import compute_weights_digest

    return {"uri": opened.uri, "digest": opened.digest, "weights": compute_weights_digest(opened.bundle)}


def _embed_with(opened: OpenedModel) -> Embed:
    from cytoray.model.predictor import CellPredictor
    from cytoray.tasks.mapping.querying import embed_with

    return embed_with(CellPredictor(opened.bundle, empty_cells="nan").predict)


def _open(model: str, store: str | None, uri: str | None) -> OpenedModel:
    from cytoray.registry.opening import REGISTERED, open_model

    tracking = tracking_of(uri) if uri is not None and model.startswith(REGISTERED) else None
    return open_model(model, store=store, tracking=tracking)
