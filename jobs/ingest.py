"""Ingest files of cells into a committed corpus: python -m jobs.ingest --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.ingest --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("ingest", description=__doc__))
