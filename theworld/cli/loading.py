"""From a model's name to a model that may be used: checks that cost nothing come before the weights."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from theworld.cli.console import say, waiting

if TYPE_CHECKING:
    from theworld.inference.pipeline import TheWorld
    from theworld.media.video import Video
    from theworld.model.configuration import TheWorldConfig
    from theworld.world_models.base import WorldModel

# Of a video, what a fresh fusion reads: the published Cosmos-Predict2 was made to go on from 1 frame or from 5
# (https://github.com/nvidia-cosmos/cosmos-predict2, documentations/inference_video2world.md).
PAST_STEPS = 1

FRAMES_STEPS = 4  # world steps that a model imagines which has no number of its own, since it was never trained

NANO_NOTE = (
    "nano knows only the scenes it ships with (see `theworld nano scene`); about any other picture its answers "
    "mean nothing."
)


def note_for(model: str) -> str | None:
    """What goes with every answer of the shipped model; None for any other."""
    from theworld.storage.hub import is_shipped, resolve

    return NANO_NOTE if is_shipped(resolve(model)) else None


def read_config(
    model: str, world: str, readable: Callable[[str], bool] = lambda name: True
) -> tuple[TheWorldConfig, list[str]]:
    """The configuration of a TheWorld model, or of the fusion that a plain Gemma 3 and `world` would become.

    Args:
        readable: asked for each name before it is read; what is not readable is not tried, which would take long.

    Returns:
        The config, and a line for each part of it that came out of this package because the Hub could not be read.

    Raises:
        ValueError: a model that cannot be read and is not a published one, or another kind of model.
    """
    from transformers import AutoConfig

    from theworld.inspection import repositories
    from theworld.model.configuration import TheWorldConfig
    from theworld.model.published import published_gemma
    from theworld.storage.hub import resolve
    from theworld.world_models import world_model_class
    from theworld.world_models.configuration import COSMOS_2B, CosmosPredict2Config

    place = resolve(model)
    notes: list[str] = []
    try:
        values = read_values(model) if readable(model) else unreadable(model)
    except ValueError:
        vlm = published_gemma(model)
        if vlm is None or Path(place).is_dir():
            raise
        notes.append(f"{model} could not be read; its published configuration, which this package knows, stands in.")
    else:
        if values.get("model_type") == TheWorldConfig.model_type:
            return config_of(model, values), notes
        if values.get("model_type") != "gemma3":
            kind = values.get("model_type")
            raise ValueError(f"{model} is a {kind!r} model, and TheWorld reads TheWorld and Gemma 3 models; name one.")
        vlm = AutoConfig.from_pretrained(place)
    world_place = resolve(world)
    try:
        world_class = world_model_class(CosmosPredict2Config.model_type)
        if not readable(world):
            unreadable(world)
        repositories.go_offline_if_away(world)
        world_config = world_class.read_config(world_place)
    except ValueError:
        if world != COSMOS_2B or Path(world_place).is_dir():
            raise
        world_config = CosmosPredict2Config()
        notes.append(f"{world} could not be read; its published configuration, which this package knows, stands in.")
    fused = TheWorldConfig(vlm_config=vlm, world_config=world_config, vlm_name_or_path=model, world_name_or_path=world)
    return fused, notes


def read_values(model: str) -> dict[str, object]:
    """A model's config.json, out of the cache where the Hub does not answer."""
    from theworld.inspection import repositories
    from theworld.storage.hub import read_json, resolve

    repositories.go_offline_if_away(model)
    return read_json(resolve(model))


def config_of(model: str, values: dict[str, object]) -> TheWorldConfig:
    """The config of a trained model; an error names the model, which the config does not know."""
    from theworld.model.configuration import TheWorldConfig

    try:
        return TheWorldConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"The config.json of {model} is wrong: {error}") from error


def unreadable(name: str) -> NoReturn:
    raise ValueError(f"{name} cannot be read.")


def has_trained_projector(model: str) -> bool:
    """Whether world tokens would mean something to this model; true as well where it has none. Loads nothing."""
    from theworld.model.configuration import TheWorldConfig

    with waiting(f"Looking for {model} …"):
        config = read_values(model)
    if config.get("model_type") != TheWorldConfig.model_type:
        return False  # a Gemma 3, about to be fused
    described = config_of(model, config)
    return not described.enable_world or bool(described.reads_world_tokens)


def check_trained(model: str, otherwise: str) -> None:
    """Stops before anything is loaded when world tokens would go through a projector that never learned.

    Args:
        otherwise: what else a person can do.
    """
    if not has_trained_projector(model):
        raise ValueError(
            f"{model} has no trained projector, so world tokens would be noise to it; train one with `theworld train`, "
            f"use a trained model (--model nano), or {otherwise}."
        )


def check_prompt(model: str, prompt: str | None, world_model: str | None = None) -> None:
    """Stops before any weights are read when the model's world cannot take a prompt."""
    if prompt:
        world_of(model, world_model).check_takes_prompts()


def check_shown(model: str, world_model: str | None = None) -> None:
    """Stops before any weights are read when a person may not see the model's frames for want of a guardrail."""
    from theworld.storage.hub import read_json, resolve

    has_world = read_json(resolve(model)).get("enable_world", True)
    if has_world:
        world_of(model, world_model).require_guardrail()


def world_of(model: str, world_model: str | None = None) -> WorldModel:
    """The world model that a call would use, with none of its weights.

    Args:
        world_model: of a fresh fusion; None is the default one.
    """
    from theworld.inference.pipeline import DEFAULT_COSMOS
    from theworld.inspection import repositories
    from theworld.model.configuration import TheWorldConfig
    from theworld.storage.hub import resolve
    from theworld.world_models import world_model_class
    from theworld.world_models.configuration import CosmosPredict2Config

    folder = resolve(model)
    values = read_values(model)
    name, revision = world_model or DEFAULT_COSMOS, None
    if values.get("model_type") == TheWorldConfig.model_type:
        name, revision = str(values.get("world_name_or_path")), values.get("world_revision")
    repositories.go_offline_if_away(name, folder)
    world: WorldModel = world_model_class(CosmosPredict2Config.model_type).from_pretrained(
        resolve(name, folder), parts=(), revision=None if revision is None else str(revision)
    )
    return world


def check_device(device: str | None) -> None:
    """Raises a ValueError for a device that this machine does not have."""
    from theworld.model import devices

    if device == "meta":
        raise ValueError("--device meta holds no numbers to answer with; use cpu, cuda or cuda:N.")
    devices.check_device(device, "--device")


def check_steps(model: str, steps: int | None) -> None:
    """Stops before anything is loaded when a model cannot look as many world steps ahead."""
    with waiting(f"Looking for {model} …"):
        most = read_values(model).get("max_world_steps", 16)
    if steps is not None and isinstance(most, int) and steps > most:
        raise ValueError(f"--steps {steps}: {model} imagines at most {most} world steps; give a number up to that.")


def check_place(path: str) -> None:
    """Stops before anything is computed when a file could not be written; it leaves nothing behind."""
    import tempfile

    folder = Path(path).expanduser().absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        if not os.access(folder, os.W_OK):
            raise PermissionError
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written, since {folder} is no folder to write to; choose another place."
        ) from error
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")


def check_folder(path: str) -> None:
    """Stops before anything is computed when no files could be put into a folder, which need not be there yet."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"{path} is a file; name a folder.")
    check_place(str(Path(path) / "results.json"))


def load(
    model: str,
    steps: int | None = None,
    device: str | None = None,
    enable_world: bool = True,
    world_model: str | None = None,
    video: Video | None = None,
) -> TheWorld:
    """A trained model, or two base models freshly fused, as far as a call needs it.

    Args:
        world_model: of a fresh fusion; None is the default one.
        video: what the model will read; a model that reads pictures only is told before its weights are loaded.

    Raises:
        ValueError: no such model, or one that cannot be read; the sentence says which.
    """
    check_steps(model, steps)
    with waiting(f"Loading {model} …"):
        from huggingface_hub import constants
        from safetensors import SafetensorError

        from theworld.inference.pipeline import DEFAULT_COSMOS, TheWorld
        from theworld.inspection import repositories
        from theworld.model.configuration import TheWorldConfig
        from theworld.storage.hub import resolve

        _quieten()
        check_device(device)
        values = read_values(model)
        try:
            if values.get("model_type") == TheWorldConfig.model_type:
                config = config_of(model, values)  # told now, not when the base models are in memory
                if world_model is not None:
                    raise ValueError(
                        f"--world-model names what a plain Gemma 3 is fused with, and {model} is fused already, with "
                        f"{config.world_name_or_path}; leave it out, or change world_name_or_path in its config.json."
                    )
                check_bases(model, config)
                if video is not None and enable_world:
                    config.past_steps_of(video.num_frames)
                for base in (config.vlm_name_or_path, config.world_name_or_path):
                    repositories.go_offline_if_away(base, resolve(model))
                loaded = TheWorld.from_pretrained(model, num_world_steps=steps, device=device)
            else:
                repositories.go_offline_if_away(world_model or DEFAULT_COSMOS)
                loaded = TheWorld(
                    model,
                    num_world_steps=steps,
                    cosmos_model_name=world_model or DEFAULT_COSMOS,
                    device=device,
                    enable_world=enable_world,
                    max_past_steps=0 if video is None else PAST_STEPS,
                )
        except SafetensorError as error:
            raise ValueError(
                f"The weights of {model}, or of a base of it, are damaged or cut short ({error}); download or save "
                "them again."
            ) from error
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{model}, or a base of it, comes as a pickle that holds more than tensors; nothing in it was run: use "
                "safetensors."
            ) from error
    loaded.told_untrained = True  # in words for Python; the commands say it in their own
    if repositories.is_away():
        say(f"Note: {constants.ENDPOINT} does not answer, so what lies there was read from the cache.")
    return loaded


def check_bases(model: str, config: TheWorldConfig) -> None:
    """Raises a ValueError for a base model that was a folder when the model was saved, and is not there any more."""
    from theworld.storage.hub import resolve

    names = {"vlm_name_or_path": config.vlm_name_or_path}
    if config.enable_world:
        names["world_name_or_path"] = config.world_name_or_path
    for key, name in names.items():
        place = resolve(name, resolve(model))
        if name.startswith((".", "/", "~")) and not Path(place).is_dir():
            raise ValueError(
                f"{model} names {name} as one of its base models, and there is no such folder; put it back, or write "
                f"where it is now into {key} in the config.json of {model}."
            )


def _quieten() -> None:
    """No bars and no advice of libraries between our own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
