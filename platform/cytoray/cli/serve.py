"""`cytoray serve`: the service in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import Overrides


def serve(
    config: Annotated[Path, typer.Option("--config", help="YAML file of the service.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
) -> None:
    """Serve a model on this machine (or the cluster of RAY_ADDRESS) until Ctrl-C or SIGTERM, answering what is asked.

    Requests in flight are answered before it ends, with exit code 0; a second signal ends it at once.
    """
    from cytoray.config import load_config
    from cytoray.serving.config import ServeConfig
    from cytoray.serving.running import serve_until_stopped
    from cytoray.tasks import task_endpoints

    settings = load_config(ServeConfig, config, overrides=overrides)

    def announce(url: str) -> None:
        """Print where the service is."""
        routes = ", ".join(endpoint.route for endpoint in task_endpoints().values())
        page = f"The explorer: {url}/. " if settings.explorer.enabled else ""
        typer.echo(f"{page}Serving {routes} at {url}; OpenAPI at {url}/docs. Stop with Ctrl-C.")

    serve_until_stopped(settings, num_cpus=num_cpus, on_ready=announce)
