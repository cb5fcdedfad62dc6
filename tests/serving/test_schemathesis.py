"""schemathesis against docs/openapi.json and a service that is started as a user does: `make test-schemathesis`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import planted_reference
import pytest
from documented import DOCUMENT
from full_model import PAGE_GENES
from serve_process import serve

from cytoray.model.bundle import save_bundle

pytestmark = [pytest.mark.schemathesis, pytest.mark.timeout(1800)]
SEED, NUM_EXAMPLES = 1, 10
HELPERS = Path(planted_reference.__file__).parent


def test_generated_requests_are_answered_as_documented(tmp_path: Path) -> None:
    genes = (*PAGE_GENES, *planted_reference.GENES)
    save_bundle(planted_reference.build_bundle(genes=genes, labels=("B", "T", "NK")), tmp_path / "tiny")
    with serve(tmp_path, model_uri=str(tmp_path / "tiny")) as service:
        command = [os.environ["SCHEMATHESIS"], "run", str(DOCUMENT), "--url", service.url, "--no-color"]
        command += ["--header", f"Authorization: Bearer {service.key}", "--continue-on-failure"]
        command += ["--seed", str(SEED), "--generation-deterministic", "--max-examples", str(NUM_EXAMPLES)]
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        command += ["--report", "json", "--report-json-path", str(tmp_path / "report.json")]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HELPERS)}
        finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1700)
        print(finished.stdout)
        statuses = [json.loads(line)["status"] for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert finished.returncode == 0, finished.stdout[-6_000:] + finished.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", finished.stdout)
    assert tested is not None
    assert int(tested[1]) == len(re.findall(r'"operationId"', DOCUMENT.read_text()))
    assert len(statuses) > 1_000
    assert max(statuses) < 500
