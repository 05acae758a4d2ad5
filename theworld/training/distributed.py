"""Several processes: what they decide together, and the weights and optimizer states of which each holds a shard.

DDP keeps all weights in every process; FSDP2 and DeepSpeed ZeRO shard them. Checkpoints do not depend on the strategy:
they hold complete tensors in the format of one process, so that a run may resume with another strategy or another
number of processes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from theworld.training.checkpointing import what_is_saved

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

SHARDED_LAYERS = ("Gemma3DecoderLayer", "SiglipEncoderLayer")  # units of FSDP2; the rest of the model is one more
LOST_PROCESS = ("gloo", "NCCL", "Connection reset by peer", "Connection closed by peer")  # in errors of torch


# ----------------------------------------------------------------------------------------------------- common decisions


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@functools.cache
def control_group() -> dist.ProcessGroup:
    """All processes, connected without their GPUs, so that a decision does not wait for work on the GPU."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def any_process(value: bool) -> bool:
    """Whether `value` is true in one of the processes, all of which call this at the same place."""
    if not is_distributed():
        return value
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=control_group())
    return bool(flag)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order of their ranks; all of them call this at the same place."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that another process of this run ended or is unreachable."""
    known = isinstance(error, dist.DistError) or any(word in str(error) for word in LOST_PROCESS)
    return isinstance(error, RuntimeError) and is_distributed() and known


@contextmanager
def lost_process_as_error(output_dir: str) -> Iterator[None]:
    """Within the context, the end of another process is a ValueError of one sentence, as it is for a user."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ValueError(
            f"Process {dist.get_rank()} lost the connection to another process of this run, which ended or is "
            f"unreachable; {what_is_saved(output_dir)}"
        ) from error


# ------------------------------------------------------------------------------------------------------------- sharding


def strategy_of(arguments: TrainingArguments) -> str:
    """The strategy that a run uses if it has several processes: `ddp`, `fsdp2`, `zero2` or `zero3`."""
    if arguments.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "fsdp2"
    plugin = getattr(arguments, "deepspeed_plugin", None)
    return f"zero{plugin.zero_stage}" if plugin is not None and plugin.zero_stage > 1 else "ddp"


def check_strategy(
    accelerator: Accelerator, optimizer: str, trainable: Iterable[str], quantization: str | None = None
) -> None:
    """Prepares the plugin of FSDP2 for our models.

    Raises:
        ValueError: if parameters are to be sharded in a way, or with settings, that are not supported.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if fsdp is None and deepspeed is None:
        return
    name = "DeepSpeed" if fsdp is None else "FSDP"
    if quantization is not None:
        raise ValueError(f"quantization is {quantization}, whose weights {name} cannot share; remove it, or use DDP.")
    if optimizer == "muon":
        raise ValueError(f"Muon needs complete matrices, which {name} shards; set optimizer to adamw, or use DDP.")
    if "vae_encoder" in trainable:
        raise ValueError(f"The VAE encoder cannot be trained with {name}; set freeze_cosmos_vae to true, or use DDP.")
    if fsdp is None:
        if deepspeed is not None and not deepspeed.zero_stage:
            raise ValueError("DeepSpeed without ZeRO is not supported; set its stage to 1, 2 or 3, or use DDP.")
        return
    if fsdp.fsdp_version != 2:
        raise ValueError("FSDP version 1 is not supported; set fsdp_version to 2 (configs/accelerate/fsdp2.yaml).")
    from torch.distributed.fsdp import MixedPrecisionPolicy

    fsdp.cpu_ram_efficient_loading = False  # every process reads the weights; `fully_shard` frees what is not its own
    fsdp.transformer_cls_names_to_wrap = list(SHARDED_LAYERS)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    # Gradients are summed in float32. Latents and pixels are inputs, which keep their precision, as without FSDP.
    fsdp.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def check_unused(accelerator: Accelerator, unused: Sequence[str]) -> None:
    """Raises a ValueError for a batch that a trained part has no input from, with ZeRO-3, which fails at it."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            f"A batch has no input for {' and '.join(unused)}, which ZeRO-3 cannot train on; use FSDP2 or ZeRO-2, or "
            "only records with images, without world_dropout and image_dropout."
        )


def keep_world_whole(model: nn.Module, device: torch.device) -> None:
    """Makes the world model a plain attribute of the model, so that it is not sharded but complete in every process.

    It runs outside `forward`, and each process runs it on images of its own.
    """
    world = model._modules.pop("world", None)
    if world is not None:
        vars(model)["world"] = world.to(device)


def is_deepspeed(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def complete(parameters: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The complete values of parameters of which processes hold shards; all processes call this at the same place.

    Args:
        keep: whether this process needs them; the others get an empty dict.

    Returns:
        Tensors on the CPU where they were sharded, else the parameters; trained ones in float32.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        value = complete_tensor(parameter)
        if keep:
            found[name] = value
    return found


def complete_tensor(parameter: Any) -> Any:
    """The complete value of one parameter; what is not sharded is returned unchanged."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().cpu()
    if not is_deepspeed(parameter):
        return parameter
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return in_shape_of(parameter, safe_get_full_fp32_param(parameter))
    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().to("cpu", copy=True)


# ----------------------------------------------------------------------------------------------------- optimizer states


def optimizer_state(optimizer: Any, groups: Sequence[Sequence[Tensor]], keep: bool) -> dict[str, Any]:
    """The state of an optimizer in the format of `torch.optim.Optimizer.state_dict`, with complete tensors.

    Args:
        optimizer: as prepared by accelerate.
        groups: with DeepSpeed, the parameters of each group; otherwise empty.
        keep: whether this process needs the state; all processes call this at the same place.
    """
    inner = optimizer.optimizer  # in accelerate's wrapper: torch's optimizer, or DeepSpeed's around torch's
    if not groups:
        values: dict[str, Any] = inner.state_dict()
        states = {}
        for number, state in values["state"].items():
            whole = {key: complete_tensor(value) for key, value in state.items()}
            if keep:  # the others free each tensor before the next one
                states[number] = whole
        return {**values, "state": states} if keep else {}
    from deepspeed.utils import safe_get_full_optimizer_state

    link_states(inner)
    flat = next(iter(inner.optimizer.state.values()))  # the state of all parameters that are stored together
    names = [name for name, value in flat.items() if is_per_weight(value)]
    shared = {name: value for name, value in flat.items() if name not in names}
    states, described = {}, []
    for group, own in zip(groups, inner.optimizer.param_groups, strict=True):
        first = len(states)
        for parameter in group:
            full = {name: in_shape_of(parameter, safe_get_full_optimizer_state(parameter, name)) for name in names}
            # the number of steps is a tensor as well, and no two parameters may share it
            states[len(states)] = {**copy.deepcopy(shared), **full} if keep else {}
        described.append({**without_parameters(own), "params": list(range(first, len(states)))})
    return {"state": states, "param_groups": described}


def load_optimizer_state(optimizer: Any, groups: Sequence[Sequence[Tensor]], file: Path) -> None:
    """Restores what `optimizer_state` returned, with any strategy and any number of processes."""
    values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    inner = optimizer.optimizer
    if not groups:
        parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        for number, state in values["state"].items():
            state.update({name: shard_like(parameters[number], value) for name, value in state.items()})
        inner.load_state_dict(values)
        return
    shards = getattr(inner, "fp32_partitioned_groups_flat", None) or inner.single_partition_of_fp32_groups
    example = values["state"][0]
    own = inner.optimizer.param_groups
    on_device = any(own[0].get(name) for name in ("fused", "capturable"))  # where these count the steps
    for flat in shards:
        state = inner.optimizer.state[flat] = copy.deepcopy(example)  # no two of them may share their number of steps
        for name, value in state.items():
            if is_per_weight(value):
                state[name] = torch.zeros_like(flat)
            elif on_device and isinstance(value, Tensor):
                state[name] = value.to(flat.device)
    link_states(inner)
    for number, parameter in enumerate(parameter for group in groups for parameter in group):
        for name, value in values["state"][number].items():
            if is_per_weight(value):
                set_deepspeed(parameter, value, name)
    for group, saved in zip(own, values["param_groups"], strict=True):
        group.update(without_parameters(saved))


def link_states(optimizer: Any) -> None:
    """Links the parameters of ZeRO-1 and 2 to their optimizer states, as DeepSpeed does for its first group only."""
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def is_per_weight(value: Any) -> bool:
    """Whether an entry of an optimizer's state has a value for each weight, unlike the number of steps."""
    return isinstance(value, Tensor) and value.dim() > 0


def without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group of an optimizer."""
    return {name: value for name, value in group.items() if name != "params"}


def shard_like(parameter: Tensor, value: Any) -> Any:
    """This process' shard of a complete tensor; other values unchanged."""
    if not (isinstance(parameter, DTensor) and is_per_weight(value)):
        return value
    own = value.to(parameter.device)
    return distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None)


def in_shape_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A complete tensor of DeepSpeed, on the CPU."""
    return value.detach().cpu().view(getattr(parameter, "ds_shape", parameter.shape))


def set_deepspeed(parameter: Any, value: Tensor, name: str | None = None) -> None:
    """Sets a trained weight in float32, or the entry `name` of its optimizer state, to a complete tensor."""
    from deepspeed import utils

    if hasattr(parameter, "ds_id"):  # ZeRO-3, whose shards are padded to one size
        size = parameter.ds_tensor.numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
        value = padded[size * dist.get_rank() :][:size]
        set_weight, set_state = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
    else:
        set_weight, set_state = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if name is None:
        set_weight(parameter, value)
    else:
        set_state(parameter, value, name)


def restore_weights(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Restores the float32 weights that DeepSpeed trains; the model itself holds a copy in another precision."""
    for name, parameter in parameters.items():
        if is_deepspeed(parameter) and parameter.requires_grad:
            set_deepspeed(parameter, tensors[name])
