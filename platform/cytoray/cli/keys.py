"""`cytoray keys`: API keys of the service, in a file that has only their hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytoray.cli.common import AsJson, print_answer

app = typer.Typer(help="API keys of the service.", no_args_is_help=True)
KeysFile = Annotated[Path, typer.Option("--file", envvar="CYTORAY_KEYS", help="File of the keys' hashes.")]
DEFAULT_FILE = Path("keys.json")


@app.command("new")
def keys_new(
    owner: Annotated[str, typer.Argument(help="Person or program that will use the key.", show_default=False)],
    file: KeysFile = DEFAULT_FILE,
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="A route it may ask: embed, annotate, metrics, …; repeatable; default: all."),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model it may ask, by name; repeatable; default: all.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--class", help="interactive, or bulk, which waits; default: by the size of each request."),
    ] = None,
    cells_per_minute: Annotated[float | None, typer.Option(help="Quota of cells; also the burst.", min=1)] = None,
    concurrency: Annotated[int | None, typer.Option(help="Maximum number of requests in flight.", min=1)] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires; default: never.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once; a service that uses the file accepts it within a second.

    An owner has at most two valid keys, so that a new one can be handed out before the old one is revoked.
    """
    from cytoray.config import build_from
    from cytoray.serving.edge.keys import Allowance, check_owner, create_key

    given: dict[str, Any] = {
        "scopes": scopes or None,
        "models": models or None,
        "kind": kind,
        "cells_per_minute": cells_per_minute,
        "concurrency": concurrency,
    }
    values = {name: value for name, value in given.items() if value is not None}
    allowance = build_from(Allowance, values, source="the options", origins={"scopes": "--scope", "kind": "--class"})
    token, record = create_key(file, owner=check_owner(owner), allowance=allowance, days=days)
    lines = [token, f"key {record.id} of {owner}, for {', '.join(allowance.scopes)}: shown once, keep it safe"]
    if as_json:
        print_answer({"key": token, **_described(record)}, [], as_json=True)
    else:
        typer.echo(lines[0])
        typer.echo(lines[1], err=True)


@app.command("ls")
def keys_ls(file: KeysFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys: id, owner, what it may do, when it was made and when it expires."""
    from cytoray.serving.edge.keys import read_keys

    rows = [_described(record) for record in read_keys(file).records.values()]
    lines = (
        f"{row['id']}  {row['owner']}  {','.join(row['scopes'])}  {row['class'] or 'any class'}"
        f"  made {row['created'][:10]}  {'expires ' + row['expires'][:10] if row['expires'] else 'does not expire'}"
        for row in rows
    )
    print_answer({"keys": rows}, lines, as_json=as_json)


@app.command("revoke")
def keys_revoke(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, see `ls`.", show_default=False)],
    file: KeysFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Remove a key; a service that uses the file refuses it within a second."""
    from cytoray.serving.edge.keys import revoke_key

    record = revoke_key(file, identity)
    print_answer({"revoked": _described(record)}, [f"revoked {record.id} of {record.owner}"], as_json=as_json)


def _described(record: Any) -> dict[str, Any]:
    """Return what is shown of a key."""
    allowance = record.allowance
    return {
        "id": record.id,
        "owner": record.owner,
        "scopes": list(allowance.scopes),
        "models": list(allowance.models),
        "class": allowance.kind,
        "cells_per_minute": allowance.cells_per_minute,
        "concurrency": allowance.concurrency,
        "created": record.created.isoformat(timespec="seconds"),
        "expires": record.expires.isoformat(timespec="seconds") if record.expires else None,
    }
