"""From a model's name to everything that is known about it without its weights: `resolve_model`.

A name is `nano`, a folder or a Hub id. It refers to a TheWorld model, or to a Gemma 3 that is fused with a world model
when it is loaded. The name is resolved once, and each `config.json` is read once: checks, descriptions and loading all
take the `ModelSpec`. `resolve_model` itself loads neither torch nor transformers, so that a wrong name is reported at
once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theworld.messages import counted
from theworld.model.call_plan import UNTRAINED
from theworld.storage.files import read_json_file
from theworld.storage.hub import (
    CONFIG_FILE,
    WORLD_INDEX_FILE,
    absolute_base_path,
    commit_of,
    find_base_dir,
    find_file,
    is_shipped,
    read_json,
    resolve,
    split_checkpoint_name,
)

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig

    from theworld.model.configuration import TheWorldConfig
    from theworld.model.modeling import TheWorldForConditionalGeneration
    from theworld.world_models.base import WorldModel

FUSED, BASE = "theworld", "gemma3"  # `model_type` of a TheWorld model, and of a Gemma 3 that reads images
TOKENIZER_FILE, WORLD_TOKEN = "tokenizer.json", "<world_soft_token>"
MAX_WORLD_STEPS = 16  # of a config that does not say
NANO_WORLD_STEPS = 4  # the shipped world model was trained on clips of 17 frames
NANO_NOTE = "nano understands only its simulated scenes; its answers about other images are meaningless."
# NVIDIA trained Cosmos-Predict2 on clips of 93 frames, 24 latent frames: num_frames of diffusers' pipeline for it
NVIDIA_WORLD_STEPS = 23


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model by name, without its weights; made by `resolve_model`.

    Attributes:
        name: as the caller wrote it.
        path: its folder, or its Hub id.
        is_fused: True for a TheWorld model, False for a Gemma 3 that loading fuses with a world model.
        values: its `config.json`; empty if the bundled copy of a published config is used instead.
        revision, checkpoint_name, world_model, fusion_values, describe_only, local_files_only: as in `resolve_model`.
    """

    name: str
    path: str
    is_fused: bool
    values: Mapping[str, Any]
    revision: str | None = None
    checkpoint_name: str | None = None
    world_model: str | None = None
    fusion_values: Mapping[str, Any] = field(default_factory=dict)
    describe_only: bool = False
    local_files_only: bool = False
    _notes: list[str] = field(default_factory=list)

    # --------------------------------------------------------------------------------------------------- what it is

    @cached_property
    def config(self) -> TheWorldConfig:
        """The configuration of the TheWorld model, or of the fusion that the Gemma 3 will become."""
        from theworld.model.configuration import TheWorldConfig

        if not self.is_fused:
            return self._read_fusion_config()
        try:
            return TheWorldConfig.from_dict(dict(self.values))
        except ValueError as error:
            raise ValueError(f"The config.json of {self.name} is wrong: {error}") from error

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user, such as that a bundled copy of a published config is used."""
        _ = self.config
        return tuple(self._notes)

    @property
    def shipped_note(self) -> str | None:
        """The sentence that belongs to every answer of the shipped model; None for any other model."""
        return NANO_NOTE if is_shipped(self.path) else None

    def notes_on_steps(self, num_world_steps: int) -> list[str]:
        """What a user should know about a call that imagines this many world steps."""
        return [note for note in (self.shipped_note, self.note_on_steps(num_world_steps)) if note]

    def note_on_steps(self, num_world_steps: int) -> str | None:
        """A sentence if a rollout is longer than the world model's training clips.

        The length of the clips is known for the shipped weights and NVIDIA's; no file of a world model says it.
        """
        shipped = is_shipped(resolve(self.world_name, self.path))
        learned = NANO_WORLD_STEPS if shipped else NVIDIA_WORLD_STEPS
        if num_world_steps <= learned or not (shipped or self.world.needs_guardrail):
            return None
        return (
            f"The world model {self.world_name} was trained on clips of {learned} world steps, and {num_world_steps} "
            f"were requested; what it imagines after the first {learned} is unreliable."
        )

    @property
    def has_world(self) -> bool:
        """Whether the model has a world model."""
        enabled = self.values if self.is_fused else self.fusion_values
        return bool(enabled.get("enable_world", True))

    @property
    def projector_is_trained(self) -> bool:
        """Whether the language model can read world tokens; True for a trained model without a world model."""
        return self.is_fused and (not self.config.enable_world or bool(self.config.reads_world_tokens))

    @property
    def max_world_steps(self) -> int:
        """World steps that the model imagines at most."""
        steps = (self.values if self.is_fused else self.fusion_values).get("max_world_steps", MAX_WORLD_STEPS)
        return steps if isinstance(steps, int) else MAX_WORLD_STEPS  # another type is an error of `config`

    @property
    def world_name(self) -> str:
        """Name of the world model: of the TheWorld model, or of the one that the Gemma 3 is fused with."""
        from theworld.world_models.configuration import COSMOS_2B

        return self.config.world_name_or_path if self.is_fused else self.world_model or COSMOS_2B

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the base models that loading reads: of the Gemma 3, and of the world model if there is one."""
        names = (self.config.vlm_name_or_path, self.config.world_name_or_path)
        return names if self.config.enable_world else names[:1]

    @cached_property
    def world(self) -> WorldModel:
        """The world model without any of its parts in memory, to ask what it can do."""
        from theworld.world_models import world_model_class

        world_config = self.config.world_config
        return world_model_class(world_config.model_type).from_pretrained(
            resolve(self.config.world_name_or_path, self.path),
            parts=(),
            revision=self.config.world_revision,
            config=None if self.is_fused else world_config,
        )

    # ------------------------------------------------------------------------------------------------------- checks

    def check_steps(self, num_world_steps: int | None) -> None:
        """Raises a ValueError if the model cannot imagine that many world steps."""
        if num_world_steps is not None and num_world_steps > self.max_world_steps:
            raise ValueError(
                f"{self.name} imagines at most {counted(self.max_world_steps, 'world step')}, and {num_world_steps} "
                "were requested; use a smaller number of steps."
            )

    def check_trained(self, alternative: str) -> None:
        """Raises a ValueError that offers an `alternative` if world tokens would come from an untrained projector."""
        if not self.projector_is_trained:
            raise ValueError(f"{UNTRAINED} Train the projector of {self.name}, use a trained model, or {alternative}.")

    def check_prompt(self, world_prompt: str | None) -> None:
        """Raises a ValueError if there is a world prompt and the world model cannot take one."""
        if world_prompt:
            self.world.check_takes_prompts()

    def check_frames_may_be_shown(self) -> None:
        """Raises a ValueError if imagined frames need NVIDIA's guardrail and it is not installed."""
        if self.has_world:
            self.world.require_guardrail()

    def check_world_model(self, world_model: str | None) -> None:
        """Raises a ValueError if a world model is named for a model that already has one."""
        if self.is_fused and world_model is not None:
            raise ValueError(
                f"{self.name} is already fused with {self.config.world_name_or_path}, so no other world model can be "
                f"chosen; leave out {world_model}, or change world_name_or_path in its config.json."
            )

    def check_no_settings(self, settings: Iterable[str]) -> None:
        """Raises a ValueError if there are settings of a new fusion, which this model can no longer take."""
        if names := ", ".join(settings):
            raise ValueError(f"{self.name} is already configured, so {names} cannot be changed any more.")

    def check_fused(self) -> None:
        """Raises a ValueError for anything but a TheWorld model."""
        if not self.is_fused:
            raise ValueError(
                f"{self.name} is a {self.values.get('model_type')!r} model, not a TheWorld one; to fuse it, call "
                f"TheWorld({self.name!r})."
            )

    def check_bases(self) -> None:
        """Raises a ValueError if a base model was a folder when the model was saved, and that folder is missing."""
        if not self.is_fused:
            return
        for key, name in zip(("vlm_name_or_path", "world_name_or_path"), self.base_names, strict=False):
            base_dir = Path(self.path, self._subfolder) if Path(self.path).is_dir() else None
            if name.startswith("./") and base_dir is None:
                continue  # in the Hub repository
            if name.startswith((".", "/", "~")) and not Path(resolve(name, base_dir)).is_dir():
                raise ValueError(
                    f"{self.name} names {name} as one of its base models, and there is no such folder; restore it, or "
                    f"write its new path into {key} in the config.json of {self.name}."
                )

    # ------------------------------------------------------------------------------------------------------ loading

    def find_base_dir(self) -> str | None:
        """The folder that base names starting with `./` are relative to; downloads it if it is on the Hub."""
        if not self.is_fused:
            return None
        return find_base_dir(self.path, self.base_names, self.revision, self._subfolder)

    def load(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        world_parts: Sequence[str] | None = None,
        device_map: Any = None,
        device: torch.device | None = None,
        config: TheWorldConfig | None = None,
        quantization: str | BitsAndBytesConfig | None = None,
        **arguments: Any,
    ) -> TheWorldForConditionalGeneration:
        """Loads the weights; no `config.json` that was read is read again.

        Args:
            dtype: of all parts; None keeps the stored type.
            world_parts: parts of the world model to load; None means what `config.num_world_steps` needs.
            device_map: where Gemma's layers go, as transformers takes it.
            device: where the weights are used. Those for a GPU are read straight to it; others stay mapped from their
                file until they are used.
            config: used instead of `self.config`.
            quantization: "4bit", "8bit" or transformers' settings, for the linear layers of the base models.
            arguments: `world_model_offload`, and what Gemma's `from_pretrained` takes (`attn_implementation`, …).
        """
        from theworld.model.modeling import TheWorldForConditionalGeneration

        self.check_bases()
        config = copy.deepcopy(self.config if config is None else config)
        straight = device is not None and (device.type == "cuda" or quantization is not None)
        given = {
            "device_map": device_map,
            "device": device if straight else None,
            "quantization_config": quantization,
        }
        arguments |= {name: value for name, value in given.items() if value is not None}
        if not self.is_fused:
            return TheWorldForConditionalGeneration.from_bases(
                config,
                dtype,
                world_parts,
                vlm_config=copy.deepcopy(self.config.vlm_config),
                world_config=copy.deepcopy(self.config.world_config),
                **arguments,
            )
        return TheWorldForConditionalGeneration.from_pretrained(
            self.name,
            config=config,
            dtype=dtype,
            revision=self.revision,
            world_parts=world_parts,
            checkpoint_name=self.checkpoint_name,
            world_config=self.world.config if "world" in vars(self) else None,
            **arguments,
        )

    # ---------------------------------------------------------------------------------------------------- internals

    @property
    def _subfolder(self) -> str:
        return split_checkpoint_name(self.checkpoint_name)[0]

    def _read_fusion_config(self) -> TheWorldConfig:
        """The configuration of the fusion; bases on the Hub are named by commit, also if no revision was given."""
        from theworld.model.configuration import TheWorldConfig

        values = dict(self.fusion_values)
        world_model, world_revision = self.world_name, values.pop("world_revision", None)
        vlm_config, vlm_revision = self._read_vlm_config()
        if values.get("world_token_id") is None and self.values:
            values["world_token_id"] = self._free_row(vlm_config, vlm_revision)
        world_config = None  # without a world model nothing of it is read
        if self.has_world:
            world_config, world_revision = self._read_world_config(world_model, world_revision)
        return TheWorldConfig(
            vlm_config=vlm_config,
            world_config=world_config,
            vlm_name_or_path=absolute_base_path(self.name),
            vlm_revision=vlm_revision,
            world_name_or_path=absolute_base_path(world_model),
            world_revision=world_revision,
            **values,
        )

    def _read_vlm_config(self) -> tuple[PreTrainedConfig, str | None]:
        from theworld.model.loading import gemma_config
        from theworld.model.published import published_gemma

        if self.values:
            revision = self.revision if self.describe_only else commit_of(self.path, self.revision)
            return gemma_config(self.values, self.path, revision), revision
        published = published_gemma(self.name)
        assert published is not None
        self._notes.append(bundled(self.name))
        return published, self.revision

    def _free_row(self, vlm_config: PreTrainedConfig, revision: str | None) -> int | None:
        """The first row of the vocabulary that no token uses, for the world placeholder; None without a tokenizer.

        Published tokenizers leave the row after the image token free; those of fine-tuned models may have more tokens.
        """
        from theworld.model.published import published_gemma

        if published_gemma(self.name) is not None:
            return None
        try:
            file = find_file(self.path, TOKENIZER_FILE, revision, local_files_only=self.local_files_only)
        except ValueError:  # the processor, which needs a tokenizer, says what is missing
            return None
        tokens = read_json_file(file, "download or save the model again").get("added_tokens", [])
        ids = {token["content"]: token["id"] for token in tokens}
        image, rows = vlm_config.image_token_id, vlm_config.get_text_config().vocab_size
        row: int = ids.get(WORLD_TOKEN, max([image, *ids.values()]) + 1)
        if row >= rows:
            raise ValueError(
                f"All {rows:,} rows of the vocabulary of {self.name} are used, and the world model's placeholder needs "
                f"one: save it again with `model.resize_token_embeddings({row + 1})`."
            )
        return row

    def _read_world_config(self, name: str, revision: str | None) -> tuple[PreTrainedConfig, str | None]:
        from theworld.world_models import world_model_class
        from theworld.world_models.configuration import COSMOS_2B, CosmosPredict2Config

        path = resolve(name)
        try:
            if not self.describe_only:
                revision = commit_of(path, revision, WORLD_INDEX_FILE)
            world_class = world_model_class(CosmosPredict2Config.model_type)
            return world_class.read_config(path, revision, local_files_only=self.local_files_only), revision
        except ValueError:
            if not self.describe_only or name != COSMOS_2B or Path(path).is_dir():
                raise
        self._notes.append(bundled(name))
        return CosmosPredict2Config(), revision


def resolve_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    checkpoint_name: str | None = None,
    world_model: str | os.PathLike[str] | None = None,
    describe_only: bool = False,
    local_files_only: bool = False,
    **fusion_values: Any,
) -> ModelSpec:
    """Finds out what a model's name refers to; reads its `config.json` and no weights.

    Args:
        name: `nano`, a folder or a Hub id, of a TheWorld model or of a Gemma 3 that reads images.
        revision: branch, tag or commit of a Hub repository.
        checkpoint_name: folder or file inside a TheWorld model, such as `checkpoint-1000`.
        world_model: what a Gemma 3 is fused with; None means the published Cosmos-Predict2 of 2B. A TheWorld model has
            its own.
        describe_only: replaces a published config that cannot be read by the copy in this package, so that a gated
            model can be described before its licence is accepted. Its weights could not be loaded.
        local_files_only: reads the local cache and does not ask the Hub.
        fusion_values: fields of TheWorldConfig that a Gemma 3 is fused with; a TheWorld model has its own.
    """
    name = os.fspath(name)
    path = resolve(name)
    revision = fusion_values.pop("vlm_revision", None) or revision
    try:
        file = f"{split_checkpoint_name(checkpoint_name)[0]}{CONFIG_FILE}"
        values = read_json(path, file, revision, local_files_only=local_files_only)
    except ValueError:
        if not describe_only or Path(path).is_dir():
            raise
        from theworld.model.published import published_gemma

        if published_gemma(name) is None:
            raise
        values = {}
    kind = values.get("model_type", BASE if not values else None)
    if kind not in (FUSED, BASE):
        raise ValueError(
            f"{name} is a {kind!r} model; TheWorld reads its own models, and fuses a Gemma 3 that reads images "
            f"({BASE!r}), such as google/gemma-3-4b-it."
        )
    return ModelSpec(
        name,
        path,
        kind == FUSED,
        values,
        revision,
        checkpoint_name,
        None if world_model is None else os.fspath(world_model),
        fusion_values,
        describe_only,
        local_files_only,
    )


def bundled(name: str) -> str:
    return f"{name} could not be read; the bundled copy of its published config is used instead."
