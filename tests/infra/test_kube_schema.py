"""The validator of Kubernetes objects itself: defaults, strictness, paths, and what it says about a misspelt key."""

from __future__ import annotations

import pytest
from kube_schema import kuberay_schemas, make_strict, read_yaml, with_defaults

pytestmark = pytest.mark.infra

CLUSTER = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: one}
spec:
  rayVersion: "2.60.0"
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template: {spec: {containers: [{name: ray-head, image: "cytoray:1", resources: {limits: {memory: 4Gi, cpu: 1}}}]}}
  workerGroupSpecs:
    - groupName: cpu
      template: {spec: {containers: [{name: ray-worker, image: "cytoray:1"}]}}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: one}, ports: [{name: http, port: 80, targetPort: http}]}
"""


@pytest.mark.parametrize("text", [CLUSTER, SERVICE])
def test_good_objects_have_no_problem(text: str):
    assert kuberay_schemas().problems(read_yaml(text)[0]) == []


@pytest.mark.parametrize(
    ("text", "old", "new", "path"),
    [
        (CLUSTER, "rayStartParams", "rayStartParam", "spec/headGroupSpec: unknown key 'rayStartParam', did you mean"),
        (CLUSTER, '"2.60.0"', "2.60", "spec/rayVersion: 2.6 is not of type 'string'"),
        (CLUSTER, "- groupName: cpu", "- group: cpu", "spec/workerGroupSpecs/0: 'groupName' is a required property"),
        (
            CLUSTER,
            "memory: 4Gi",
            "memory: 4 GiB",
            "spec/headGroupSpec/template/spec/containers/0/resources/limits/memory",
        ),
        (CLUSTER, "limits:", "limit:", "spec/headGroupSpec/template/spec/containers/0/resources: unknown key 'limit'"),
        (CLUSTER, "ray.io/v1", "ray.io/v2", "apiVersion: unknown kind 'RayCluster' of apiVersion 'ray.io/v2'"),
        (SERVICE, "targetPort", "targetport", "spec/ports/0: unknown key 'targetport', did you mean 'targetPort'?"),
        (SERVICE, "port: 80", "port: '80'", "spec/ports/0/port: '80' is not of type"),
        (SERVICE, "kind: Service", "kind: Services", "apiVersion: unknown kind 'Services'"),
    ],
)
def test_mistakes_are_reported_with_their_path(text: str, old: str, new: str, path: str):
    assert text.count(old) == 1
    problems = kuberay_schemas().problems(read_yaml(text.replace(old, new))[0])
    assert any(problem.startswith(path) for problem in problems), problems


def test_defaults_are_applied_and_do_not_change_the_document():
    schema = {"properties": {"a": {"default": 1}, "b": {"items": {"properties": {"c": {"default": "x"}}}}}}
    document = {"b": [{}, {"c": "y"}]}
    assert with_defaults(schema, document) == {"a": 1, "b": [{"c": "x"}, {"c": "y"}]}
    assert document == {"b": [{}, {"c": "y"}]}


def test_free_keys_stay_free():
    schema = {
        "properties": {
            "labels": {"additionalProperties": {"type": "string"}},
            "a": {"x-kubernetes-int-or-string": True},
        }
    }
    strict = make_strict(schema)
    assert strict["additionalProperties"] is False
    assert strict["properties"]["labels"] == {"additionalProperties": {"type": "string"}}
    assert strict["properties"]["a"]["anyOf"] == [{"type": "integer"}, {"type": "string"}]
