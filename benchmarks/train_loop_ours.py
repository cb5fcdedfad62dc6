"""Our training loop, run as a user runs it; its figures are read from the journal that every run keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.train_loop_trial import WARM_UP_STEPS
from cytoray.cluster import connected
from cytoray.tracking.journal import read_events
from cytoray.training.config import PretrainConfig


@dataclass(frozen=True)
class JournalledSteps:
    """The values that rank 0 journalled for each step."""

    steps: list[dict[str, float]]

    @property
    def steady(self) -> list[dict[str, float]]:
        """Without the first steps, and without the last, where a short run saves what a long one seldom does."""
        return self.steps[WARM_UP_STEPS:-1]

    @property
    def steps_s(self) -> list[float]:
        """Wall time of the steady steps, all that happens between two of them included."""
        return [step["step_s"] for step in self.steady]

    @property
    def cells_per_s(self) -> float:
        """Cells over seconds, steady steps."""
        return sum(step["cells_per_s"] * step["step_s"] for step in self.steady) / sum(self.steps_s)

    @property
    def tokens_per_cell(self) -> float:
        """Real tokens per cell, steady steps."""
        tokens = sum(step["tokens_per_s"] * step["step_s"] for step in self.steady)
        return round(tokens / (self.cells_per_s * sum(self.steps_s)), 1)

    def share(self, name: str) -> float:
        """Per cent of the time after the first steps that went into ``name``; the last step is counted here."""
        counted = self.steps[WARM_UP_STEPS:]
        spent = sum(step[name] * step["step_s"] for step in counted)
        return 100 * spent / sum(step["step_s"] for step in counted)


def train_ours(config: PretrainConfig) -> JournalledSteps:
    """Pretrain through Ray Train and DeepSpeed on a Ray of two CPUs that is started for it."""
    with connected(num_cpus=2):
        from cytoray.training.pretraining import pretrain  # imports Ray, which must wait for its authentication

        pretrain(config)
    (journal,) = Path(config.tracking.journal_folder).glob("*.jsonl")
    steps = [event["values"] for event, _ in read_events(journal) if event["kind"] == "metrics"]
    steps = [values for values in steps if "step_s" in values]
    assert len(steps) == config.train.num_steps, f"{journal} has {len(steps)} steps"
    assert np.isfinite([values["loss"] for values in steps]).all(), "the loop does not train"
    return JournalledSteps(steps)
