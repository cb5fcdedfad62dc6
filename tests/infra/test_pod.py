"""A head and a worker live as in a pod of infra/kuberay: user 1000, no capabilities, a root that cannot be written to.

Namespaces of processes, mounts and network stand in for the container (tests/helpers/pod.sh); this needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.infra, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
LIMIT_S = 840


def live(folder: Path) -> list[str]:
    """Run tests/helpers/pod_life.sh in a pod whose /tmp is ``folder``; returns the facts that it reports."""
    helpers = ROOT / "tests" / "helpers"
    enter = ["unshare", "--mount", "--pid", "--net", "--fork", "bash", str(helpers / "pod.sh"), str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "REPOSITORY": str(ROOT),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [*enter, sys.base_prefix, str(helpers / "pod_life.sh")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            output, _ = run.communicate(timeout=LIMIT_S)
        finally:
            for process in psutil.Process(run.pid).children() if run.poll() is None else ():
                process.kill()  # the first process of its namespace: all others end with it
    print(output)
    return re.findall(r"^FACT (.*)$", output, re.MULTILINE)


def test_a_pod_works_and_leaves_well(tmp_path: Path):
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("unshare", "setpriv", "ip", "wget", "curl")):
        pytest.skip("needs root, unshare, setpriv, ip, wget and curl")
    facts = live(tmp_path)
    assert facts[:2] == ["uid 1000", "root is read-only"]
    assert "probe success" in facts, "KubeRay's probe, which has no token"
    assert "without a token 401" in facts
    assert "ingest SUCCEEDED" in facts
    # preStop of the head: the driver of a training commits where there was no checkpoint, and exits with 75.
    assert "checkpoints before 0" in facts
    assert "exit code 75" in facts
    assert "checkpoints after 1" in facts
    # preStop of a worker: Ray moves work away and ends the node, long before the time is over.
    assert max(float(each.split()[-2]) for each in facts if "left in" in each) < 90
    nodes = [each for each in facts if each.startswith("node ") and "left" not in each]
    assert [each.split()[1] for each in nodes] == ["dead", "alive"]
