"""What vLLM has to know about a fused model before it loads one."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoTokenizer
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from theworld.model.configuration import TheWorldConfig
from theworld.serving.vllm.blocks import check_servable
from theworld.storage.hub import find_base_dir, resolve


def gemma_of(name: str, config: TheWorldConfig, revision: str | None) -> str:
    """Folder or Hub id of the Gemma base of a fused model."""
    return str(resolve(config.vlm_name_or_path, find_base_dir(name, [config.vlm_name_or_path], revision)))


class GemmaTokenizer:
    """The tokenizer of a fused model for transformers' `AutoTokenizer`, which is that of its Gemma base."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> Any:
        """Reads it; `kwargs` are those of `AutoTokenizer.from_pretrained`."""
        revision = kwargs.pop("revision", None)
        kwargs.pop("_commit_hash", None)  # of the fused model's repository
        config = TheWorldConfig.from_pretrained(name, revision=revision)
        gemma = gemma_of(os.fspath(name), config, revision)
        return AutoTokenizer.from_pretrained(gemma, *inputs, revision=config.vlm_revision, **kwargs)


class Architecture(ModelArchConfigConvertorBase):
    """As vLLM reads Gemma 3: the soft tokens of an image attend to each other in both directions."""

    def is_mm_prefix_lm(self, supports_multimodal: bool = True) -> bool:
        return supports_multimodal


class Settings(VerifyAndUpdateConfig):
    """Checks the configuration of a model, and names the file that it shares with its Gemma base."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Sets the generation config to that of the Gemma base, unless the user names another.

        Raises:
            ValueError: if vLLM cannot serve the model; the message says why.
        """
        check_servable(model_config.hf_config)
        if model_config.generation_config == "auto":
            gemma = gemma_of(model_config.model, model_config.hf_config, model_config.revision)
            model_config.generation_config = gemma

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Has all tokens of an image computed in one step, as vLLM itself demands on GPUs."""
        vllm_config.scheduler_config.disable_chunked_mm_input = True
