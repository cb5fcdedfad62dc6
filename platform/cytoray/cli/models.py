"""Commands of ``cytoray models``: registered versions, import and export of the public scGPT layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytoray.cli.attach import MODEL, attach_command
from cytoray.cli.common import STORE, TRACKING, AsJson, TrackingUri, print_answer, tracking_of
from cytoray.drafts import replace_file

if TYPE_CHECKING:
    from cytoray.operations.reproducing.lineage import Places
    from cytoray.registry.artifacts import RegisteredVersion

app = typer.Typer(help="Models: registered versions; import and export of scGPT's layout.", no_args_is_help=True)
VersionArgument = Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS.", show_default=False)]
MODEL_OR_SHORT = f"{MODEL} NAME@ALIAS and NAME/VERSION are short for registered ones."
ModelArgument = Annotated[str, typer.Argument(help=MODEL_OR_SHORT, show_default=False)]
ModelTracking = Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")]
SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.-]+|/[0-9]+)")
RunStore = Annotated[str | None, typer.Option("--store", envvar=STORE, help="Root of everything, for run:NAME.")]


@app.command("ls")
def list_(
    uri: TrackingUri,
    model: Annotated[str | None, typer.Argument(help="Name of a registered model; without it all are listed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a model, or of all, with their aliases and bundle digests."""
    from cytoray.registry.models import list_models, list_versions

    tracking = tracking_of(uri)
    names = [model] if model else list_models(tracking=tracking)
    found = [version for name in names for version in list_versions(name, tracking=tracking)]
    lines = [
        "  ".join([f"{row.name}/{row.version}", row.digest[:16], " ".join(row.aliases), *_figures(row)]).rstrip()
        for row in found
    ]
    print_answer({"versions": found}, lines or ["No model has been registered yet."], as_json=as_json)


@app.command()
def show(version: VersionArgument, uri: TrackingUri, as_json: AsJson = False) -> None:
    """Show a version: its digest, aliases, files, and the assessments that were recorded on it."""
    from cytoray.registry.models import find_version

    found = find_version(_version_uri(version), tracking=tracking_of(uri))
    lines = [f"{found.name}/{found.version}  {found.digest}", f"aliases  {' '.join(found.aliases) or 'none'}"]
    lines.append(f"files  {found.source_uri}")
    for each in found.assessments:
        lines += [each.line(), f"  {each.data}, {each.split}", f"  run {found.run_id}, {each.report}/report.html"]
    print_answer(found, lines if found.assessments else [*lines, "No assessment is recorded."], as_json=as_json)


@app.command()
def record(
    version: VersionArgument,
    report: Annotated[str, typer.Argument(help="Folder or s3://… that `cytoray assess` wrote.", show_default=False)],
    uri: TrackingUri,
    as_json: AsJson = False,
) -> None:
    """Record the report of an assessment on the version that it was made with: figures as tags, files as artifacts."""
    from cytoray.registry.assessments import record_assessment
    from cytoray.registry.models import find_version

    tracking = tracking_of(uri)
    found = record_assessment(find_version(_version_uri(version), tracking=tracking), report, tracking=tracking)
    print_answer(found, ["  ".join([f"{found.name}/{found.version}", *_figures(found)])], as_json=as_json)


def _places(store: str | None, uri: str | None) -> Places:
    """Return where models are looked up."""
    from cytoray.operations.reproducing.lineage import Places

    return Places(store, None if uri is None else tracking_of(uri))


@app.command()
def card(
    model: ModelArgument,
    out: Annotated[Path | None, typer.Option(help="File to write instead: .md or .json.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, which no file states.")] = None,
    store: RunStore = None,
    uri: ModelTracking = None,
    as_json: AsJson = False,
) -> None:
    """Print a model card: what it is, its data, figures beside simple methods, limits, licence, lineage."""
    from cytoray.errors import ConfigError
    from cytoray.operations.describing.card import build_card, card_markdown
    from cytoray.operations.describing.models import describe_model

    if out is not None and out.suffix not in (".md", ".json"):
        raise ConfigError(f"{out} is neither .md nor .json.", remedy="Name a file of one of these kinds.")
    found = build_card(describe_model(_model_uri(model), places=_places(store, uri)), licence=licence)
    if out is None:
        print_answer(found, card_markdown(found), as_json=as_json)
        return
    text = json.dumps(found, indent=1) if out.suffix == ".json" else "\n".join(card_markdown(found))
    replace_file(out.expanduser().absolute(), f"{text}\n".encode())
    print_answer({"out": str(out), "model": found["model"], "digest": found["digest"]}, [str(out)], as_json=as_json)


@app.command()
def diff(
    first: ModelArgument,
    second: Annotated[str, typer.Argument(help="The model to compare it with.", show_default=False)],
    store: RunStore = None,
    uri: ModelTracking = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models: settings, data, vocabulary, labels, figures, files."""
    from cytoray.operations.describing.model_diff import diff_lines, diff_models
    from cytoray.operations.describing.models import describe_model

    places = _places(store, uri)
    one, two = (describe_model(_model_uri(model), places=places) for model in (first, second))
    found = diff_models(one, two)
    print_answer(found, diff_lines(found), as_json=as_json)


def _model_uri(model: str) -> str:
    """Return a model's URI; NAME/VERSION and NAME@ALIAS are short for those of a registered one."""
    return f"models:/{model}" if SHORT.fullmatch(model) else model


def _version_uri(version: str) -> str:
    return version if version.startswith("models:/") else f"models:/{version}"


def _figures(version: RegisteredVersion) -> list[str]:
    return ["; ".join(each.line() for each in version.assessments)] if version.assessments else []


@app.command()
def register(
    bundle: Annotated[str, typer.Argument(help=MODEL, show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the registered model; created if missing.", show_default=False)],
    uri: TrackingUri,
    alias: Annotated[str | None, typer.Option(help="Alias to move to the version, such as champion.")] = None,
    allow_loss: Annotated[
        list[str], typer.Option(metavar="TASK", help="Move it despite a recorded loss in this task; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing mutates it
    store: RunStore = None,
    as_json: AsJson = False,
) -> None:
    """Register a bundle as a new model version and candidate; needs neither a training run nor scores."""
    from cytoray.registry.gate import AssessmentsConfig
    from cytoray.registry.models import register as register_bundle
    from cytoray.registry.opening import open_model
    from cytoray.registry.promotion import promote_version

    tracking = tracking_of(uri)
    with open_model(bundle, store=store, tracking=tracking).as_folder() as path:
        version = register_bundle(path, name=name, tracking=tracking, alias=None if alias else "candidate")
    if alias not in (None, "candidate"):
        allowed = AssessmentsConfig(allow_loss=tuple(allow_loss))
        version = promote_version(version, tracking=tracking, assessments=allowed, alias=alias)
    line = f"models:/{version.name}/{version.version}  {version.digest[:16]}  {' '.join(version.aliases)}"
    print_answer(version, [line], as_json=as_json)


app.command("attach")(attach_command())


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    uri: TrackingUri,
    alias: Annotated[str, typer.Option(help="Alias to move back.")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Give an alias back to the version that had it before; a second rollback undoes the first."""
    from cytoray.registry.promotion import roll_back

    current, previous = roll_back(model, tracking=tracking_of(uri), alias=alias)
    found = {alias: current, "previous": previous}
    lines = [f"{alias}  {version.name}/{version.version}  {version.digest[:16]}" for alias, version in found.items()]
    print_answer(found, lines, as_json=as_json)


@app.command("import")
def import_(
    folder: Annotated[str, typer.Argument(help="Folder or s3://… with best_model.pt, args.json and vocab.json.")],
    out: Annotated[Path, typer.Option(help="Local folder for the bundle; must not exist.", show_default=False)],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="num_heads=8, cell_embedding=mean, …; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing mutates it
    label: Annotated[list[str], typer.Option(help="Name of the classifier's next output; repeatable.")] = [],  # noqa: B006
    labels: Annotated[Path | None, typer.Option(help="File with these names instead, one per line.")] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Initialise missing tensors of a head that is only partly in the file."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a public scGPT checkpoint into a bundle; reports each tensor and runs no code from the files."""
    from cytoray.model.bundle import save_bundle
    from cytoray.model.public_checkpoint import load_public_checkpoint
    from cytoray.tasks.attaching import local_folder

    fields, names = _fields(overrides), _names(label, labels)
    with local_folder(folder) as path:
        checkpoint = load_public_checkpoint(path, overrides=fields, allow_missing=allow_missing)
    digest = save_bundle(checkpoint.to_bundle(names), out)
    report = checkpoint.report.text()
    answer = {"bundle": str(out), "digest": digest, "report": report.splitlines()}
    print_answer(answer, [report, f"bundle {out}  {digest}"], as_json=as_json)


@app.command()
def export(
    bundle: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Local folder for the checkpoint; must not exist.", show_default=False)],
    layout: Annotated[
        Literal["flash", "wrapper", "torch"],
        typer.Option(
            help="Names of the attention tensors: flash as released, wrapper as scGPT main, torch without flash."
        ),
    ] = "flash",
    store: RunStore = None,
    uri: Annotated[str | None, typer.Option(envvar=TRACKING, help="MLflow, for models:/….")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a bundle in the layout that scGPT and helical read: best_model.pt, args.json, vocab.json."""
    from cytoray.model.public_checkpoint import export_bundle
    from cytoray.registry.opening import REGISTERED, open_model

    tracking = tracking_of(uri) if uri is not None and bundle.startswith(REGISTERED) else None
    opened = open_model(bundle, store=store, tracking=tracking)
    export_bundle(opened.bundle, out, layout=layout)
    conditions = ["conditions.json"] if opened.bundle.conditions is not None else []
    left_out = [*conditions, *opened.bundle.attachments]
    answer = {"checkpoint": str(out), "layout": layout, "bundle_digest": opened.digest, "left_out": left_out}
    print_answer(answer, [f"checkpoint {out}  layout {layout}  of bundle {opened.digest}"], as_json=as_json)
    if left_out:
        typer.echo(f"scGPT's layout has no place for {', '.join(left_out)}: not written", err=True)


def _fields(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``["num_heads=8"]`` as ``{"num_heads": 8}``; values are YAML."""
    import yaml

    from cytoray.errors import ConfigError

    fields = {}
    for override in overrides:
        field, separator, text = override.partition("=")
        if not separator or not field:
            raise ConfigError(f"--set {override}: expected FIELD=VALUE.", remedy="For example --set num_heads=8.")
        try:
            fields[field] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML.", remedy="Quote it.") from error
    return fields


def _names(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return the names of labels from the options or the file."""
    from cytoray.errors import ConfigError

    if file is None:
        return tuple(given)
    if given:
        raise ConfigError("--label and --labels cannot be combined.", remedy="Use one of them.")
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read these names ({error}).", remedy="Check the path.") from error
