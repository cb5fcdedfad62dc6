"""Answer the cells of files offline: embed, annotate, map, predict-proteins: python -m jobs.answer --config FILE.

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.answer --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job(None, description=__doc__))
