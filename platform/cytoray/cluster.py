"""Connect to Ray when it is needed: the cluster that the environment names, or a small one, with token auth."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cytoray.errors import CytorayError

PROGRESS_LOGGER = "ray.data._internal.progress"  # warns that the bars are off
# They write the traceback of an exception that is raised as well.
TRACEBACK_LOGGERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
OBJECT_STORE_BYTES = 512 * 2**20
# One process ingests or embeds so many cells in the time that Ray takes to start, some ten seconds.
FEW_CELLS = int(os.environ.get("CYTORAY_FEW_CELLS", "10000"))
REASON_LENGTH = 300
PROBE_TIMEOUT_S = 5.0


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
    in_cluster = is_shared() or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if mode == "token" and not in_cluster and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def is_shared() -> bool:
    """Return whether Ray is a cluster that the environment names, not one started here."""
    return bool(os.environ.get("RAY_ADDRESS"))


@dataclass
class _Lease:
    """How Ray is to be started, and whether it has been."""

    num_cpus: int
    object_store_bytes: int
    for_data: bool = True
    is_started: bool = False


_leases: list[_Lease] = []  # at most one: Ray is one for each process


@contextlib.contextmanager
def available(
    *, num_cpus: int = 2, object_store_bytes: int = OBJECT_STORE_BYTES, for_data: bool = True
) -> Iterator[None]:
    """Let the block start Ray with ``start``, if it comes to need it, and stop what was started at the end.

    With ``RAY_ADDRESS`` set (as in a submitted job) that cluster is used; otherwise one with ``num_cpus`` logical CPUs
    and an object store of ``object_store_bytes`` is started here, whatever other Ray runs on this machine. Ray Data is
    prepared unless ``for_data`` is False, which saves its import.
    """
    prepare_auth()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    lease = _Lease(num_cpus, object_store_bytes, for_data)
    _leases.append(lease)
    try:
        yield
    except Exception as error:
        # Only when Ray was started can the error be one that Ray has wrapped.
        found = user_error(error) if lease.is_started and isinstance(error, ray_errors()) else None
        if found is None:
            raise
        raise found from error
    finally:
        _leases.remove(lease)
        if lease.is_started:
            import ray

            ray.shutdown()


@contextlib.contextmanager
def connected(
    *, num_cpus: int = 2, object_store_bytes: int = OBJECT_STORE_BYTES, for_data: bool = True
) -> Iterator[None]:
    """Be connected to Ray inside the block; ``available`` says to which."""
    with available(num_cpus=num_cpus, object_store_bytes=object_store_bytes, for_data=for_data):
        start()
        yield


def start() -> None:
    """Connect to Ray, or start it, as the surrounding ``available`` says; nothing happens if this process is connected.

    Outside such a block Ray is left to start by itself, as it does. Raises CytorayError with the reason if Ray does
    not start.
    """
    if not _leases or _leases[-1].is_started:
        return
    import ray

    if ray.is_initialized():  # by the caller, who also ends it
        return
    lease = _leases[-1]
    _init(lease)
    lease.is_started = True
    if lease.for_data:
        _quiet()
        _hasten()


def is_small(num_cells: int) -> bool:
    """Return whether work on so many cells is done sooner in this process than Ray starts; not if Ray is running."""
    return num_cells <= FEW_CELLS and not is_running()


def is_running() -> bool:
    """Return whether this process is connected to Ray; Ray is not imported for it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def ray_errors() -> tuple[type[Exception], ...]:
    """Return the base class of Ray's errors; nothing if Ray is not imported, since then no error is Ray's."""
    exceptions = sys.modules.get("ray.exceptions")
    return () if exceptions is None else (exceptions.RayError,)


def _init(lease: _Lease) -> None:
    """Connect or start, turning whatever goes wrong into one paragraph."""
    import ray  # after the environment is set: it is read at import

    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if is_shared():
        _probe(os.environ["RAY_ADDRESS"])
    else:
        # "local": otherwise Ray would join any cluster that was ever started with `ray start` on this machine.
        options |= {"address": "local", "num_cpus": lease.num_cpus, "include_dashboard": False}
        options["object_store_memory"] = lease.object_store_bytes
    try:
        ray.init(**options)
    except Exception as error:
        ray.shutdown()
        raise _start_error(error) from error


def _probe(address: str) -> None:
    """Raise CytorayError if nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise _start_error(error) from error


def _start_error(error: Exception) -> CytorayError:
    """Return the reason why Ray did not start, in one line, and what to do about it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{lines[0].rstrip('.') if lines else type(error).__name__}"[:REASON_LENGTH]
    if is_shared():
        return CytorayError(
            f"Cannot reach the Ray cluster at {os.environ['RAY_ADDRESS']} ({reason}).",
            remedy="Check RAY_ADDRESS and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to start Ray here.",
        )
    if "AF_UNIX" in reason:
        remedy = "Set RAY_TMPDIR to a folder with a short path, such as /tmp/ray."
    else:
        folder = os.environ.get("RAY_TMPDIR", "/tmp")
        remedy = (
            f"Check that {folder} (RAY_TMPDIR) can be written and has free space, that memory and /dev/shm are not "
            f"full, and look at {folder}/ray/session_latest/logs."
        )
    return CytorayError(f"Ray did not start on this machine ({reason}).", remedy=remedy)


def _quiet() -> None:
    """Switch off Ray Data's progress bars, which would overwrite ours, and its repeated error reports."""
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
