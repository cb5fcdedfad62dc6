"""Model versions: a bundle's files as artifacts of a run, tagged with digest and lineage, and named by aliases.

Neither ``mlflow.pytorch`` nor ``pyfunc`` is used: both would store and load code; a bundle is safetensors and JSON.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import ModelError, RegistryError
from cytoray.failpoints import failpoint
from cytoray.registry.aliases import CANDIDATE, REPLACED_TAG, holder, mark_candidate, move_alias
from cytoray.registry.artifacts import DIGEST_TAG, LINEAGE, RegisteredVersion, fetch_bundle, upload_bundle
from cytoray.registry.gate import AssessmentsConfig, judge_assessments, refusal
from cytoray.registry.recorded import read_recorded
from cytoray.tracking.server import TrackingConfig, connect, experiment_id, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from cytoray.model.bundle import ModelBundle

GOLDEN_TAG, BYTES_TAG = "cytoray.golden_cells", "cytoray.bundle_bytes"
_logger = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL_URI = re.compile(rf"models:/(?P<name>{_NAME.pattern})(?:@(?P<alias>[A-Za-z0-9_.-]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class FoundVersion:
    """A version with what a service needs to trust it.

    Attributes:
        version: The version.
        golden: Its golden cells (``model.golden``); empty if none were recorded.
        num_bytes: Size of its bundle; 0 if it was not recorded.
        replaced: Number of the champion that it replaced when it was promoted; empty if it replaced none.
    """

    version: RegisteredVersion
    golden: str
    num_bytes: int
    replaced: str


@dataclass(frozen=True)
class Lineage:
    """The origin of a model; each known field becomes the tag ``cytoray.<field>`` of its version."""

    run_id: str | None = None
    corpus_manifest_digest: str | None = None
    config_digest: str | None = None
    git_revision: str | None = None
    parent_version: str | None = None

    def tags(self) -> dict[str, str]:
        """Return the known fields as tags."""
        return {f"cytoray.{key}": value for key, value in dataclasses.asdict(self).items() if value}


def register(
    bundle_folder: Path,
    *,
    name: str,
    tracking: TrackingConfig,
    lineage: Lineage | None = None,
    alias: str | None = None,
) -> RegisteredVersion:
    """Register the bundle as a version of the model ``name``, make it the candidate, and finally move ``alias`` to it.

    The files become artifacts of the MLflow run ``lineage.run_id`` (a separate run if that is None); the tags
    are the bundle's own lineage overlaid with ``lineage``. A bundle that is already a version is not registered twice,
    and an interrupted registration is continued: until ``alias`` moves, the version is ``candidate`` (unless it is the
    champion). As in ``promotion.promote_version`` without a gate, an alias does not move to a version with a recorded
    loss to the simple method.
    Raises DigestError or ModelError for a bad bundle, RegistryError if MLflow does not answer or rejects the request.
    """
    from cytoray.model.bundle import load_bundle  # imports torch, which looking up a version does not need

    if not _NAME.fullmatch(name):
        raise RegistryError(f"{name!r} is not a model name.", remedy="Use letters, digits, dot, dash and underscore.")
    bundle = load_bundle(bundle_folder)  # only loadable bundles are registered
    assert bundle.digest is not None
    lineage = lineage or Lineage()
    client = connect(tracking.uri)
    with explained(tracking.uri):
        known = _versions(client, name, digest=bundle.digest)
        run_id = (known[0].run_id if known else lineage.run_id) or _own_run(client, name, bundle.digest, tracking)
        failpoint("register.before_upload")
        source = upload_bundle(client, bundle_folder, run_id=run_id, digest=bundle.digest)
        failpoint("register.after_upload")
        tags = {f"cytoray.{key}": value for key, value in bundle.lineage.items()} | lineage.tags()
        tags |= {DIGEST_TAG: bundle.digest, "cytoray.run_id": run_id}
        version = known[0] if known else _create_version(client, name, source=source, run_id=run_id, tags=tags)
        failpoint("register.after_version")
        for key, value in _check_tags(bundle, bundle_folder).items():
            if key not in version.tags:
                client.set_model_version_tag(name, str(version.version), key, value)
                failpoint("register.after_check_tag")
        failpoint("register.before_candidate")
        mark_candidate(client, name, str(version.version), alias=alias)
        failpoint("register.after_candidate")
        if alias not in (None, CANDIDATE):
            _check_losses(client, name, str(version.version), alias=alias)
            move_alias(client, name, str(version.version), alias=alias)
        return describe(version, client.get_registered_model(name))


def _check_tags(bundle: ModelBundle, folder: Path) -> dict[str, str]:
    """Return the tags by which a service checks a version before it serves: the bundle's size and golden cells.

    A model whose answers are not finite has no golden cells; a service refuses it for that.
    """
    from cytoray.model.golden import golden_cells

    tags = {BYTES_TAG: str(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))}
    try:
        tags[GOLDEN_TAG] = golden_cells(bundle).to_text()
    except ModelError as error:
        _logger.warning("%s has no golden cells, and a service will refuse it: %s", folder, error)
    return tags


def _check_losses(client: MlflowClient, name: str, number: str, *, alias: str) -> None:
    """Raise RegistryError if a recorded assessment of the version is below the simple method."""
    version = client.get_model_version(name, number)
    failed = judge_assessments(AssessmentsConfig(), read_recorded(version.tags, strict=True))
    if failed:
        before = holder(client, name, alias=alias)
        raise refusal(describe(version, find_model(client, name)), failed, alias=alias, before=before)


def resolve(uri: str, *, tracking: TrackingConfig, cache_folder: Path) -> tuple[ModelBundle, RegisteredVersion]:
    """Load the bundle of ``models:/name@alias`` or ``models:/name/3`` and verify it against its registered digest.

    Downloads into ``cache_folder/<digest>`` once. Raises RegistryError as ``find_version`` does; DigestError if the
    stored files were changed.
    """
    version = find_version(uri, tracking=tracking)
    return fetch_bundle(version, tracking_uri=tracking.uri, cache_folder=Path(cache_folder).expanduser()), version


def find_version(uri: str, *, tracking: TrackingConfig) -> RegisteredVersion:
    """Find the version behind ``models:/name@alias`` or ``models:/name/3``; nothing is downloaded.

    Raises RegistryError for an unknown name, version or alias, listing the known ones, or if MLflow does not answer.
    """
    return find_checked(uri, tracking=tracking).version


def find_checked(uri: str, *, tracking: TrackingConfig) -> FoundVersion:
    """Find a version as ``find_version``, with what a service checks before it serves the version."""
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise RegistryError(
            f"{uri!r} is not the URI of a model.", remedy="Write models:/NAME@ALIAS or models:/NAME/VERSION."
        )
    client = connect(tracking.uri)
    with explained(tracking.uri):
        model = find_model(client, match["name"])
        number = match["version"] or model.aliases.get(match["alias"])
        found = {str(version.version): version for version in _versions(client, model.name)}
        if str(number) not in found:
            aliases = ", ".join(f"@{alias} (version {number})" for alias, number in sorted(model.aliases.items()))
            there = f"Versions: {', '.join(sorted(found, key=int)) or 'none'}; aliases: {aliases or 'none'}."
            raise RegistryError(f"Unknown model version {uri}.", remedy=there, uri=uri)
        version = found[str(number)]
        size = version.tags.get(BYTES_TAG, "")
        return FoundVersion(
            describe(version, model),
            golden=version.tags.get(GOLDEN_TAG, ""),
            num_bytes=int(size) if size.isdecimal() else 0,
            replaced=version.tags.get(REPLACED_TAG, ""),
        )


def list_versions(name: str, *, tracking: TrackingConfig) -> list[RegisteredVersion]:
    """List the versions of the model ``name``, oldest first; RegistryError, listing the known models, if unknown."""
    client = connect(tracking.uri)
    with explained(tracking.uri):
        model = find_model(client, name)
        return [describe(version, model) for version in _versions(client, name)]


def list_models(*, tracking: TrackingConfig) -> list[str]:
    """Return the names of all registered models, sorted."""
    client = connect(tracking.uri)
    with explained(tracking.uri):
        page = client.search_registered_models()
        names = [model.name for model in page]
        while page.token:
            page = client.search_registered_models(page_token=page.token)
            names += [model.name for model in page]
    return sorted(names)


def find_model(client: MlflowClient, name: str) -> RegisteredModel:
    """Find a registered model; raises RegistryError that lists the known models if it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = sorted(model.name for model in client.search_registered_models(max_results=100))
        there = f"Registered models: {', '.join(names)}." if names else "No model has been registered yet."
        raise RegistryError(f"Unknown registered model {name!r}.", remedy=there, name=name) from error


def _versions(client: MlflowClient, name: str, *, digest: str | None = None) -> list[ModelVersion]:
    """Return the versions of a model, oldest first, optionally only those with one bundle digest."""
    wanted = f"name = '{name}'" + (f" and tags.`{DIGEST_TAG}` = '{digest}'" if digest else "")
    page = client.search_model_versions(wanted)
    found = list(page)
    while page.token:
        page = client.search_model_versions(wanted, page_token=page.token)
        found += page
    return sorted(found, key=lambda version: int(version.version))


def _own_run(client: MlflowClient, name: str, digest: str, tracking: TrackingConfig) -> str:
    """Find or create a finished run that holds only this bundle."""
    experiment = experiment_id(
        client, tracking.experiment, artifact_location=tracking.artifact_location, uri=tracking.uri
    )
    found = client.search_runs([experiment], f"tags.`cytoray.registers` = '{digest}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment, tags={"cytoray.registers": digest}, run_name=f"register-{name}")
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _create_version(client: MlflowClient, name: str, *, source: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    """Create the version, and the model if missing; of several created at once from one bundle the first is kept."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    failpoint("register.before_version")
    ours = client.create_model_version(name, source, run_id, tags=tags)
    first = _versions(client, name, digest=tags[DIGEST_TAG])[0]
    if first.version != ours.version:
        client.delete_model_version(name, str(ours.version))
    return first


def describe(version: ModelVersion, model: RegisteredModel) -> RegisteredVersion:
    """Describe a version of ``model`` from MLflow's record."""
    aliases = tuple(sorted(alias for alias, number in model.aliases.items() if str(number) == str(version.version)))
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        digest=version.tags.get(DIGEST_TAG, ""),
        source_uri=str(version.source),
        run_id=version.run_id,
        aliases=aliases,
        assessments=read_recorded(version.tags),
        lineage={key: version.tags[f"cytoray.{key}"] for key in LINEAGE if version.tags.get(f"cytoray.{key}")},
    )
