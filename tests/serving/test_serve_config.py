"""The Serve configuration says what we mean: checked by our own model, because Ray lets typing errors through."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema, ServeStatus

from cytoray.errors import DigestError, NotFoundError, ServingError
from cytoray.model.bundle import save_bundle
from cytoray.registry.models import register
from cytoray.registry.pinning import PinnedModel, pin_model
from cytoray.serving.app import bind_app, build_app, check_port, wait_until_ready, wait_until_running
from cytoray.serving.config import AppArgs
from cytoray.serving.hosting.loading import load_service
from cytoray.serving.hosting.planning import PlannedModel
from cytoray.serving.service import CANARY_WAIT_S
from cytoray.tracking import TrackingConfig

YAML = Path(__file__).parents[2] / "serve" / "embed.yaml"


def test_the_yaml_is_valid_complete_and_local() -> None:
    config = yaml.safe_load(YAML.read_text())
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    args = AppArgs.model_validate(application["args"])
    assert application["import_path"] == f"{build_app.__module__}:{build_app.__name__}"
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["request_timeout_s"] > args.limits.deadline_s
    assert application["args"].keys() == AppArgs.model_fields.keys()
    for part in ("precision_check", "limits", "batching", "edge", "explorer", "rollout"):
        assert application["args"][part].keys() == type(getattr(args, part)).model_fields.keys()


def test_ray_sees_the_type_of_the_arguments() -> None:
    """Ray validates ``args`` only where the annotation is a class and not its name."""
    assert build_app.__annotations__["args"] is AppArgs


def test_the_deployment_is_bounded_and_surges() -> None:
    args = AppArgs(model_uri="bundle", num_cpus=0.5, max_replicas=3, max_queued_requests=9)
    planned = PlannedModel("bundle", args, PinnedModel("bundle", "bundle", "1", "d" * 64))
    deployment = bind_app(args, (planned,))._bound_deployment
    config = deployment._deployment_config
    assert (config.max_queued_requests, config.max_surge_percent, config.autoscaling_config.max_replicas) == (9, 100, 3)
    scaling = config.autoscaling_config
    assert scaling.metrics_interval_s + scaling.upscale_delay_s <= 20  # seconds until one more is started
    assert deployment.ray_actor_options["num_cpus"] == 0.5
    assert config.health_check_timeout_s > CANARY_WAIT_S


def test_in_two_tiers_each_model_has_a_deployment_and_the_ingress_waits_for_all() -> None:
    models = [
        {"name": "blood", "model_uri": "/blood", "num_gpus": 1.0, "min_replicas": 2, "max_replicas": 4},
        {"name": "gut", "model_uri": "/gut"},
    ]
    args = AppArgs.model_validate({"layout": "tiered", "models": models, "num_cpus": 0.5, "max_ongoing_requests": 10})
    pinned = PinnedModel("bundle", "bundle", "1", "d" * 64)
    ingress = bind_app(args, tuple(PlannedModel(m.name, args.for_model(m), pinned) for m in args.models))
    deployment = ingress._bound_deployment
    config = deployment._deployment_config
    assert (config.num_replicas, config.max_ongoing_requests, config.max_surge_percent) == (2, 60, 100)
    blood, gut = (handle._bound_deployment for handle in deployment.init_args[2].values())
    assert (blood.name, blood.ray_actor_options["num_gpus"], gut.ray_actor_options["num_gpus"]) == ("Model-blood", 1, 0)
    scaling = blood._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, blood._deployment_config.max_surge_percent) == (2, 4, 100)
    assert gut._deployment_config.autoscaling_config.min_replicas == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"models": [{"name": "a", "model_uri": "a", "max_replicas": 2}], "model_uri": None},
            "only with layout: tiered",
        ),
        ({"layout": "tier"}, "fused"),
        ({"precision": "float16"}, "bfloat16"),
        ({"min_replica": 2}, "Extra inputs"),
        ({"min_replicas": 3, "max_replicas": 2}, "more than max_replicas"),
        ({"limits": {"max_cell": 2}}, "Extra inputs"),
        ({"model_uri": "models:/name@champion"}, "tracking.uri is required"),
        ({"model_uri": "run:fine"}, "store is required"),
        ({"num_cpus": "1"}, "valid number"),
    ],
)
def test_mistakes_in_the_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppArgs.model_validate({"model_uri": "somewhere", **change})


def test_paths_do_not_depend_on_the_folder_of_a_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert AppArgs(model_uri="bundle").model_uri == str(tmp_path / "bundle")
    for uri in ("s3://bucket/bundle", "run:fine"):
        assert AppArgs(model_uri=uri, store="store").model_uri == uri


def test_a_local_bundle_is_served_with_its_digest(build_bundle: Any, tmp_path: Path) -> None:
    digest = save_bundle(build_bundle(), tmp_path / "tiny")
    args = AppArgs(model_uri=str(tmp_path / "tiny"))
    pinned = pin_model(args.model_uri, sources=args.sources())
    model = load_service(args, pinned).model
    assert (model.name, model.version, model.digest) == ("tiny", "unregistered", digest)
    with pytest.raises(NotFoundError, match="absent"):
        build_app(AppArgs(model_uri=str(tmp_path / "absent")))
    save_bundle(build_bundle(("X", "Y")), tmp_path / "other")
    (tmp_path / "tiny").rename(tmp_path / "before")
    (tmp_path / "other").rename(tmp_path / "tiny")
    with pytest.raises(DigestError, match=r"tiny holds the bundle .* Deploy again"):
        load_service(args, pinned)


def test_a_pinned_version_can_be_loaded_whatever_the_alias_becomes(
    build_bundle: Any, mlflow_uri: str, tmp_path: Path
) -> None:
    """Also without MLflow, once the model is in the cache."""
    tracking = TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "runs"))
    save_bundle(build_bundle(), tmp_path / "one")
    register(tmp_path / "one", name="tiny", tracking=tracking, alias="champion")
    args = AppArgs(model_uri="models:/tiny@champion", tracking=tracking, cache_folder=str(tmp_path / "cache"))
    _, (planned,) = build_app(args)._bound_deployment.init_args
    pinned = planned.pinned
    save_bundle(build_bundle(("X", "Y")), tmp_path / "two")
    register(tmp_path / "two", name="tiny", tracking=tracking, alias="champion")
    assert load_service(args, pinned).model.version == "1"
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    service = load_service(args, pinned)
    assert (service.model.version, service.labels) == ("1", ("B", "T", "NK"))


def test_a_taken_port_is_told_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServingError, match=rf"Port {port} .*already in use.*choose another port"):
            check_port("127.0.0.1", port=port)
    check_port("127.0.0.1", port=port)
    with pytest.raises(ServingError, match="Cannot listen on"):
        check_port("192.0.2.1", port=port)


def test_waiting_for_readiness_ends() -> None:
    with pytest.raises(ServingError, match="ConnectError"):
        wait_until_ready("http://127.0.0.1:9", timeout_s=0.1)


@pytest.mark.parametrize("status", [ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DEPLOYING])
def test_a_start_that_fails_or_lasts_is_told_in_serve_s_words(
    monkeypatch: pytest.MonkeyPatch, status: ApplicationStatus
) -> None:
    application = ApplicationStatusOverview(status, "1 replica has not been scheduled", 0.0, {})
    monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications={"cytoray": application}))
    with pytest.raises(ServingError, match=rf"{status.value}.*not been scheduled.*num_cpus"):
        wait_until_running(timeout_s=0.0)
    application.status = ApplicationStatus.RUNNING
    wait_until_running(timeout_s=0.0)


def test_importing_the_application_starts_and_loads_nothing() -> None:
    code = "import ray, sys, cytoray.serving.app; print(ray.is_initialized(), 'ray.data' in sys.modules)"
    code += "; print({'deepspeed', 'cytoray.training'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "set()"]
