"""Fine-tune a model for batch integration: python -m jobs.finetune_integration --config FILE [--set a.b=c].

As a Ray job: ray job submit --runtime-env configs/runtime_env.yaml -- python -m jobs.finetune_integration --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("finetune-integration", description=__doc__))
