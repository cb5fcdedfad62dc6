"""Judge an annotation model on held-out cells: python -m jobs.evaluate --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.evaluate --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate", description=__doc__))
