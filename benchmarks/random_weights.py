"""Base models of the published size with random weights, in exactly the published repositories' layout.

`google/gemma-3-4b-it` holds sharded safetensors with an index, bfloat16, key names from before transformers 4.52, a
short config (`rope_scaling`, `torch_dtype`, `image_token_index`), and the processor in `preprocessor_config.json`,
`processor_config.json` and `chat_template.json`. `nvidia/Cosmos-Predict2-2B-Video2World` is a diffusers pipeline with
components that we never read. Its T5 (9.7 GB) is not made: `prompt_embeds.safetensors`, the file a first rollout would
have made with it, replaces it, with random values.

    python -m benchmarks.random_weights FOLDER              # 13 GB: FOLDER/gemma and FOLDER/cosmos
    python -m benchmarks.random_weights FOLDER --size tiny

Numbers keep the size of what passes through: a matrix is drawn with the standard deviation (inputs)^-1/2, norms pass
on, biases are zero.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from recipes.nano.gemma import CHAT_TEMPLATE, build_tokenizer
from theworld.world_models.base import PROMPT_EMBEDS
from theworld.world_models.configuration import COSMOS_2B_TRANSFORMER, COSMOS_SCHEDULER, CosmosPredict2Config
from theworld.world_models.cosmos_components import MODEL_INDEX, new_scheduler, new_transformer, new_vae

# prefixes of a tensor's name inside the language model, the vision tower and the image projector
KEY_NAMES = {
    "legacy": ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "legacy without vision_model": ("language_model.model.", "vision_tower.", "multi_modal_projector."),
    "today's": ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "today's with vision_model": (
        "model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A pair of base models, by what their published config files say; what those leave out is the class's default.

    `special` are the ids of tokens that Gemma's processor and chat template know by name; the tokenizer has `entries`.
    """

    gemma: dict[str, Any]
    vae: dict[str, Any]
    transformer: dict[str, Any]
    text_tokens: int
    special: dict[str, int]
    entries: int


FULL = Size(
    gemma={
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    vae={},
    transformer=COSMOS_2B_TRANSFORMER,
    text_tokens=512,
    special={
        "<pad>": 0,
        "<eos>": 1,
        "<bos>": 2,
        "<unk>": 3,
        "<start_of_turn>": 105,
        "<end_of_turn>": 106,
        "<start_of_image>": 255999,
        "<end_of_image>": 256000,
        "<image_soft_token>": 262144,
    },
    entries=262145,
)
TINY = Size(
    gemma={
        "boi_token_index": 600,
        "eoi_token_index": 601,
        "eos_token_id": [1, 5],
        "image_token_index": 639,
        "mm_tokens_per_image": 16,
        "text_config": {
            "head_dim": 16,
            "hidden_size": 32,
            "intermediate_size": 48,
            "model_type": "gemma3_text",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 16,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 64,
            "sliding_window_pattern": 3,
            "vocab_size": 648,
        },
        "vision_config": {
            "hidden_size": 32,
            "image_size": 32,
            "intermediate_size": 48,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 8,
            "vision_use_head": False,
        },
    },
    vae={
        "base_dim": 4,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "z_dim": 4,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 0.6, 0.7, 0.8],
    },
    transformer={
        **COSMOS_2B_TRANSFORMER,
        "in_channels": 5,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
    },
    text_tokens=512,
    special={
        "<pad>": 0,
        "<eos>": 1,
        "<bos>": 2,
        "<unk>": 3,
        "<start_of_turn>": 4,
        "<end_of_turn>": 5,
        "<start_of_image>": 600,
        "<end_of_image>": 601,
        "<image_soft_token>": 639,
    },
    entries=640,
)
SIZES = {"full": FULL, "tiny": TINY}
CORPUS = ("What will happen next in this picture? Describe it in one sentence.", "Answer: yes or no", "model user\n")


# ------------------------------------------------------------------------------------------------------------ the files


def write_shards(folder: Path, tensors: Mapping[str, Tensor], name: str, shards: int) -> None:
    """`name-0000i-of-0000n.safetensors` and their index, as save_pretrained of both libraries lays them out."""
    names = sorted(tensors)
    files = [f"{name}-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {key: files[i * shards // len(names)] for i, key in enumerate(names)}
    for file in files:
        save_file({key: tensors[key] for key in names if weight_map[key] == file}, folder / file, {"format": "pt"})
    write_json(
        folder / f"{name}.safetensors.index.json",
        {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map},
    )


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def published_name(key: str, keys: str = "legacy") -> str:
    """The name that a tensor of today's `save_pretrained` had in the repositories of another time."""
    key = key.replace("vision_tower.vision_model.", "vision_tower.").removeprefix("model.")
    # today's `model.language_model.layers…` is `language_model.layers…` here, and a saved one may be the older name
    if key.startswith("language_model.") and not key.startswith("language_model.model."):
        key = "language_model.model." + key.removeprefix("language_model.")
    for own, published in zip(KEY_NAMES["legacy without vision_model"], KEY_NAMES[keys], strict=True):
        if key.startswith(own):
            return published + key.removeprefix(own)
    return key


def write_gemma_configs(folder: Path, config: Mapping[str, Any]) -> None:
    """All files of a Gemma 3 repository but its weights and its tokenizer's.

    Args:
        config: what of `config.json` is not the same for every size.
    """
    write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "initializer_range": 0.02,
            "model_type": "gemma3",
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            **config,
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "do_sample": True,
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": 0,
            "top_k": 64,
            "top_p": 0.95,
            "transformers_version": "4.50.0.dev0",
        },
    )
    tokens, side = config["mm_tokens_per_image"], config["vision_config"]["image_size"]
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "processor_config.json", {"image_seq_length": tokens, "processor_class": "Gemma3Processor"})
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": tokens,
            "image_std": [0.5, 0.5, 0.5],
            "pan_and_scan_max_num_crops": None,
            "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None,
            "processor_class": "Gemma3Processor",
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": side, "width": side},
        },
    )


def publish_cosmos(folder: Path) -> None:
    """Gives a folder of three components the `model_index.json` of the repository, and files that we leave alone."""
    write_json(
        folder / "model_index.json",
        {
            **MODEL_INDEX,
            "_diffusers_version": "0.34.0.dev0",
            "safety_checker": [None, None],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
        },
    )
    (folder / "model-720p-16fps.pt").write_bytes(b"never read")


# --------------------------------------------------------------------------------------------------------- the weights


def gemma_on_meta(size: Size) -> Gemma3ForConditionalGeneration:
    """Gemma without storage, by the config that its repository has."""
    config = AutoConfig.for_model("gemma3", **size.gemma)
    with torch.device("meta"):
        return Gemma3ForConditionalGeneration(config)


def cosmos_config(size: Size) -> CosmosPredict2Config:
    return CosmosPredict2Config(
        vae=size.vae, transformer=size.transformer, scheduler=COSMOS_SCHEDULER, text_tokens=size.text_tokens
    )


def drawn(like: Tensor, norm: float, bias: bool, generator: torch.Generator) -> Tensor:
    """A random bfloat16 tensor of this shape, on the generator's device; vectors are norms or biases."""
    if like.numel() == like.shape[0]:
        value = 0.0 if bias else norm
        return torch.full(like.shape, value, dtype=torch.bfloat16, device=generator.device)
    tensor = torch.empty(like.shape, dtype=torch.bfloat16, device=generator.device)
    return tensor.normal_(std=(like.shape[0] / like.numel()) ** 0.5, generator=generator)


def make_gemma(folder: Path, size: Size = FULL, device: str | torch.device = "cpu", seed: int = 0) -> Path:
    """Writes a Gemma 3 repository of this size with random weights; drawn on `device`, which then holds all of them."""
    folder.mkdir(parents=True)
    write_gemma_configs(folder, size.gemma)
    write_tokenizer(folder, size)
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for key, tensor in gemma_on_meta(size).state_dict().items():
        if key != "lm_head.weight":  # tied
            # Gemma's own norms multiply by 1 + weight, SigLIP's by weight
            norm = 1.0 if "vision_tower." in key else 0.0
            made = drawn(tensor, norm, key.endswith("bias"), generator)
            # the head is tied: with embeddings as large as a layer's output it would repeat the last token
            tensors[published_name(key)] = made / 4 if key.endswith("embed_tokens.weight") else made
    write_shards(folder, tensors, "model", shards=2)
    return folder


def make_cosmos(folder: Path, size: Size = FULL, device: str | torch.device = "cpu", seed: int = 0) -> Path:
    """Writes a Cosmos-Predict2 repository of this size with random weights, and random default prompts."""
    generator = torch.Generator(device).manual_seed(seed)
    config = cosmos_config(size)
    with torch.device("meta"):
        components = {"vae": new_vae(config), "transformer": new_transformer(config)}
    for name, module in components.items():
        place = folder / name
        place.mkdir(parents=True)
        module.save_config(place)
        tensors = {
            key: drawn(tensor, 1.0, key.endswith("bias"), generator) for key, tensor in module.state_dict().items()
        }
        if name == "vae":
            save_file(tensors, place / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        else:
            write_shards(place, tensors, "diffusion_pytorch_model", shards=2)
    new_scheduler(config).save_pretrained(folder / "scheduler")
    shape = (config.text_tokens, size.transformer["text_embed_dim"])
    embeds = {
        name: torch.randn(shape, generator=generator, device=device).bfloat16() for name in ("default", "negative")
    }
    save_file(embeds, folder / PROMPT_EMBEDS, {"format": "pt"})
    publish_cosmos(folder)
    return folder


def make_bases(folder: Path, size: str, device: str | torch.device) -> None:
    """Writes `gemma` and `cosmos` into a folder, unless they exist."""
    for name, make in {"gemma": make_gemma, "cosmos": make_cosmos}.items():
        if not (folder / name).exists():
            make(folder / name, SIZES[size], device)


def write_tokenizer(folder: Path, size: Size, corpus: Iterable[str] = CORPUS) -> None:
    """A byte-level tokenizer with Gemma's special tokens at their ids, and as many entries as Gemma's.

    What a small corpus does not fill is called `<unusedN>`, as Gemma's own spare entries are.
    """
    trained = build_tokenizer(list(corpus) * 20, vocab_size=512)
    content = json.loads(trained.backend_tokenizer.to_str())
    taken = set(size.special.values())
    free = (index for index in range(size.entries) if index not in taken)
    words = [word for word in content["model"]["vocab"] if word not in size.special]
    vocab = {**size.special, **{word: next(free) for word in words}}
    vocab |= {f"<unused{index}>": index for index in free}
    content["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda entry: entry[1]))
    for token in content["added_tokens"]:
        token["id"] = size.special[token["content"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        **{name: getattr(trained, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
    )
    assert len(tokenizer) == size.entries
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where gemma/ and cosmos/ are written")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="draws the numbers")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    print(make_gemma(arguments.folder / "gemma", size, arguments.device))
    print(make_cosmos(arguments.folder / "cosmos", size, arguments.device))


if __name__ == "__main__":
    main()
