"""The plug-in for vLLM: `vllm serve FOLDER` serves a fused model with vLLM's engine and its OpenAI-compatible server.

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its processes. Nothing else of
this library imports vLLM, which has an environment of its own (`scripts/vllm_environment.sh`).
"""

from __future__ import annotations

ARCHITECTURE = "TheWorldForConditionalGeneration"


def register() -> None:
    """Registers configuration, model, settings and attention with vLLM; calling it again changes nothing."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from theworld.model.configuration import TheWorldConfig
    from theworld.serving.vllm.settings import Architecture, GemmaTokenizer, Settings

    AutoConfig.register(TheWorldConfig.model_type, TheWorldConfig, exist_ok=True)
    AutoTokenizer.register(TheWorldConfig, tokenizer_class=GemmaTokenizer, exist_ok=True)
    MODEL_ARCH_CONFIG_CONVERTORS[TheWorldConfig.model_type] = Architecture
    MODELS_CONFIG_MAP[ARCHITECTURE] = Settings
    ModelRegistry.register_model(ARCHITECTURE, "theworld.serving.vllm.model:TheWorldModel")
    register_backend(AttentionBackendEnum.CPU_ATTN, "theworld.serving.vllm.cpu_attention.ImageBlockBackend")
