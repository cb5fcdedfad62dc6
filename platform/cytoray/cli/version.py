"""``cytoray version``."""

from __future__ import annotations

from cytoray.cli.common import AsJson, print_answer


def version(as_json: AsJson = False) -> None:
    """Print the version of cytoray and the revision of its code."""
    from cytoray import __version__
    from cytoray.provenance import git_revision

    found = {"version": __version__, "revision": git_revision()}
    print_answer(found, [f"cytoray {__version__} ({git_revision()})"], as_json=as_json)
