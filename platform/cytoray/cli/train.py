"""Commands of ``cytoray train``: estimate the cost of a run, and resume one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytoray.cli.common import AsJson, JsonAnyway, Store, print_answer

if TYPE_CHECKING:
    from cytoray.training.plan import TrainingPlan

app = typer.Typer(help="Training runs: estimate the cost of a run, resume a stopped one.", no_args_is_help=True)


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="YAML file of a pretraining run.", show_default=False)],
    gpus: Annotated[
        str | None, typer.Option(help="Such as 8xH100; by default steps are measured on this machine.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one GPU-hour.", min=0)] = None,
    genes_per_cell: Annotated[
        float, typer.Option(help="Expressed genes per cell, used if the corpus is missing.", min=1)
    ] = 2_000,
    overrides: Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one key; repeatable.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Estimate parameters, memory by ZeRO stage, steps, tokens, hours and cost of a pretraining run."""
    from cytoray.config import load_config
    from cytoray.corpus.manifest import load_manifest
    from cytoray.errors import CorpusError, StorageError
    from cytoray.training.config import PretrainConfig
    from cytoray.training.plan import Hardware, plan_pretraining

    settings = load_config(PretrainConfig, config, overrides=overrides)
    hardware = Hardware.parse(gpus) if gpus else Hardware()
    try:
        manifest = load_manifest(settings.store, settings.corpus)
    except (CorpusError, StorageError) as error:
        manifest = None
        typer.echo(f"corpus       {settings.corpus} cannot be read", err=as_json)
        typer.echo(f"             ({error.problem})", err=as_json)
    if hardware.count_here() or not hardware.num_gpus:
        typer.echo("measuring steps of this run on this machine, which takes about half a minute ...", err=True)
    made = plan_pretraining(settings, hardware, manifest=manifest, genes_per_cell=genes_per_cell)
    print_answer(made, _lines(made, num_gpus=hardware.num_gpus, price=price), as_json=as_json)


def _lines(made: TrainingPlan, *, num_gpus: int, price: float | None) -> Iterator[str]:
    """Format a plan as lines of text."""
    parts = ", ".join(f"{name} {number:,}" for name, number in made.parameters.items() if number)
    yield f"parameters   {sum(made.parameters.values()):,} ({parts})"
    for stage, size in made.state_bytes.items():
        yield f"ZeRO {stage}       {size / 1e9:.2f} GB per worker for weights, gradients and moments"
    yield f"activations  about {made.activation_bytes / 1e9:.1f} GB per worker for one micro-batch"
    yield f"objective    {made.objective}"
    epochs = "" if made.epochs is None else f", {made.epochs:.2f} epochs"
    yield f"steps        {made.num_steps:,} ({made.num_cells:,} cells{epochs})"
    yield f"tokens       {made.num_tokens:,} ({made.tokens_per_cell:,.0f} per cell)"
    yield f"operations   {made.flops:.3g}, padding and masked scores not counted"
    hours, estimate = made.seconds / 3600, made.estimate
    yield f"step         {estimate.step_s:.3g} s ({estimate.how})"
    if estimate.start_s is not None:
        yield f"start        about {estimate.start_s:.0f} s before the first step"
    yield f"time         {f'{hours:,.2f} h' if hours >= 0.1 else f'{made.seconds:,.1f} s'} for all steps"
    if num_gpus:
        yield f"GPU-hours    {hours * num_gpus:,.0f}"
        if price is not None:
            yield f"cost         {hours * num_gpus * price:,.0f} at {price:g} per GPU-hour"
    for number, assumption in enumerate(made.assumptions):
        yield f"{'' if number else 'assumed':<13}{assumption}"


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    store: Store,
    overrides: Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Change one key; repeatable.")] = [],  # noqa: B006
    allow: Annotated[list[str], typer.Option(help="Key that may differ from the run's; repeatable.")] = [],  # noqa: B006
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
    as_json: JsonAnyway = False,
) -> None:
    """Continue a run from its newest intact checkpoint, with the configuration that it was started with.

    Keys that change results by no more than the rounding of sums may be set freely: threads and CPUs per worker,
    workers.zero_stage, the checkpoint interval, the location of the journal. So may workers.num_workers,
    train.accumulation and train.micro_batch_tokens, but with dropout the masks differ from then on.
    Other keys need --allow.
    """
    from cytoray.stages.job import print_result, run_configured
    from cytoray.stages.resume import load_resumed_config

    config = load_resumed_config(store, run, overrides=overrides, allow=tuple(allow))
    print_result(run_configured(config.kind, config, num_cpus=num_cpus))
