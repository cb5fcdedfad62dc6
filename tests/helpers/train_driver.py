"""A training in a process of its own, that a test may kill: ``python train_driver.py FOLDER NODES``.

``FOLDER/config.json`` is the run, ``FOLDER/result.json`` becomes what it came to or the error a user would see; the
exit code is the command line's. With NODES above 0 it runs on a cluster of so many nodes, of which the last is lost
when ``FOLDER/lose-a-node`` appears.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cytoray.cluster import connected, prepare_auth
from cytoray.errors import CytorayError


def run(folder: Path, num_nodes: int) -> tuple[dict[str, Any], int]:
    """Train; what became of it, and the exit code."""
    prepare_auth()
    from cytoray.tasks import learning_stages

    text = (folder / "config.json").read_text()
    stage = learning_stages()[json.loads(text)["kind"]]
    config = stage.config.load().model_validate_json(text)
    try:
        with _cluster(folder, num_nodes) if num_nodes else contextlib.nullcontext(), connected(num_cpus=2):
            result, _ = _train(config)
    except CytorayError as error:
        found = {"error": type(error).__name__, "text": error.problem, "remedy": error.remedy}
        return found, error.exit_code
    return {**result.summary(), "events": result.events}, 0


def _train(config: Any) -> tuple[Any, Any]:
    if config.kind == "finetune-perturbation":
        from cytoray.tasks.perturbation.learning import finetune

        return finetune(config)
    from cytoray.training.pretraining import pretrain

    return pretrain(config)


@contextlib.contextmanager
def _cluster(folder: Path, num_nodes: int) -> Iterator[None]:
    """A cluster on this machine, each of whose nodes has room for one worker of 1.5 CPUs."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    nodes = [cluster.add_node(**size) for _ in range(num_nodes - 1)]

    def lose() -> None:
        while not (folder / "lose-a-node").exists():
            time.sleep(0.05)
        cluster.remove_node(nodes[-1], allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    outcome, code = run(Path(sys.argv[1]), int(sys.argv[2]))
    (Path(sys.argv[1]) / "result.json").write_text(json.dumps(outcome))
    sys.exit(code)
