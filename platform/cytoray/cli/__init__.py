"""The command line."""

from cytoray.cli.main import main

__all__ = ["main"]
