"""Fine-tune a model to predict a number of each cell: python -m jobs.finetune_regression --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.finetune_regression --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("finetune-regression", description=__doc__))
