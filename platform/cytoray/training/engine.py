"""Our configuration to a DeepSpeed engine: every setting whose default moved between releases is written out."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from cytoray.errors import TrainingError
from cytoray.training.checkpoint import Checkpoint
from cytoray.training.config import OptimizerConfig, RunConfig
from cytoray.training.holdings import (
    holdings,
    is_sharded,
    named_parameters,
    set_num_updates,
    start_optimizer,
    weight_slices,
)
from cytoray.training.slices import MOMENTS, Slice, Snapshot, fill

logger = logging.getLogger(__name__)


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to ``final_share`` of the peak: a pure function of the step."""
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, num_steps - optimizer.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optimizer.learning_rate * (optimizer.final_share + (1 - optimizer.final_share) * share)


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dictionary, derived; users never write it."""
    optimizer, workers = config.optimizer, config.workers
    bf16 = workers.precision == "bf16"
    return {
        # Every backward accumulates and every step updates: the loop decides how many micro-batches a step has, and
        # divides losses by what all ranks counted, so that these sizes mean nothing.
        "managed_gradient_accumulation": False,
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
        "gradient_allreduce_op": "mean",
        "communication_data_type": "fp32",  # gradients are added in fp32, with bf16 as well
        "zero_allow_untested_optimizer": False,
        "checkpoint": {"tag_validation": "Warn"},  # its checkpoints are not used
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
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
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
    """Wrap ``module`` in a DeepSpeed engine on the process group that Ray Train has made.

    Raises TrainingError for bf16 at stage 0, where DeepSpeed adds gradients up in bf16.
    """
    if config.workers.precision == "bf16" and config.workers.zero_stage == 0:
        raise TrainingError(
            "bf16 does not go with workers.zero_stage 0.", remedy="Set workers.zero_stage to 1, 2 or 3."
        )
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
    start_optimizer(engine)
    if config.workers.zero_stage == 0:
        _leave_out_what_is_not_finite(engine, config.optimizer.gradient_clipping)
    return engine


def _leave_out_what_is_not_finite(engine: Any, bound: float) -> None:
    """Let an engine of stage 0 skip an update whose gradient is not finite and tell the norm, as other stages do."""
    optimizer = engine.optimizer
    step = optimizer.step

    def clip() -> None:
        engine._global_grad_norm = nn.utils.clip_grad_norm_(engine.module.parameters(), bound)

    def step_if_finite() -> None:
        optimizer.overflow = not bool(torch.isfinite(engine._global_grad_norm))
        if optimizer.overflow:
            engine._global_grad_norm = math.inf
        else:
            step()

    engine.clip_fp32_gradients, optimizer.step = clip, step_if_finite


def update(engine: Any) -> bool:
    """Update the weights by the gradients accumulated since the last time; False where these are not finite.

    Nothing has changed then, at any stage, and the gradients are cleared in either case.
    """
    engine.step()
    return bool(engine.was_step_applied())


def set_learning_rate(engine: Any, value: float) -> None:
    """Write the learning rate of this step into every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """Full fp32 weights and buffers by name, on the host. Collective: every rank must call it."""
    parameters = dict(engine.module.model.named_parameters())
    state = engine.module.model.state_dict()
    return {name: _on_host(_full_weight(parameters.get(name, tensor))) for name, tensor in state.items()}


def _full_weight(parameter: Any) -> Tensor:
    """A whole parameter, of which ZeRO may hold slices; a buffer as it is."""
    if not is_sharded(parameter):
        return parameter.detach()
    import deepspeed

    if parameter.requires_grad:
        return deepspeed.utils.safe_get_full_fp32_param(parameter)
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def gather_gradients(engine: Any) -> dict[str, Tensor]:
    """Full fp32 gradients by name, after the reduction and before the update. Collective: every rank must call it."""
    return {name: _on_host(_full_gradient(parameter)) for name, parameter in named_parameters(engine)}


def _full_gradient(parameter: Any) -> Tensor:
    """The reduced gradient, wherever the stage keeps it; ``parameter.grad`` is one rank's under ZeRO."""
    gradient: Tensor = (
        parameter._z3_optimizer.get_fp32_grad_for_param(parameter)
        if hasattr(parameter, "ds_id")
        else parameter.get_full_hp_grad()
        if hasattr(parameter, "_hp_mapping")
        else parameter.grad
    )
    return gradient


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in fp32; counters stay as they are."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Full Adam moments as ``<moment>.<name>``, on the host. Collective: every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in named_parameters(engine):
        for moment in MOMENTS:
            if is_sharded(parameter):
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = engine.optimizer.state[parameter][moment]
            moments[f"{moment}.{name}"] = _on_host(full)
    return moments


def take_snapshot(engine: Any, *, averages: dict[str, Tensor] | None = None) -> Snapshot:
    """Copies on the host of what this rank writes into a checkpoint; ranks exchange nothing at any stage."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    stage, held = engine.zero_optimization_stage(), holdings(engine)
    if stage == 0:  # all have everything: each writes its share
        held = {name: piece.share(rank, world_size) for name, piece in held.items()}
    held |= weight_slices(engine)
    slices = {name: Slice(_on_host(piece.values), piece.start, piece.shape) for name, piece in held.items()}
    if rank:
        return Snapshot({}, slices, None, rank, world_size, stage)
    sharded = {name for name, parameter in engine.module.model.named_parameters() if hasattr(parameter, "ds_id")}
    state = engine.module.model.state_dict()
    weights = {name: _on_host(tensor) for name, tensor in state.items() if name not in sharded}
    copies = None if averages is None else {name: _on_host(tensor) for name, tensor in averages.items()}
    return Snapshot(weights, slices, copies, rank, world_size, stage)


@torch.no_grad()
def restore(engine: Any, checkpoint: Checkpoint) -> int:
    """Put the optimiser's state and its count of updates back, whatever world size and stage wrote them.

    Returns how many of the checkpoint's files of slices were read: this rank's own is enough where these are as they
    were. The module must have the checkpoint's weights when the engine is built. TrainingError if it does not fit.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    num_read = fill(holdings(engine), checkpoint.read_slices(rank=rank, world_size=world_size))
    state = checkpoint.state
    set_num_updates(engine, state.step if state.num_updates is None else state.num_updates)
    return num_read
