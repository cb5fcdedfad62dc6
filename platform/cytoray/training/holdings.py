"""Where DeepSpeed keeps the optimiser's state: one view of it for all ZeRO stages, so that no other file knows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cytoray.training.slices import MASTER, MOMENTS, Slice


def named_parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained parameters under the names of the model's ``state_dict``."""
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed holds this parameter, or its optimiser state, in slices: ZeRO 1 and 2, or 3."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def start_optimizer(engine: Any) -> None:
    """Give the optimiser the state of no update, which it would make at the first: to be saved, or restored into."""
    states = _optimizer(engine).state
    for flat in _updated_tensors(engine):
        states[flat] = {"step": torch.tensor(0.0), **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # ties each parameter to its slice of the flat moments


def set_num_updates(engine: Any, number: int) -> None:
    """Let Adam's bias correction go on after so many updates."""
    states = _optimizer(engine).state
    for flat in _updated_tensors(engine):
        states[flat]["step"].fill_(float(number))
    engine.global_steps = number


def holdings(engine: Any) -> dict[str, Slice]:
    """What this rank holds of the optimiser's state, by ``<kind>.<parameter>``: views, and writing to them changes it.

    At stage 0 that is everything, on every rank; at the others no element is with two ranks.
    """
    kinds = (*MOMENTS, MASTER) if engine.bfloat16_enabled() else MOMENTS
    found = {}
    for name, parameter in named_parameters(engine):
        for kind in kinds:
            piece = _held(engine, parameter, kind)
            if piece is not None:
                found[f"{kind}.{name}"] = piece
    return found


def weight_slices(engine: Any) -> dict[str, Slice]:
    """This rank's slices of the weights that ZeRO 3 shards, frozen ones included, by ``master.<parameter>``.

    Empty at other stages. Views in fp32 of what is trained; frozen parameters have no fp32 copy.
    """
    found = {}
    for name, parameter in engine.module.model.named_parameters():
        if not hasattr(parameter, "ds_id"):
            continue
        values = None if parameter.requires_grad else parameter.ds_tensor.detach().flatten()
        piece = _held_of_partition(parameter, None, values=values)
        if piece is not None:
            found[f"{MASTER}.{name}"] = piece
    return found


def _held(engine: Any, parameter: Any, kind: str) -> Slice | None:
    """This rank's slice of one kind of state of a parameter."""
    key = None if kind == MASTER else kind
    if hasattr(parameter, "ds_id"):
        return _held_of_partition(parameter, key)
    if not hasattr(parameter, "_hp_mapping"):
        state: Tensor = _optimizer(engine).state[parameter][kind]
        return Slice(state.view(-1), 0, tuple(parameter.shape))
    fragment = parameter._hp_mapping
    if fragment is None:
        return None
    return Slice(fragment.get_hp_fragment(key).detach(), fragment.lp_fragment_address.start, tuple(parameter.shape))


def _held_of_partition(parameter: Any, key: str | None, *, values: Tensor | None = None) -> Slice | None:
    """As ``_held``, at stage 3: there each parameter is cut into equal slices, of which the last ones are padded.

    ``values`` stand in for the optimiser's fp32 partition, which frozen parameters lack.
    """
    size = parameter.ds_tensor.numel()
    start = size * torch.distributed.get_rank()
    length = min(size, parameter.ds_numel - start)
    if length <= 0:
        return None
    if values is None:
        values = parameter._z3_optimizer.get_local_fp32_param(parameter, key).detach()
    return Slice(values[:length], start, tuple(parameter.ds_shape))


def _optimizer(engine: Any) -> Any:
    """The torch optimiser inside DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _updated_tensors(engine: Any) -> list[Tensor]:
    """What the torch optimiser updates: parameters, or flat slices of many."""
    grouped = [flat for group in _optimizer(engine).param_groups for flat in group["params"]]
    # Stage 3 puts its slices into the groups only while it steps.
    return list(getattr(engine.optimizer, "fp32_partitioned_groups_flat", grouped))
