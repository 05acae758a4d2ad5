"""Text conditioning of rollouts: the T5 prompt encoder of a folder in diffusers' layout, with an on-disk cache.

The published encoder is T5-11b's (4.86 billion parameters, 9.7 GB in bfloat16). It is loaded for a prompt that is not
in the cache, and freed at once. Embeddings are stored under the Hugging Face cache home, in `theworld/prompts`.

Shapes: L positions of a prompt embedding (`text_tokens`), D its width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import Tensor

from theworld.storage.adapters import read_tensors
from theworld.storage.files import atomic_file, write_tensors
from theworld.world_models.diffusers_folder import find_folder, read_json

logger = logging.getLogger(__name__)

# The prompt of a rollout without one is empty: the image alone determines the future, as in training without captions,
# and words of the question do not influence it. (diffusers' pipeline has no default and raises without a prompt.)
DEFAULT_PROMPT = ""
# The published negative prompt of Cosmos-Predict2, `DEFAULT_NEGATIVE_PROMPT` of diffusers'
# `pipeline_cosmos2_video2world.py`. It is repeated here, because importing that module would import the guardrail.
DEFAULT_NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, "
    "over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, "
    "underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, "
    "jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, "
    "fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. "
    "Overall, the video is of poor quality."
)

INDEX_FILES = ("model_index.json",)
ENCODER_FILES = ("text_encoder/config.json", "text_encoder/model*.safetensors*", "tokenizer/*")
ENCODER_DTYPE = torch.bfloat16  # NVIDIA's choice; one dtype on every device, so that cached embeddings are valid on all


def has_text_encoder(repo_or_folder: str | Path, revision: str | None = None) -> bool:
    """Whether a world folder or repository has a text encoder, according to its `model_index.json`."""
    index = find_folder(repo_or_folder, revision, INDEX_FILES) / "model_index.json"
    entry = read_json(index).get("text_encoder") if index.is_file() else None
    return isinstance(entry, list) and None not in entry


def embed_prompts(
    repo_or_folder: str | Path,
    revision: str | None,
    prompts: Sequence[str],
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Embeds prompts as (L, D) = `shape`, bfloat16, on the CPU; positions after a prompt's last token are zero.

    The text encoder is loaded, on `device`, only if one of them is not in the cache.
    """
    folder = find_folder(repo_or_folder, revision, INDEX_FILES)
    files = {prompt: cache_file(repo_or_folder, folder, shape, prompt) for prompt in prompts}
    known = {prompt: embeds for prompt, file in files.items() if (embeds := _read_cached(file, shape)) is not None}
    unknown = [prompt for prompt in files if prompt not in known]
    if unknown:
        whole = find_folder(repo_or_folder, revision, (*INDEX_FILES, *ENCODER_FILES))
        for name in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
            if not (whole / name).is_file():  # offline, the Hub's cache may be incomplete
                raise ValueError(
                    f"{repo_or_folder} has no local {name}, which a prompt that is not cached needs; go online once "
                    "(HF_HUB_OFFLINE unset), or copy text_encoder/ and tokenizer/ into the folder."
                )
        for prompt, embeds in zip(unknown, encode_texts(whole, unknown, shape, device), strict=True):
            known[prompt] = embeds
            _write_cached(files[prompt], embeds)
    return [known[prompt] for prompt in prompts]


@torch.no_grad()
def encode_texts(
    folder: Path,
    texts: Sequence[str],
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = ENCODER_DTYPE,
) -> list[Tensor]:
    """T5 embeddings (L, D) of texts as in `Cosmos2VideoToWorldPipeline`, on the CPU, with the encoder in `folder`.

    The pipeline pads to L tokens, masks the padding and sets its embeddings to zero. Here only the result is padded
    with zeros, which is equal up to rounding and much cheaper. A text that is too long is an error, not truncated.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    length, width = shape
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        for text, row in zip(texts, ids, strict=True):
            if row.shape[1] > length:
                raise ValueError(
                    f"The world prompt {text[:40]!r}… has {row.shape[1]} tokens, and this world model takes at most "
                    f"{length}; shorten it."
                )
        logger.info("loading the text encoder of %s", folder)
        encoder, loading = T5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The text encoder of {folder} cannot be read ({error}); download it again.") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise ValueError(
                f"{folder / 'text_encoder'} does not match its config: {kind.replace('_', ' ')} {loading[kind]}."
            )
    if encoder.config.d_model != width:
        raise ValueError(
            f"The text encoder of {folder} has width {encoder.config.d_model}; its transformer needs {width}."
        )
    device = _device_with_memory(torch.device(device), encoder)
    encoder = encoder.to(device).eval()
    embeds = []
    for row in ids:
        hidden = encoder(row.to(device), attention_mask=torch.ones_like(row).to(device)).last_hidden_state[0]
        embeds.append(torch.nn.functional.pad(hidden.to("cpu", dtype), (0, 0, 0, length - hidden.shape[0])))
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()  # 9.7 GB that the rollout or another program may need
    return embeds


def _device_with_memory(device: torch.device, encoder: torch.nn.Module) -> torch.device:
    """`device`, or the CPU if a GPU does not have enough free memory for the encoder."""
    if device.type != "cuda":
        return device
    needed = sum(parameter.nbytes for parameter in encoder.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > 1.2 * needed else torch.device("cpu")


def cache_file(repo_or_folder: str | Path, folder: Path, shape: tuple[int, int], prompt: str) -> Path:
    """The cache file of a prompt's embedding, whose name depends on everything that the embedding depends on.

    A repository is identified by its id and commit, a local folder by its path and its text encoder's files.
    """
    if Path(repo_or_folder).expanduser().is_dir():
        stats = [(p, p.stat()) for name in ("text_encoder", "tokenizer") for p in sorted((folder / name).glob("*"))]
        revision = repr([(p.name, stat.st_size, stat.st_mtime_ns) for p, stat in stats])
        source = str(folder.resolve())
    else:
        source, revision = str(repo_or_folder), folder.name  # a snapshot's folder is named by its commit
    key = hashlib.sha256(repr((source, revision, shape, str(ENCODER_DTYPE), prompt)).encode())
    return Path(constants.HF_HOME) / "theworld" / "prompts" / f"{key.hexdigest()}.safetensors"


def _read_cached(file: Path, shape: tuple[int, int]) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        embeds = read_tensors(str(file.parent), file.name).get("prompt")
    except ValueError as error:
        logger.warning("%s The prompt is embedded again.", error)
        return None
    return embeds if embeds is not None and tuple(embeds.shape) == shape else None


def _write_cached(file: Path, embeds: Tensor) -> None:
    """Writes a cache file; if that fails, the only cost is time."""
    try:
        with atomic_file(file) as unfinished:
            write_tensors(unfinished, {"prompt": embeds})
    except (OSError, SafetensorError) as error:
        logger.warning("The embedding of a world prompt could not be cached in %s (%s).", file.parent, error)
