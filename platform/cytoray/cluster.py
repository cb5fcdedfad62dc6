"""Connect to Ray: the cluster that the environment names, or a small one started in place, always with token auth."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from cytoray.errors import CytorayError

PROGRESS_LOGGER = "ray.data._internal.progress"  # warns that the bars are off
# They write the traceback of an exception that is raised as well.
TRACEBACK_LOGGERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
OBJECT_STORE_BYTES = 512 * 2**20


def prepare_auth() -> None:
    """Make the choice of Ray's token auth explicit; without any token, one for this process and its children is made.

    Must run before ``ray`` is imported. A replica of Ray Serve unpickles what reaches its port, so the token stays on
    even on a laptop.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise CytorayError(
            "Ray was imported before its authentication was chosen, and reads that only once.",
            remedy="Call cytoray.cluster.prepare_auth() before anything imports ray, or set RAY_AUTH_MODE yourself.",
        )
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    in_cluster = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if mode == "token" and not in_cluster and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def is_shared() -> bool:
    """Whether the Ray in use is a cluster that the environment names, not one started here."""
    return "RAY_ADDRESS" in os.environ


@contextlib.contextmanager
def connected(*, num_cpus: int = 2, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[None]:
    """Be connected to Ray inside the block.

    With ``RAY_ADDRESS`` set (as in a submitted job) that cluster is used; otherwise one with ``num_cpus`` logical CPUs
    and an object store of ``object_store_bytes`` is started here and stopped at the end.
    """
    prepare_auth()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # after the environment is set: it is read at import

    local: dict[str, Any] = {}
    if not is_shared():
        local = {"num_cpus": num_cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False, **local)
    except ConnectionError as error:
        raise CytorayError(
            f"Cannot reach the Ray cluster at {os.environ['RAY_ADDRESS']} ({error}).",
            remedy="Check RAY_ADDRESS and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to start Ray here.",
        ) from error
    _quiet()
    _hasten()
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        found = user_error(error)
        if found is None:
            raise
        raise found from error
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Ray Data's own bars would be drawn over ours, once in each worker; errors are told once, as a paragraph."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.raise_original_map_exception = True  # its own wrapper drops the cause on the way to the driver
    for name, level in {
        "ray.data": logging.WARNING,
        "ray.train": logging.WARNING,
        PROGRESS_LOGGER: logging.ERROR,
        **dict.fromkeys(TRACEBACK_LOGGERS, logging.CRITICAL),
    }.items():
        logging.getLogger(name).setLevel(level)


def _hasten() -> None:
    """Let Ray Data 2.60 look again soon for what the cluster has.

    When a pipeline starts it does not know yet, and runs one task; it would look again after a second.
    """
    from ray.data._internal.execution.resource_manager import ResourceManager

    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.05  # type: ignore[assignment]


def user_error(error: BaseException) -> CytorayError | None:
    """The CytorayError that a Ray task, actor or training worker raised, dug out of Ray's wrappers; None if none."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        current = queue.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        # Ray's wrapper of a task's error also claims the class of what it wraps, but not its fields.
        if isinstance(current, CytorayError) and not hasattr(current, "cause"):
            return current
        seen.add(id(current))
        queue += [current.__cause__, current.__context__]
        queue += [getattr(current, name, None) for name in ("cause", "_base_exc", "controller_failure")]
        queue += list(getattr(current, "worker_failures", {}).values())
    return None
