"""``cytoray perturbations fit`` and ``cytoray perturb``: fit a model of a screen, and predict perturbations with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer
from cytoray.tasks.perturbation.assess_config import COVARIATES, GENE_SETS, MODEL, PERTURBATION_KEY, SCREEN

if TYPE_CHECKING:
    from cytoray.registry.opening import OpenedModel
    from cytoray.tasks.perturbation.perturbation_model import PerturbationModel

app = typer.Typer(help="Perturbations: fit a model of a screen; `cytoray perturb` uses it.", no_args_is_help=True)
Seed = Annotated[int, typer.Option(help="Seed of samples.", min=0)]


@app.callback()
def group() -> None:
    """Perturbations: fit a model of a screen; `cytoray perturb` uses it."""


@app.command()
def fit(
    data: Annotated[str, typer.Option(help="File of cells: a path or s3://…", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the model; must not exist.", show_default=False)],
    perturbation_key: Annotated[str, typer.Option(help=PERTURBATION_KEY)] = "perturbation",
    control: Annotated[str, typer.Option(help="Value of that column in control cells.")] = "control",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batches.")] = None,
    covariates: Annotated[str, typer.Option(help=COVARIATES, show_default=False)] = "",
    gene_sets: Annotated[list[str], typer.Option(help=GENE_SETS)] = [],  # noqa: B006
    screen: Annotated[list[str], typer.Option(help=SCREEN)] = [],  # noqa: B006
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    store: Annotated[str | None, typer.Option(envvar=STORE, help="Root of everything, for run:NAME.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a model of the effects of perturbations on a screen."""
    from cytoray.errors import ConflictError
    from cytoray.tasks.perturbation.perturbation_model import PerturbationModel

    if out.exists():
        raise ConflictError(f"{out} already exists.", remedy="Choose another folder.")
    fitted = PerturbationModel.fit(
        data,
        perturbation_key=perturbation_key,
        control=control,
        batch_key=batch_key,
        covariates=[name.strip() for name in covariates.split(",") if name.strip()],
        gene_sets=gene_sets,
        screens=screen,
        model=None if model is None else _open_model(model, store, uri),
        seed=seed,
    )
    digest = fitted.save(out)
    lines = [*fitted.facts["warnings"], str(fitted.facts["why"]), f"model {out}  {digest}"]
    print_answer({"model": str(out), "digest": digest, "facts": dict(fitted.facts)}, lines, as_json=as_json)


def perturb(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of `cytoray perturbations fit`, or a model that carries one: a bundle, run:NAME or models:/….",
            show_default=False,
        ),
    ],
    genes: Annotated[
        str, typer.Option(help="Perturbations, such as STAT1,IRF9,STAT1+IRF1, or conditions of the screen.")
    ],
    data: Annotated[str, typer.Option(help="File of control cells: a path or s3://…", show_default=False)],
    out: Annotated[Path, typer.Option(help="h5ad of predicted cells; effects as JSON beside it.", show_default=False)],
    at: Annotated[
        list[str], typer.Option(help="Point such as dose=0.5,time=6, of a model with covariates; repeatable.")
    ] = [],  # noqa: B006
    generator: Annotated[
        str | None, typer.Option(help="Where the generator lies that MODEL predicts with, if it was moved: any URI.")
    ] = None,
    num_cells: Annotated[int, typer.Option(help="Cells for each perturbation.", min=1)] = 200,
    seed: Seed = 0,
    store: Annotated[str | None, typer.Option(envvar=STORE, help="Root of everything, for run:NAME.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict what perturbations do: effect per gene with interval, confidence and reason, and predicted cells."""
    from cytoray.tasks.perturbation.covariates import parse_point, point_text
    from cytoray.tasks.perturbation.left_out import reason_text
    from cytoray.tasks.perturbation.perturbation_model import write_prediction

    points = [parse_point(text) for text in at]
    place = None if generator is None else _open_model(generator, store, uri)
    opened = _open(model, place, store=store, uri=uri)
    found, files = write_prediction(opened, genes, data, out, at=points, num_cells=num_cells, seed=seed)
    lines = list(found.warnings)
    for row, name in enumerate(found.names):
        most = ", ".join(f"{each['gene']} {each['delta']:+.2f}" for each in found.top(row, num=8))
        if found.covariates:
            name += f" ({point_text(tuple(found.covariates[row]), tuple(found.covariates[row].values()))})"
        lines.append(f"{name}: confidence {found.confidence[row]:.2f}. {reason_text(found.reasons[row])}. {most}")
    print_answer(found.as_dict() | {"files": files}, [*lines, *files], as_json=as_json)


def _open(model: str, generator: OpenedModel | None, *, store: str | None, uri: str | None) -> PerturbationModel:
    """The perturbation model in a folder, or that of a model that carries one."""
    from cytoray.errors import ModelError
    from cytoray.tasks.perturbation.model_files import MANIFEST
    from cytoray.tasks.perturbation.perturbation_model import PerturbationModel

    if Path(model).is_dir() and (Path(model) / MANIFEST).is_file():
        return PerturbationModel.load(model, generator=generator)
    from cytoray.tasks.perturbation.attached import attached_perturbations

    found = attached_perturbations(_open_model(model, store, uri).bundle)
    if found is None:
        raise ModelError(
            f"{model} carries no perturbation model.",
            remedy="Fit one with `cytoray perturbations fit`, and attach it with "
            "`cytoray models attach MODEL --perturbations FOLDER`.",
        )
    return PerturbationModel.of(found)


def _open_model(model: str, store: str | None, uri: str | None) -> OpenedModel:
    """The model that is named by any URI."""
    from cytoray.cli.common import tracking_of
    from cytoray.registry.opening import REGISTERED, open_model

    tracking = tracking_of(uri) if uri is not None and model.startswith(REGISTERED) else None
    return open_model(model, store=store, tracking=tracking)
