"""An ingest and a training on a Ray of their own, scraped all the while: ``python metrics_driver.py FOLDER``.

``FOLDER/exported.json`` becomes the newest value of each metric's samples by name. MLflow is away.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.request
from pathlib import Path

os.environ["RAY_metrics_report_interval_ms"] = "500"  # noqa: SIM112 - Ray reads it like this; default ten seconds
os.environ["CYTORAY_FEW_CELLS"] = "0"

from cytoray.cluster import connected, prepare_auth

STEPS = 6


class Scraper(threading.Thread):
    """Reads the metrics of the node again and again, until ``close``."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.found: dict[str, float] = {}
        self.address, self._over = address, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            self.look()

    def look(self) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        try:
            text = urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10).read().decode()
        except OSError:
            return  # the agent has not started yet
        for family in text_string_to_metric_families(text):
            self.found |= {sample.name: sample.value for sample in family.samples}

    def close(self) -> None:
        self._over.set()
        self.join()


def main(folder: Path) -> None:
    """Do the work and write what was exported."""
    prepare_auth()
    import ray

    from cytoray.corpus.config import IngestConfig
    from cytoray.corpus.ingest import ingest
    from cytoray.corpus.synthetic import SynthConfig, synthesise
    from cytoray.tasks import learning_stages
    from cytoray.training.pretraining import pretrain

    synthesise(folder / "raw", SynthConfig(num_cells=300, num_files=3, num_genes=300, mean_genes=60.0, num_donors=6))
    store = str(folder / "store")
    sources = {"store": store, "corpus": "cells", "sources": [{"uri": f"{folder}/raw/"}]}
    run = {
        "kind": "pretrain", "store": store, "run": "watched", "corpus": "cells",
        "model": {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1},
        "tokenizer": {"max_length": 64},
        "train": {"num_steps": STEPS, "cells_per_step": 16, "log_every": 2, "checkpoint_every": 3, "seed": 1},
        "workers": {"num_workers": 1, "cpus_per_worker": 0.5},
        "tracking": {"uri": "http://127.0.0.1:9", "journal_folder": str(folder / "journal")},
    }  # fmt: skip
    with connected(num_cpus=2, object_store_bytes=100 * 2**20):
        (node,) = ray.nodes()
        scraper = Scraper(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
        scraper.start()
        ingest(IngestConfig.model_validate_json(json.dumps(sources)))
        pretrain(learning_stages()["pretrain"].config.load().model_validate_json(json.dumps(run)))
        scraper.close()
        scraper.look()
    (folder / "exported.json").write_text(json.dumps(scraper.found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
