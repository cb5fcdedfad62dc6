"""Embed a file and serve a model with Ray workers that reserve GPUs, on a Ray that believes it has one.

python reserved_gpus.py FOLDER PORT: reads ``FOLDER/bundle`` and ``FOLDER/cells.h5ad``, writes the embeddings of the
offline command and of the service as ``FOLDER/offline.npy`` and ``FOLDER/served.npy``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq

from cytoray.cluster import prepare_auth
from cytoray.corpus.config import SourceConfig


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    prepare_auth()
    import ray

    from cytoray.serving.app import run_service, stop_service
    from cytoray.serving.client import Client
    from cytoray.serving.config import AppArgs
    from cytoray.serving.offline import OfflineTask, answer_sources
    from cytoray.tasks.messages import ModelInfo

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    bundle = folder / "bundle"
    digest = hashlib.sha256((bundle / "digests.json").read_bytes()).hexdigest()
    model = ModelInfo(name="tiny", version="1", digest=digest)
    source = SourceConfig(uri=str(folder / "cells.h5ad"))
    answer_sources(OfflineTask((source,), str(bundle), model, str(folder / "out"), num_gpus=1.0))
    table = pq.read_table(next((folder / "out").glob("part-*.parquet")))
    np.save(folder / "offline.npy", np.array(table["embedding"].to_pylist(), np.float32))
    url = run_service(AppArgs(model_uri=str(bundle), num_cpus=0.5, num_gpus=0.5, max_replicas=1), port=port)
    with Client(url) as client:
        np.save(folder / "served.npy", client.embed_adata(anndata.read_h5ad(folder / "cells.h5ad")))
    stop_service()
    ray.shutdown()


if __name__ == "__main__":
    main()
