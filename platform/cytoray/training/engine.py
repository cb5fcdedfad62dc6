"""Our configuration to a DeepSpeed engine: every setting whose default moved between releases is written out."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cytoray.training.config import OptimizerConfig, RunConfig

logger = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to ``final_share`` of the peak: a pure function of the step."""
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, num_steps - optimizer.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optimizer.learning_rate * (optimizer.final_share + (1 - optimizer.final_share) * share)


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dictionary, derived; users never write it."""
    train, optimizer, workers = config.train, config.optimizer, config.workers
    micro_cells, rest = divmod(train.cells_per_step, world_size * train.accumulation)
    assert rest == 0, "cells_per_step must divide by world size x accumulation"
    bf16 = workers.precision == "bf16"
    return {
        "train_batch_size": train.cells_per_step,
        "train_micro_batch_size_per_gpu": micro_cells,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,  # the compiled Adam needs a compiler at start
                "adam_w_mode": True,
            },
        },
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": workers.zero_stage,
            # One reduction after backward: with overlap the same module run twice a step has reduced wrongly before.
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "round_robin_gradients": False,
        },
    }


def build_engine(module: nn.Module, config: RunConfig, world_size: int) -> Any:
    """Wrap ``module`` in a DeepSpeed engine on the process group that Ray Train has made."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # here, because it looks for an accelerator when it is imported

    if not torch.cuda.is_available():
        # DeepSpeed would compile its shared-memory all-reduce here; gloo does the same without a compiler.
        deepspeed.ops.__compatible_ops__ = {}
        logger.info("DeepSpeed's compiled CPU communication op is left out: gloo reduces gradients")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=parameters, config=deepspeed_config(config, world_size)
    )
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Write the learning rate of this step into every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def _named_parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained parameters under the names of the model's ``state_dict``."""
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """Full fp32 weights by name, on the host. Collective: every rank must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {name: tensor.detach() for name, tensor in engine.module.model.state_dict().items()}
    for name, parameter in _named_parameters(engine):
        full = safe_get_full_fp32_param(parameter) if hasattr(parameter, "_hp_mapping") else parameter.detach()
        weights[name] = full
    return {name: tensor.float().cpu().clone().contiguous() for name, tensor in weights.items()}


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Full Adam moments as ``<moment>.<name>``, on the host. Collective: every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in _named_parameters(engine):
        for moment in MOMENTS:
            if hasattr(parameter, "_hp_mapping"):
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = engine.optimizer.state[parameter][moment]
            moments[f"{moment}.{name}"] = full.detach().float().cpu().clone().contiguous()
    return moments


def restore_moments(engine: Any, moments: dict[str, Tensor], *, step: int) -> None:
    """Put Adam moments and the step count back, at any world size, before the first step of the engine."""
    from deepspeed.utils import safe_set_full_optimizer_state

    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for group in base.param_groups:
        for flat in group["params"]:
            zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            base.state[flat] = {"step": torch.tensor(float(step)), **zeros}
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # ties each parameter to its slice of the flat moments
    for name, parameter in _named_parameters(engine):
        for moment in MOMENTS:
            value = moments[f"{moment}.{name}"].to(parameter.device)
            if hasattr(parameter, "_hp_mapping"):
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                base.state[parameter][moment].copy_(value)
    engine.global_steps = step
