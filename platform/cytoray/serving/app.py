"""The Ray Serve application: built by ``serve deploy serve/embed.yaml``, or started and stopped from Python."""

# Annotations are real objects here, not strings: Ray Serve reads that of build_app to validate the YAML's args.

import contextlib
import errno
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import ApplicationStatus

from cytoray.errors import ServingError
from cytoray.registry.pinning import open_pinned
from cytoray.serving.config import AppArgs
from cytoray.serving.deployments import (
    DRAIN_S,
    HEALTH_PERIOD_S,
    HEALTH_TIMEOUT_S,
    CellDeployment,
    IngressDeployment,
    ModelDeployment,
)
from cytoray.serving.hosting.planning import PlannedModel, plan_models

APP_NAME = "cytoray"
START_TIMEOUT_S = 120.0
POLL_S = 0.2
NO_ACCESS_LOG = {"enable_access_log": False}  # of Serve: the edge logs each request
PROXY_MARGIN_S = 30.0  # the application's own deadline answers first, with a problem that says so

# Load is reported every 10 s. A replica more is started after at most 15 s of load for it; Serve's defaults take 40 s.
UPSCALE_DELAY_S = 5.0
LOOK_BACK_S = 15.0

logger = logging.getLogger(__name__)


def build_app(args: AppArgs) -> serve.Application:
    """Build the application for ``args``; the models are loaded later, by the replicas.

    An alias is resolved here, and followed by the replicas. Raises RegistryError or NotFoundError if there is no such
    model.
    """
    return bind_app(args, plan_models(args))


def bind_app(args: AppArgs, planned: tuple[PlannedModel, ...]) -> serve.Application:
    """Build the application that serves models that have been looked up."""
    if args.layout == "fused":
        own = {"num_cpus": args.reserved("num_cpus"), "num_gpus": args.reserved("num_gpus")}
        fused: serve.Application = _deployed(CellDeployment, args, resources=own).bind(args, planned)
        return fused
    handles = {}
    for place, model in enumerate(planned):
        one = model.args
        resources = {"num_cpus": one.num_cpus, "num_gpus": one.num_gpus}
        deployed = _deployed(ModelDeployment, one, resources=resources, name=f"Model-{model.name}")
        handles[model.name] = deployed.bind(model, place == 0)
    waiting = sum(model.args.max_ongoing_requests * model.args.max_replicas for model in planned)
    tiered: serve.Application = _deployed(
        IngressDeployment,
        args,
        resources={"num_cpus": args.ingress_num_cpus},
        num_replicas=args.ingress_replicas,
        autoscaling_config=None,
        max_ongoing_requests=waiting,  # it only waits for the models, which have limits of their own
    ).bind(args, planned, handles)
    return tiered


def _deployed(kind: Any, args: AppArgs, *, resources: dict[str, float], **options: Any) -> Any:
    """Return the deployment of a class, with the options that all deployments share and its own ``options``."""
    shared: dict[str, Any] = {
        "name": kind.__name__,
        "ray_actor_options": resources,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing_requests,
            upscale_delay_s=UPSCALE_DELAY_S,
            look_back_period_s=LOOK_BACK_S,
        ),
        "max_ongoing_requests": args.max_ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=1),
        "max_surge_percent": 100,  # a new version answers before the old one stops
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "max_constructor_retry_count": 3,  # a model that failed to load three times will not load later
    }
    chosen = {name: value for name, value in (shared | options).items() if value is not None}
    return serve.deployment(**chosen)(kind)


def run_service(
    args: AppArgs,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    timeout_s: float = START_TIMEOUT_S,
    planned: tuple[PlannedModel, ...] | None = None,
) -> str:
    """Serve ``args`` on the connected Ray cluster and return the base URL once it answers.

    ``planned`` are the models of ``args`` if they have been looked up already. Raises ServingError if the port is in
    use, Serve is already running or the service is not ready after ``timeout_s``, and whatever looking up or loading
    the models raises.
    """
    assert ray.is_initialized(), "connect to Ray first: Serve would start a cluster of its own"
    if serve.status().proxies:
        raise ServingError(
            "Ray Serve is already running in this cluster.",
            remedy="Stop it with `serve shutdown`, or deploy a YAML to it.",
        )
    check_port(host, port=port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its replicas keep their own logs
    planned = planned or plan_models(args)
    http_options = {"host": host, "port": port, "request_timeout_s": args.limits.deadline_s + PROXY_MARGIN_S}
    url = f"http://{host}:{port}"
    deadline = time.monotonic() + timeout_s
    try:
        with _explained(), ThreadPoolExecutor(1) as threads:
            proxy = threads.submit(
                serve.start, proxy_location="HeadOnly", http_options=http_options, logging_config=NO_ACCESS_LOG
            )
            _wait_for_controller(proxy, deadline=deadline)
            # The replicas start while the HTTP server does.
            target = serve.RunTarget(bind_app(args, planned), name=APP_NAME, logging_config=NO_ACCESS_LOG)
            serve.run_many([target], wait_for_applications_running=False)
            wait_until_running(timeout_s=deadline - time.monotonic())
            proxy.result()
        wait_until_ready(url, timeout_s=deadline - time.monotonic())
    except ServingError:
        stop_service()
        for model in planned:  # raises the reason if it is a model: replicas only log it
            open_pinned(model.pinned, sources=model.args.sources())
        raise
    logger.info("serving %s at %s", ", ".join(model.pinned.uri for model in planned), url)
    return url


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Convert what Ray raises if a part of Serve does not start into a ServingError."""
    try:
        yield
    except (RayError, TimeoutError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ServingError(
            f"Ray Serve did not start: {lines[0] if lines else type(error).__name__}",
            remedy="Check that the machine has free memory and processor time, and start again.",
        ) from error


def _wait_for_controller(started: Future[Any], *, deadline: float) -> None:
    """Wait until Serve's controller can be found by name, while ``started`` starts it in another thread."""
    while not started.done() and time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:  # not yet
            time.sleep(POLL_S)
        else:
            return


def stop_service() -> None:
    """Stop Ray Serve with all its applications; the Ray cluster keeps running."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def check_port(host: str, *, port: int) -> None:
    """Raise ServingError if it is not possible to listen on ``host``:``port``."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ServingError(
                f"Port {port} of {host} is already in use."
                if taken
                else f"Cannot listen on {host}:{port}: {error.strerror}.",
                remedy="Stop the program that uses it, or choose another port."
                if taken
                else "Choose another host or port.",
                host=host,
                port=port,
            ) from error


def wait_until_running(*, timeout_s: float) -> None:
    """Wait until Serve reports the application as RUNNING; raises ServingError with Serve's messages otherwise."""
    deadline = time.monotonic() + timeout_s
    failed = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
    while True:
        application = serve.status().applications[APP_NAME]
        if application.status == ApplicationStatus.RUNNING:
            return
        if application.status in failed or time.monotonic() > deadline:
            reasons = (application.message, *(part.message for part in application.deployments.values()))
            raise ServingError(
                f"The service did not start within {timeout_s:g} s ({application.status.value}):"
                f" {' '.join(reason for reason in reasons if reason) or 'its replicas are still starting'}.",
                remedy="Check that num_cpus and num_gpus are free in the cluster; see the replica's log.",
            )
        time.sleep(POLL_S)


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Wait until ``url``/readyz returns 200; raises ServingError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    seen = "nothing"
    while time.monotonic() < deadline:
        try:
            status = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code
        except httpx.TransportError as error:
            seen = type(error).__name__
        else:
            if status == 200:
                return
            seen = f"HTTP {status}"
        time.sleep(POLL_S)
    raise ServingError(
        f"{url} is not ready after {timeout_s:g} s (last seen: {seen}).",
        remedy="Run `serve status` for the reason.",
        url=url,
    )
