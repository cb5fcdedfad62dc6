"""Fine-tune a model on genes with proteins or peaks: python -m jobs.finetune_multiomic --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.finetune_multiomic --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("finetune-multiomic", description=__doc__))
