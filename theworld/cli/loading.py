"""From a model's name to a loaded model, for the commands: cheap checks come before the weights."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from theworld.cli.console import say, waiting

if TYPE_CHECKING:
    import torch

    from theworld.inference.pipeline import TheWorld
    from theworld.model.configuration import TheWorldConfig
    from theworld.model.spec import ModelSpec

# Past latent frames of a video that an untrained model reads: the published Cosmos-Predict2 was trained to continue 1
# frame or 5 (https://github.com/nvidia-cosmos/cosmos-predict2, documentations/inference_video2world.md).
PAST_STEPS = 1
NO_COMPILER = "TORCHDYNAMO_DISABLE"


def chosen_model(argument: str | None, option: str | None) -> str:
    """The model of a command that takes it as MODEL or as --model."""
    if argument is not None and option is not None:
        raise typer.BadParameter("the model was given twice; give it once.")
    return argument or option or "nano"


def resolve_spec(model: str, world_model: str | None = None, **fusion_values: Any) -> ModelSpec:
    """The model of a command by name, as `resolve_model` returns it, in the time that a person wants to wait.

    Raises:
        ValueError: if the model cannot be read, or `--world-model` is set for a model that has one.
    """
    from theworld.model.spec import resolve_model

    with waiting(f"Looking for {model} …"):
        go_offline_if_unreachable(model)
        spec = resolve_model(model, world_model=world_model, **fusion_values)
        spec.check_world_model(world_model)
        if not spec.is_fused and spec.has_world:
            go_offline_if_unreachable(spec.world_name)
    return spec


def read_config(spec: ModelSpec) -> None:
    """Reads the configuration of a model, which imports torch and transformers, after what is checked without them."""
    with waiting(f"Looking for {spec.name} …"), importing():
        _ = spec.config


def load(
    spec: ModelSpec,
    steps: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    fast_path: str = "auto",
    quantization: str | None = None,
    offload_world_model: bool = False,
) -> TheWorld:
    """The model of a spec, with messages for people.

    Raises:
        ValueError: if its weights cannot be read, or this machine has no such device.
    """
    spec.check_steps(steps)
    with waiting(f"Loading {spec.name} …"):
        with importing():
            from safetensors import SafetensorError

            from theworld.inference.pipeline import TheWorld

            if quantization is None:
                import_without_compiler(spec.config)

        quieten_libraries()
        check_device(device)
        spec.check_bases()
        for base in spec.base_names:
            go_offline_if_unreachable(base, spec.path)
        try:
            model = TheWorld(
                spec,
                num_world_steps=steps,
                device=device,
                dtype=dtype,
                fast_path=fast_path,
                quantization=quantization,
                world_model_offload="cpu" if offload_world_model else "none",
            )
        except SafetensorError as error:
            raise ValueError(
                f"The weights of {spec.name}, or of one of its base models, are damaged or cut short ({error}); "
                "download or save them again."
            ) from error
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{spec.name}, or one of its base models, is a pickle file that holds more than tensors. Nothing in it "
                "was executed; use safetensors."
            ) from error
    from huggingface_hub import constants

    from theworld.storage.hub import hub_answers, may_be_on_hub, resolve

    on_hub = may_be_on_hub(spec.path) or any(may_be_on_hub(resolve(base, spec.path)) for base in spec.base_names)
    # Whether it answers was asked by go_offline_if_unreachable.
    if on_hub and hub_answers.cache_info().currsize and not hub_answers(constants.ENDPOINT):
        say(f"Note: {constants.ENDPOINT} does not answer, so only the local cache was used.")
    return model


@contextmanager
def importing() -> Iterator[None]:
    """Inside, Python does not look for unused objects, which takes a fifth of the time that the libraries need.

    What they create is needed until the process ends, so that it is not examined later either. In a process that has
    imported the libraries already, this does nothing.
    """
    if not gc.isenabled() or "theworld.inference.pipeline" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # Python frees all of it at exit, and nanobind reports what is left
        gc.enable()


def import_without_compiler(config: TheWorldConfig) -> None:
    """Imports what loads the world model and the LoRA, without torch's compiler, which takes a second to import.

    diffusers and peft import bitsandbytes where it is installed, and bitsandbytes prepares its optimisers with
    `torch.compile`, which imports the compiler. The variable is documented by torch, and `torch.compile` reads it when
    it is called, so that what is compiled later is not affected. A quantised model uses what bitsandbytes compiles.
    """
    given = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    try:
        if config.enable_world:
            importlib.import_module("diffusers.models.modeling_utils")
        if config.lora is not None:
            importlib.import_module("peft")
    finally:
        if given is None:
            del os.environ[NO_COMPILER]
        else:
            os.environ[NO_COMPILER] = given


def dtype_name(model: TheWorld) -> str:
    """The type of a model's weights, as `--dtype` takes it."""
    return str(model.model.dtype).removeprefix("torch.")


def go_offline_if_unreachable(name: str, base_dir: str | None = None) -> None:
    """Uses only the local cache for the rest of this command if `name` is on the Hub and the Hub does not answer.

    Without it huggingface_hub asks six times over 23 seconds for every file that is not in the cache, and several files
    are optional: a model that is complete in the cache would load minutes later. It sets a constant of huggingface_hub
    for the process, as HF_HUB_OFFLINE=1 does, so only a command may do this.
    """
    from huggingface_hub import constants

    from theworld.storage.hub import hub_answers, may_be_on_hub, resolve

    if constants.HF_HUB_OFFLINE or not may_be_on_hub(resolve(name, base_dir)) or hub_answers(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True


def check_files(*paths: str) -> None:
    """Raises a FileNotFoundError for a path that does not exist, before the slow imports."""
    for number, path in enumerate(paths, 1):
        if not os.path.lexists(os.path.expanduser(path)):
            position = f"Image {number} of {len(paths)}: " if len(paths) > 1 else ""
            raise FileNotFoundError(f"{position}There is no file {path!r}; check the path.")


def check_device(device: str | None) -> None:
    """Raises a ValueError for a device that this machine does not have."""
    from theworld.model import devices

    if device == "meta":
        raise ValueError("--device meta holds no numbers to answer with; use cpu, cuda or cuda:N.")
    devices.check_device(device, "--device")


def check_output(path: str) -> None:
    """Raises a ValueError if a file could not be written; creates nothing."""
    import tempfile

    folder = Path(path).expanduser().absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {folder} is not a writable folder; choose another path."
        ) from error
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")


def check_output_folder(path: str) -> None:
    """Raises a ValueError if no files could be written into a folder, which need not exist yet."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"{path} is a file; name a folder.")
    check_output(str(Path(path) / "results.json"))


def quieten_libraries() -> None:
    """Keeps progress bars and advice of libraries, and what the command says itself, out of its output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for module in ("pipeline", "world_runner"):  # the lines of `ask` and `imagine` say it
        logging.getLogger(f"theworld.inference.{module}").setLevel(logging.ERROR)
