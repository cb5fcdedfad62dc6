"""`cytoray doctor`: is this machine, with its store, MLflow and cluster, fit for cytoray?"""

from __future__ import annotations

from typing import Annotated

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer


def doctor(
    store: Annotated[
        str | None, typer.Option(envvar=STORE, help="Store to check: s3://bucket/prefix or a folder.")
    ] = None,
    uri: Annotated[str | None, typer.Option(envvar=TRACKING, help="MLflow to check.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            envvar="CYTORAY_CLUSTER", help="Cluster to check: http(s)://HOST:8265, local, or kuberay:CONTEXT/NAMESPACE."
        ),
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for all checks together.", min=2)] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Check versions, store, MLflow, Ray's token, ports, disk, memory and processors, each with a remedy.

    Exit code 0 without a failure, 2 with one; warnings do not count. Nothing is changed: probe objects are removed, and
    buckets are never created.
    """
    from cytoray.operations.doctor.examine import Subject, describe, examine, find_cluster

    subject = Subject(store, uri, find_cluster(cluster))
    findings = examine(subject, limit_s=time_limit)
    print_answer({"findings": [finding.as_dict() for finding in findings]}, describe(findings), as_json=as_json)
    if any(finding.outcome == "fail" for finding in findings):
        raise typer.Exit(2)
