"""nano's Gemma 3: a small language model and SigLIP tower on the real classes, with a tokenizer of its own.

The tokenizer has Gemma's special tokens and chat format, so that everything that reads Gemma's reads this one too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.gemma3 import Gemma3Processor
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
)
IMAGE_TOKEN = "<image_soft_token>"  # the last entry, as in the published tokenizer: the row after it is free
# user and model turns as Gemma writes them; a system turn goes in front of the first user turn
CHAT_TEMPLATE = """{{ bos_token }}
{%- set opening = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set opening = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) \
+ '\n\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Turns must alternate: user, assistant, user, …') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' \
+ (opening if loop.first else '') }}
{%- if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""


def build_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries; any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    # a line break is a token by itself, so that a chat can be put together from separately written pieces
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE_TOKEN,
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int, tokens_per_image: int) -> Gemma3Processor:
    """Gemma 3's processor around a tokenizer, for square images of `image_size` pixels."""
    image_processor = Gemma3ImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Gemma3Processor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=tokens_per_image)


def build_config(
    tokenizer: PreTrainedTokenizerFast,
    text: dict[str, Any],
    vision: dict[str, Any],
    tokens_per_image: int,
    free_rows: int = 7,
) -> Gemma3Config:
    """Gemma 3's config for a tokenizer; like the published one it has a few vocabulary rows that no token uses."""
    return Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer) + free_rows,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **text,
        },
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        mm_tokens_per_image=tokens_per_image,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )


def build_model(
    config: Gemma3Config, tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> Gemma3ForConditionalGeneration:
    """A randomly initialised Gemma 3 that stops at the end of its turn."""
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    # transformers starts this at zero, for loading; from nothing, no gradient would reach the vision tower
    torch.nn.init.normal_(
        model.model.multi_modal_projector.mm_input_projection_weight, std=config.vision_config.hidden_size**-0.5
    )
    # each sub-layer adds little at first, so that the inputs are not hidden by the noise of six layers
    small = (2 * config.text_config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            torch.nn.init.constant_(parameter, small - 1)  # Gemma's norms multiply by 1 + weight
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    )
    return model
