"""A training in a process of its own, that a test may kill: ``python train_driver.py CONFIG.json RESULT.json``.

The result is a JSON object: what the run came to, or the error a user would see. The exit code is the command line's.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from cytoray.cluster import connected, prepare_auth
from cytoray.errors import CytorayError


def run(config_path: Path) -> tuple[dict[str, Any], int]:
    """Train; what became of it, and the exit code."""
    prepare_auth()
    from cytoray.training.config import PretrainConfig
    from cytoray.training.pretraining import pretrain

    config = PretrainConfig.model_validate_json(config_path.read_text())
    try:
        with connected(num_cpus=2):
            result, _ = pretrain(config)
    except CytorayError as error:
        found = {"error": type(error).__name__, "text": str(error), "remedy": error.remedy}
        return found, error.exit_code
    return {**result.summary(), "events": result.events}, 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    outcome, code = run(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(outcome))
    sys.exit(code)
