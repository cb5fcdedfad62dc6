"""Ray's token on this machine, and what a dashboard says about itself; every answer within seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from cytoray.errors import JobError

PROBE_TIMEOUT_S = 5.0
TOKEN_REMEDY = (
    "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token that the head was started with; "
    "`ray get-auth-token --generate` makes one for a new cluster."
)


def token_mode() -> bool:
    """Return whether Ray's token authentication is on for this process: it is, unless RAY_AUTH_MODE says otherwise."""
    return os.environ.get("RAY_AUTH_MODE", "token") != "disabled"


def find_token() -> str | None:
    """Return the token of this machine, in Ray's order: the variable, the file it names, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


def bearer(token: str | None) -> dict[str, str]:
    """Return the headers of a request with this token; none without a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass(frozen=True)
class Dashboard:
    """The answer of a dashboard to GET /api/version."""

    status: int  # HTTP
    ray_version: str = ""
    date: str = ""  # its clock, as an HTTP date

    @staticmethod
    def ask(url: str, token: str | None) -> Dashboard:
        """Send one request; httpx.TransportError if there is no answer within seconds."""
        answer = httpx.get(f"{url}/api/version", headers=bearer(token), timeout=PROBE_TIMEOUT_S, trust_env=False)
        try:
            body: Any = answer.json()
        except ValueError:
            body = {}
        version = body.get("ray_version", "") if isinstance(body, dict) else ""
        return Dashboard(answer.status_code, str(version), answer.headers.get("date", ""))


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def require_dashboard(url: str) -> str | None:
    """Check that a Ray of our version answers at ``url`` and takes our token; returns the token, None if it is off.

    Raises JobError that says which of these is not so, and what to do.
    """
    token = find_token() if token_mode() else None
    if token_mode() and token is None:
        raise JobError("This machine has no token for Ray, and RAY_AUTH_MODE is token.", remedy=TOKEN_REMEDY)
    try:
        found = Dashboard.ask(url, token)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise JobError(
            f"No Ray cluster answers at {url} ({error or type(error).__name__}).",
            remedy="Start one with `ray start --head`, name its dashboard with --cluster http://HOST:8265 or "
            "RAY_API_SERVER_ADDRESS, or forward its port.",
            url=url,
        ) from error
    if found.status in (401, 403):
        raise JobError(
            f"The Ray cluster at {url} rejected the token (HTTP {found.status}).", remedy=TOKEN_REMEDY, url=url
        )
    if found.status != 200 or not found.ray_version:
        raise JobError(
            f"The server at {url} is not a Ray dashboard (HTTP {found.status}).",
            remedy="Name the dashboard of the head, usually port 8265.",
            url=url,
        )
    _check_version(url, found.ray_version)
    if token is not None and Dashboard.ask(url, None).status == 200:
        raise JobError(
            f"The Ray cluster at {url} takes jobs from anybody: it was started without token authentication.",
            remedy="Start its head with RAY_AUTH_MODE=token and a token, or set RAY_AUTH_MODE=disabled here if it is "
            "protected in another way.",
            url=url,
        )
    return token


def _check_version(url: str, theirs: str) -> None:
    """Raise JobError if a cluster runs another minor version of Ray, which could not unpickle our tasks."""
    from importlib.metadata import version

    ours = version("ray")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise JobError(
            f"The cluster at {url} runs Ray {theirs}, and this cytoray needs {ours}.",
            remedy=f"Use an image with ray=={ours}, or the cytoray that was built for Ray {theirs}.",
            theirs=theirs,
            ours=ours,
        )
