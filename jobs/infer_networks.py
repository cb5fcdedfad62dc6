"""Infer the gene network of a file of cells: python -m jobs.infer_networks --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.infer_networks --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("infer-networks", description=__doc__))
