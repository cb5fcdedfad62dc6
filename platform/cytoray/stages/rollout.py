"""Roll out a promoted version: wait until a running service, which follows the alias by itself, serves it."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cytoray.config import Config, Location
from cytoray.errors import ConfigError, ServingError
from cytoray.serving.rollout.webhook import DELIVERY, SIGNATURE, TIMESTAMP, sign

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)
MODEL_ROUTE, WEBHOOK_ROUTE = "/v1/model", "/v1/webhooks/mlflow"
KEY_VARIABLE = "CYTORAY_API_KEY"
REPLY_TIMEOUT_S = 10.0


class RolloutStageConfig(Config):
    """Configuration of rollout: wait until a service serves a version of a registered model."""

    places: ClassVar[frozenset[str]] = frozenset({"timeout_s", "poll_s", "webhook_secret_file"})

    kind: Literal["rollout"] = Field("rollout", description="Which stage this file configures.")
    url: str = Field(pattern=r"^https?://[^/]", description="Root of a running service, such as http://127.0.0.1:8000.")
    model: str = Field(
        pattern=r"^models:/[A-Za-z0-9][A-Za-z0-9_.-]*/[1-9][0-9]*$",
        description="The version to wait for, models:/NAME/VERSION; in a pipeline, the one that it promoted.",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="Seconds after which the stage fails; the service may still swap."
    )
    poll_s: float = Field(1.0, gt=0, description="Seconds between two questions to the service.")
    webhook_secret_file: Location | None = Field(
        None, description="File with the secret of the service's webhook, by which it looks at once; null: it polls."
    )


def run_rollout(config: RolloutStageConfig) -> dict[str, Any]:
    """Wait until the service reports the version; returns what it reported, and the seconds that it took.

    Raises ServingError, with the reason that the service gives, if it does not serve the version within ``timeout_s``.
    """
    import httpx  # takes 0.1 s, and configurations are read without it

    name, _, version = config.model.removeprefix("models:/").rpartition("/")
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    started = time.monotonic()
    with httpx.Client(base_url=config.url, headers=headers, timeout=REPLY_TIMEOUT_S, trust_env=False) as client:
        if config.webhook_secret_file is not None:
            _notify(client, config.webhook_secret_file, name=name, version=version)
        seen = "no reply"
        while True:
            serving, seen = _ask(client, name)
            if serving.get("version") == version:
                seconds = round(time.monotonic() - started, 1)
                return {"url": config.url, "model": config.model, "digest": serving["digest"], "waited_s": seconds}
            if time.monotonic() - started + config.poll_s > config.timeout_s:
                break
            time.sleep(config.poll_s)
    raise ServingError(
        f"{config.url} does not serve {config.model} after {config.timeout_s:g} s ({seen}).",
        remedy="Look at the service's log and GET /v1/model; run this stage again when it is mended.",
        url=config.url,
        model=config.model,
    )


def _ask(client: httpx.Client, name: str) -> tuple[dict[str, Any], str]:
    """Return the model that answers under a registered name ({} if unknown), and a description for messages."""
    import httpx

    try:
        ready = client.get("/readyz")
        if ready.status_code == 200 and ready.json()["model"]["name"] == name:
            body = ready.json()
            return _described(body["model"], "; ".join(body["degraded"].values()))
        if ready.status_code != 200:
            return {}, f"/readyz answers {ready.status_code}"
        other = client.get(MODEL_ROUTE, params={"model": name})  # a service of several models; may need a key
    except httpx.TransportError as error:
        return {}, type(error).__name__
    if other.status_code != 200:
        return {}, f"{MODEL_ROUTE}?model={name} answers {other.status_code}"
    return _described(other.json()["model"], other.json()["degraded"] or "")


def _described(model: dict[str, Any], trouble: str) -> tuple[dict[str, Any], str]:
    """Return a model that serves with a description of it."""
    return model, f"it serves version {model['version']}" + (f": {trouble}" if trouble else "")


def _notify(client: httpx.Client, secret_file: str, *, name: str, version: str) -> None:
    """Send the event that MLflow sends when an alias moves, so that the replicas look at it at once."""
    import httpx

    try:
        secrets = Path(secret_file).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"webhook_secret_file: {secret_file} cannot be read.", remedy="Check the path.") from error
    if not secrets:
        raise ConfigError(f"webhook_secret_file: {secret_file} is empty.", remedy="Put the service's secret there.")
    event = {"entity": "model_version_alias", "action": "created", "data": {"name": name, "version": version}}
    body, delivery, stamp = json.dumps(event).encode(), uuid.uuid4().hex, str(int(time.time()))
    signature = sign(secrets[0], body, delivery=delivery, stamp=stamp)
    headers = {SIGNATURE: signature, TIMESTAMP: stamp, DELIVERY: delivery, "content-type": "application/json"}
    try:
        reply = client.post(WEBHOOK_ROUTE, content=body, headers=headers)
    except httpx.TransportError as error:
        logger.warning("the webhook of %s did not answer (%s); its replicas poll", client.base_url, error)
        return
    if reply.status_code != 202:
        logger.warning("the webhook of %s answered %d; its replicas poll", client.base_url, reply.status_code)
