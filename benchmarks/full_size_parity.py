"""The section `parity` of `benchmarks/full_size.py`: stock Gemma 3 and diffusers' pipeline as references."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size_run import FLOAT32_TOLERANCE, NEW_TOKENS, QUESTION, Run, fused, say


def parity(run: Run) -> dict[str, Any]:
    """The disabled world model against stock Gemma 3, and a rollout against diffusers' pipeline."""
    content: dict[str, Any] = {}
    content["world_off"] = gemma_parity(run)
    run.keep("parity", content)
    say("world off:", content["world_off"])
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    content["latents"] = latents_parity(run)
    say("latents:", content["latents"])
    return content


@torch.no_grad()
def gemma_parity(run: Run) -> dict[str, Any]:
    """Logits and a greedy answer of the fused model with the world model disabled, and of Gemma 3 in transformers."""
    from PIL import Image
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    photo = Image.open(run.photo).convert("RGB")
    model = fused(run)
    ours_inputs = model.prepare(photo, QUESTION, enable_world=False)
    ours = model.model(**ours_inputs).logits
    ours_answer = model.generate(photo, QUESTION, max_new_tokens=NEW_TOKENS, enable_world=False)
    processor = AutoProcessor.from_pretrained(run.gemma)
    stock = Gemma3ForConditionalGeneration.from_pretrained(run.gemma, dtype=run.dtype).to(run.device).eval()
    chat = [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(run.device)
    theirs = stock(**inputs).logits
    ids = stock.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
    names = sorted(inputs.keys())
    with_world = model.model(**model.prepare(photo, QUESTION, num_world_steps=0)).logits[:, -1]
    return {
        "inputs_equal": names == sorted(ours_inputs.keys())
        and all(torch.equal(inputs[name], ours_inputs[name]) for name in names),
        "logits_equal": torch.equal(ours, theirs),
        "largest_difference": float((ours.float() - theirs.float()).abs().max()),
        "logits_finite": bool(theirs.isfinite().all()),
        "logits_shape": list(theirs.shape),
        "answers_equal": ours_answer == processor.batch_decode(ids, skip_special_tokens=True)[0].strip(),
        # shows that the comparison is sensitive: what world tokens change at the last position
        "world_on_changes_logits_by": float((with_world - ours[:, -1]).abs().max()),
    }


@torch.no_grad()
def latents_parity(run: Run) -> dict[str, Any]:
    """The same photograph, prompts and noise in our rollout and in the pipeline, for each dtype."""
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from PIL import Image

    from benchmarks.stock_pipeline import pipeline_with_mean_latents, stock_latents
    from theworld.media.images import to_frames
    from theworld.model.configuration import TheWorldConfig
    from theworld.world_models.cosmos_predict2 import CosmosPredict2
    from theworld.world_models.cosmos_sampler import rollout_noise

    photo = Image.open(run.photo).convert("RGB")
    side = TheWorldConfig().world_image_size
    found: dict[str, Any] = {"pixels": side, "frames": 1 + 4 * run.steps, "seed": 7}
    theirs: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        world = CosmosPredict2.from_pretrained(run.cosmos, parts=("encoder", "transformer"), dtype=dtype).to(run.device)
        vae = AutoencoderKLWan.from_pretrained(run.cosmos, subfolder="vae", torch_dtype=dtype).to(run.device)
        transformer = CosmosTransformer3DModel.from_pretrained(
            run.cosmos, subfolder="transformer", torch_dtype=dtype
        ).to(run.device)
        assert world.prompt_embeds is not None
        assert world.negative_prompt_embeds is not None
        latents = world.encode(to_frames([photo], side).to(run.device))
        cells = (latents.shape[1], latents.shape[3], latents.shape[4])
        # unit noise for the given frame too: the pipeline samples it, and a trace of it remains there
        noise = torch.cat([rollout_noise([1], 1, cells), rollout_noise([7], run.steps, cells)], dim=2).to(run.device)
        for guidance in (1.0, world.config.guidance_scale):
            steps = world.config.num_inference_steps
            ours = world.rollout(latents, run.steps, seeds=[7], num_inference_steps=steps, guidance_scale=guidance)
            with pipeline_with_mean_latents() as module:
                stock = stock_latents(
                    module,
                    vae,
                    transformer,
                    [photo],
                    noise,
                    size=side,
                    steps=steps,
                    guidance=guidance,
                    prompt_embeds=world.prompt_embeds[None].to(dtype),
                    negative_prompt_embeds=world.negative_prompt_embeds[None].to(dtype),
                )
            given, imagined = stock[:, :, :1], stock[:, :, 1:]
            theirs[f"{kind} {guidance}"] = imagined
            # theirs of now: what is left of 80·noise after Euler steps towards the latent from sigma 80 to 0.002
            left = latents + (80 * noise[:, :, :1] - latents) * 0.002 / 80
            difference = distance(ours[:, :, 1:], imagined)
            row: dict[str, Any] = {
                "shape": list(ours.shape),
                "difference": difference,
                "largest": float((ours[:, :, 1:] - imagined).abs().max()),
                "rms": float(imagined.square().mean().sqrt()),
                "given_difference": distance(left, given),
                "tolerance": FLOAT32_TOLERANCE,
            }
            if dtype is torch.bfloat16:  # float32 came before
                row["tolerance"] = distance(imagined, theirs[f"float32 {guidance}"])
            row["within"] = bool(difference <= row["tolerance"])
            found[f"{kind}, guidance {guidance:g}"] = row
        del world, vae, transformer
        gc.collect()
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||"""
    return float((one.double() - other.double()).norm() / other.double().norm())
