"""Fine-tune a model to predict responses to perturbations: python -m jobs.finetune_perturbation --config FILE.

As a Ray job: cytoray jobs submit finetune_perturbation --config FILE
"""

import sys

from cytoray.stages.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("finetune-perturbation", description=__doc__))
