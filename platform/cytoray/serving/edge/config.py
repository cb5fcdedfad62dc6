"""Configuration of the edge: keys and logs."""

from __future__ import annotations

from pydantic import Field, model_validator

from cytoray.config import Config, Location


class EdgeConfig(Config):
    """Who may ask the service, and where requests are logged."""

    auth: bool | None = Field(
        None,
        description="Require an API key: on, off, or null for on if keys_file is set. Beyond loopback, requests are "
        "refused unless this is decided.",
    )
    keys_file: Location | None = Field(
        None, description="Local file of API keys, written by `cytoray keys`; read again when it changes."
    )
    access_log: Location | None = Field(
        None, description="Local file for one JSON line per request; null writes them to the log of the process."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="Maximum time in seconds for a client to send a body.")

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key."""
        return self.keys_file is not None if self.auth is None else self.auth

    @property
    def is_decided(self) -> bool:
        """Whether the operator has decided who may ask."""
        return self.auth is not None or self.keys_file is not None

    @model_validator(mode="after")
    def _check_together(self) -> EdgeConfig:
        if self.auth and self.keys_file is None:
            raise ValueError("auth is on: keys_file is required (`cytoray keys new NAME --file keys.json` writes one)")
        return self

    @staticmethod
    def undecided(host: str) -> str:
        """Return the problem of a service that others can reach, without a decision on who may ask."""
        return (
            f"host {host} can be reached from other machines: set edge.keys_file (`cytoray keys new NAME --file "
            "keys.json` writes one), or `edge.auth: off` to answer everybody"
        )
