"""What a submission would send, with its plan, without sending it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cytoray.operations.jobs.kube_config import load_kube_config
from cytoray.operations.jobs.request import JobRequest
from cytoray.operations.jobs.shipping import CONFIG_NAME, load_runtime_env, packed
from cytoray.operations.jobs.yaml_text import to_yaml
from cytoray.operations.planning.prices import load_prices
from cytoray.operations.planning.stage_plan import StagePlan, plan_stage


@dataclass(frozen=True)
class Preview:
    """A request, as YAML documents, and the plan of its stage."""

    request: JobRequest
    documents: tuple[dict[str, Any], ...]
    plan: StagePlan

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"name": self.request.name, "submits": list(self.documents), "plan": asdict(self.plan)}

    def lines(self) -> Iterator[str]:
        """Return the documents as YAML, with the plan as comments: what is printed can be applied."""
        yield from (f"# {line}" for line in self.plan.lines())
        yield from to_yaml(self.documents).splitlines()


def preview(request: JobRequest, option: str, *, runtime_env: Path | None, kube: Path | None) -> Preview:
    """Build what would be submitted to the cluster ``option``, and plan the stage; no cluster is asked.

    Raises JobError if the upload is too large.
    """
    if option.startswith("kuberay:"):
        from cytoray.operations.jobs.kubernetes import parse_option
        from cytoray.operations.jobs.rayjob import build_objects

        _, namespace = parse_option(option)
        documents = tuple(build_objects(request, load_kube_config(kube), namespace=namespace))
    else:
        from cytoray.operations.jobs.ray_jobs import metadata_of

        with packed(request, load_runtime_env(runtime_env)) as (entrypoint, made):
            shown = {key: value for key, value in made.items() if key not in ("working_dir", "py_modules", "excludes")}
        long = ("cytoray_config", "cytoray_settings")  # the configuration, which follows
        metadata = {key: value for key, value in metadata_of(request, 1).items() if key not in long}
        document = {"entrypoint": entrypoint, "submission_id": request.name, "runtime_env": shown, "metadata": metadata}
        documents = (document, {CONFIG_NAME: yaml.safe_load(request.text)})
    return Preview(request, documents, plan_stage(request.config, prices=load_prices()))
