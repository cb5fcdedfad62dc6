"""Checks of Ray's authentication on this machine, and of a cluster by its dashboard."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import httpx

from cytoray.operations.doctor.clocks import check_clock
from cytoray.operations.doctor.findings import Finding, fail, ok, warn
from cytoray.operations.jobs.tokens import TOKEN_REMEDY, Dashboard, find_token, is_loopback, token_mode

PORTS: Mapping[int, str] = {6379: "Ray's head", 8265: "Ray's dashboard", 8000: "the service", 10001: "Ray's clients"}
MIN_TOKEN = 32  # characters


def check_auth() -> Iterator[Finding]:
    """Look at RAY_AUTH_MODE and the token of this machine."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token", "disabled", "k8s"):
        yield fail("auth.mode", f"RAY_AUTH_MODE={mode}", remedy="Set RAY_AUTH_MODE=token.")
    elif mode == "disabled":
        yield warn(
            "auth.mode",
            "RAY_AUTH_MODE=disabled: whoever reaches a port of Ray can run code",
            remedy="Set RAY_AUTH_MODE=token, unless the cluster is protected in another way.",
        )
    elif mode is None:
        yield warn(
            "auth.mode",
            "RAY_AUTH_MODE is not set: `ray start` would start an open head without a token",
            remedy="Set RAY_AUTH_MODE=token; cytoray itself always uses token mode.",
        )
    else:
        yield ok("auth.mode", f"RAY_AUTH_MODE={mode}")
    if not token_mode():
        return
    token = find_token()
    if token is None:
        yield warn("auth.token", "no token on this machine", remedy=TOKEN_REMEDY)
    elif len(token) < MIN_TOKEN:
        yield warn(
            "auth.token",
            f"the token has {len(token)} characters only",
            remedy="Make one: ray get-auth-token --generate.",
        )
    else:
        yield ok("auth.token", "there is a token")


def check_cluster(url: str) -> Iterator[Finding]:
    """Ask a dashboard for its version with and without the token."""
    token = find_token() if token_mode() else None
    try:
        closed, found = Dashboard.ask(url, None), Dashboard.ask(url, token)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        yield fail(
            "cluster.reach",
            f"{url}: {error or type(error).__name__}",
            remedy="Start the head, name its dashboard (--cluster http://HOST:8265), or forward its port.",
        )
        return
    if closed.status == 200 and closed.ray_version:
        yield fail(
            "cluster.auth",
            f"{url} takes jobs from anybody",
            remedy="Start the head with RAY_AUTH_MODE=token and a token (CVE-2023-48022).",
        )
    elif found.status in (401, 403):
        yield fail("cluster.auth", f"{url} rejected the token (HTTP {found.status})", remedy=TOKEN_REMEDY)
        return
    if not found.ray_version:
        yield fail(
            "cluster.reach",
            f"{url} is not a Ray dashboard (HTTP {found.status})",
            remedy="Name the dashboard of the head.",
        )
        return
    if closed.status != 200:
        yield ok("cluster.auth", f"{url} accepts the token, and refuses requests without it")
    if not is_loopback(url) and url.startswith("http://"):
        yield warn(
            "cluster.tls",
            f"the token travels to {url} in clear",
            remedy="Put TLS before the dashboard, or use a tunnel.",
        )
    yield _check_version(found.ray_version)
    if (clock := check_clock("cluster.clock", found.date, whose="the head")) is not None:
        yield clock


def _check_version(theirs: str) -> Finding:
    ours = version("ray")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return fail(
            "cluster.version",
            f"Ray {theirs} there, {ours} here",
            remedy=f"Use an image with ray=={ours}, or install ray=={theirs} here.",
        )
    return ok("cluster.version", f"Ray {theirs} there, {ours} here")


def check_ports(ports: Mapping[int, str] = PORTS) -> Iterator[Finding]:
    """Look which of the ports that a head or a service would take are in use on this machine."""
    taken = [f"{port} ({use})" for port, use in ports.items() if _is_taken(port)]
    if taken:
        yield warn(
            "ports",
            f"in use: {', '.join(taken)}",
            remedy="Stop what listens there (ss -ltnp shows it), or start with other ports: ray start --port, "
            "--dashboard-port; port of the service.",
        )
    else:
        yield ok("ports", f"free: {', '.join(map(str, ports))}")


def _is_taken(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
