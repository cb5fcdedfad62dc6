"""Commands of docs/cluster.md that need no cluster, run as written: kubectl in the client alone, python, cytoray."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from guide_commands import check_cluster_command
from kube_checks import check
from kube_pods import SECRETS
from kube_render import documents
from kube_schema import kuberay_schemas

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


OTHERS = ("export", "cytoray", "python")  # tests/test_docs.py checks them


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_about_things_that_exist(line: str):
    words = shlex.split(line)
    known = words[0] in OTHERS or words[:3] in (["ray", "start", "--head"], ["ray", "job", "submit"])
    assert known or check_cluster_command(words), f"nothing checks {line}"


def run(line: str, folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    done = subprocess.run(["/bin/bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def test_the_secrets_are_made_with_their_keys(tmp_path: Path):
    (tmp_path / "mlflow-password").write_text("secret")
    (tmp_path / "keys.json").write_text("{}")
    made = {}
    for line in LINES:
        if "create secret" in line:
            secret = yaml.safe_load(run(f"{line} --dry-run=client -o yaml", tmp_path))
            assert secret["metadata"]["namespace"] == "cytoray"
            assert all(secret["data"].values()), "nothing is empty"
            made[secret["metadata"]["name"]] = set(secret["data"])
    assert made == SECRETS


def test_the_patch_that_rotates_the_token_makes_a_good_service(tmp_path: Path):
    [line] = [line for line in LINES if " patch rayservice " in line]
    found = documents("eks-cpu")
    service = next(each for each in found if each["kind"] == "RayService")
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(service), encoding="utf-8")
    words = shlex.split(line)
    patch = words[words.index("-p") + 1]
    patched = yaml.safe_load(
        run(f"kubectl patch --local -f service.yaml --type json -p {shlex.quote(patch)} -o yaml", tmp_path)
    )
    assert kuberay_schemas().problems(patched) == []
    found[found.index(service)] = patched
    assert check(found) == []
    # KubeRay makes a new cluster if this part of the spec changes.
    assert patched["spec"]["rayClusterConfig"] != service["spec"]["rayClusterConfig"]
    assert json.loads(patch)[0]["path"].startswith("/spec/rayClusterConfig/")


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("kubectl kustomize") and " | " in line])
def test_labels_select_what_is_meant(line: str):
    label = re.search(r"-l (\S+)", line)[1]
    key, _, value = label.partition("=")
    chosen = [each for each in documents("eks-cpu") if each["metadata"].get("labels", {}).get(key) == value]
    assert [each["kind"] for each in chosen] == (["ConfigMap"] if "config" in key else ["RayJob"])
