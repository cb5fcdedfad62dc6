"""The YAML files of ``serve deploy``, validated by our own classes: Ray silently ignores misspelt keys."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cytoray.config import Config
from cytoray.serving.config import AppArgs
from cytoray.serving.edge.addresses import is_loopback

BUILDER = "cytoray.serving.app:build_app"
PREBUILT = "serve.application:app"


class HttpOptions(Config):
    """Serve's HTTP server."""

    host: str = Field(min_length=1, description="Address to listen on; required, because Ray's default is 0.0.0.0.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    root_path: str = Field("", description="Path under which a server in front shows the service.")
    request_timeout_s: float | None = Field(
        None, gt=0, description="Serve's own time limit; longer than limits.deadline_s, so that the service answers."
    )
    keep_alive_timeout_s: int = Field(90, ge=1, description="Seconds that an idle connection is kept.")
    ssl_keyfile: str | None = Field(None, description="Private key for HTTPS.")
    ssl_certfile: str | None = Field(None, description="Certificate for HTTPS.")
    ssl_keyfile_password: str | None = Field(None, description="Password of the private key.")
    ssl_ca_certs: str | None = Field(None, description="Certificates of authorities that sign clients' certificates.")


class LoggingOptions(Config):
    """Serve's logs."""

    encoding: Literal["TEXT", "JSON"] = Field("TEXT", description="Format.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level written.")
    logs_dir: str | None = Field(None, description="Folder; null is Ray's.")
    enable_access_log: bool = Field(True, description="Whether Serve logs requests; the edge does in any case.")
    additional_log_standard_attrs: tuple[str, ...] = Field((), description="More fields of Python's log records.")


class Application(Config):
    """One application."""

    name: str = Field(min_length=1, description="Name in `serve status`.")
    route_prefix: Literal["/"] = Field("/", description="The routes of the API are fixed.")
    import_path: Literal["cytoray.serving.app:build_app", "serve.application:app"] = Field(
        description="What builds the application."
    )
    args: AppArgs | None = Field(None, description="The model, its resources and limits.")
    runtime_env: dict[str, Any] = Field({}, description="Ray's runtime environment of the replicas.")
    logging_config: LoggingOptions | None = Field(None, description="Serve's logs of this application.")

    @model_validator(mode="after")
    def _check_args(self) -> Application:
        if (self.args is None) == (self.import_path == BUILDER):
            raise ValueError(f"args are required with import_path {BUILDER}, and not allowed with {PREBUILT}")
        return self


class DeployFile(Config):
    """A file for ``serve deploy``."""

    kind: ClassVar[str] = "serve deploy"

    proxy_location: Literal["HeadOnly", "EveryNode", "Disabled"] = Field(
        "EveryNode", description="Nodes with an HTTP server."
    )
    http_options: HttpOptions = Field(description="Serve's HTTP server.")
    logging_config: LoggingOptions | None = Field(None, description="Serve's logs.")
    target_capacity: float | None = Field(None, ge=0, le=100, description="Share of the replicas to run, in percent.")
    applications: tuple[Application, ...] = Field(description="The service, one application.")

    @model_validator(mode="after")
    def _check_together(self) -> DeployFile:
        if len(self.applications) != 1:
            raise ValueError(f"applications: one is expected, got {len(self.applications)}")
        args = self.applications[0].args
        if args is None:
            return self
        limit, host = self.http_options.request_timeout_s, self.http_options.host
        if limit is not None and limit <= args.limits.deadline_s:
            raise ValueError(
                f"http_options.request_timeout_s {limit:g} is not longer than limits.deadline_s "
                f"{args.limits.deadline_s:g}: Serve would give up before the service answers"
            )
        if not is_loopback(host) and not args.edge.is_decided:
            raise ValueError(args.edge.undecided(host))
        return self
