"""``cytoray train …``: what a run would take, and going on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Training runs: plan one before it starts, resume one that was stopped.", no_args_is_help=True)


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="YAML file of a pretraining run.", show_default=False)],
    gpus: Annotated[str | None, typer.Option(help="Such as 8xH100; without it a step is measured here.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of one GPU-hour.", min=0)] = None,
    genes_per_cell: Annotated[
        float, typer.Option(help="Expressed genes of a cell, where the corpus is not there to tell.", min=1)
    ] = 2_000,
    overrides: Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one key; repeatable.")] = [],  # noqa: B006
) -> None:
    """Tell parameters, memory by ZeRO stage, steps, tokens, hours and cost of a pretraining run; nothing is started."""
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
        typer.echo(f"corpus       {settings.corpus} cannot be read, {genes_per_cell:,.0f} genes a cell are assumed")
        typer.echo(f"             ({error.problem})")
    made = plan_pretraining(settings, hardware, manifest=manifest, genes_per_cell=genes_per_cell)
    parts = ", ".join(f"{name} {number:,}" for name, number in made.parameters.items() if number)
    typer.echo(f"parameters   {sum(made.parameters.values()):,} ({parts})")
    for stage, size in made.state_bytes.items():
        typer.echo(f"ZeRO {stage}       {size / 1e9:.2f} GB a worker for weights, gradients and moments")
    typer.echo(f"activations  about {made.activation_bytes / 1e9:.1f} GB a worker for one micro-batch")
    epochs = "" if made.epochs is None else f", {made.epochs:.2f} epochs"
    typer.echo(f"steps        {made.num_steps:,} ({made.num_cells:,} cells{epochs})")
    typer.echo(f"tokens       {made.num_tokens:,} ({made.tokens_per_cell:,.0f} a cell)")
    typer.echo(f"operations   {made.flops:.3g}, padding and masked scores not counted")
    hours = made.seconds / 3600
    typer.echo(f"time         {f'{hours:,.2f} h' if hours >= 0.1 else f'{made.seconds:,.1f} s'} ({made.how})")
    if hardware.num_gpus:
        typer.echo(f"GPU-hours    {hours * hardware.num_gpus:,.0f}")
        if price is not None:
            typer.echo(f"cost         {hours * hardware.num_gpus * price:,.0f} at {price:g} a GPU-hour")


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    store: Annotated[str, typer.Option(help="Root of everything cytoray keeps: s3://bucket/prefix or a local folder.")],
    overrides: Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Change one key; repeatable.")] = [],  # noqa: B006
    allow: Annotated[list[str], typer.Option(help="Key that may differ from the run's; repeatable.")] = [],  # noqa: B006
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
) -> None:
    """Go on with a run from its newest intact checkpoint, with the configuration that it was started with.

    Keys that change no result (workers, how often is saved, where the journal lies) may be set freely, others by name.
    """
    from cytoray.stages.job import print_result, run_configured
    from cytoray.stages.resume import load_resumed_config

    config = load_resumed_config(store, run, overrides=overrides, allow=tuple(allow))
    print_result(run_configured(config.kind, config, num_cpus=num_cpus))
