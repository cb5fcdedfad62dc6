"""The overlays of infra/kuberay: valid for KubeRay, Kueue and Kubernetes, consistent, closed, and what serve/ and jobs/ say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kube_checks import check, of_kind
from kube_render import KUBERAY, OVERLAYS, documents
from kube_schema import kuberay_schemas

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str):
    schemas = kuberay_schemas()
    for document in documents(overlay):
        place = f"{document['kind']}/{document['metadata']['name']}"
        assert schemas.problems(document) == [], place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_fit_together(overlay: str):
    assert check(documents(overlay)) == []
