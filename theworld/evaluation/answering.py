"""How an evaluation asks a model: answers with option likelihoods, and the inputs that arms replace."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from theworld.inference.options import RolloutOptions
from theworld.inference.pipeline import TheWorld
from theworld.inference.prompting import Question
from theworld.inference.scored_answers import Reply, generate_scored
from theworld.media.images import load_images
from theworld.media.video import Video
from theworld.model.gate import Gate
from theworld.model.placeholders import IGNORE_INDEX
from theworld.model.projector import WorldProjector
from theworld.world_models.cosmos_sampler import transformer_passes

TOKEN_KINDS = ("trained", "random", "dummy")  # what makes world tokens from latents


@dataclass(frozen=True)
class ReplyInputs:
    """What a model is given in addition to images and questions, for all questions of a batch.

    Attributes:
        num_world_steps, seed, enable_world, world_latents: as in `TheWorld.generate`.
        world_tokens: (n, K, D) replaces the tokens that the projector makes of `world_latents`, which are needed too
            because they give the number of moments.
        image_features: (images, tokens, D) as `image_features` returns them, in the order of the images.
        lora: False asks the base Gemma model.
    """

    num_world_steps: int | None = None
    seed: int = 0
    enable_world: bool | None = None
    world_latents: Tensor | None = None
    world_tokens: Tensor | None = None
    image_features: Tensor | None = None
    lora: bool = True


class ModelAnswerer:
    """Everything that the runner and the arms use of a `TheWorld`.

    World latents are always read as world tokens: which frames are shown as images is the arm's decision.

    Attributes:
        projector_is_trained: whether the language model can read its world tokens.
        gate: that of the model, or the default.
        has_base_gemma: whether `lora=False` gives the base Gemma model: neither vision nor language were trained.
    """

    def __init__(self, model: TheWorld) -> None:
        self.model = model
        self.config = model.config
        self.projector_is_trained = model.projector_is_trained
        if model.model.world is not None:
            model.model.world.expects_repeats = True
        self.gate = Gate(**model.config.gate) if model.config.gate else Gate()
        self.has_base_gemma = not {"vision", "language"} & set(model.config.trained_parts)

    @cached_property
    def passes_per_rollout(self) -> int:
        """Passes of the world transformer in a rollout."""
        return transformer_passes(self.config.world_config) if self.config.enable_world else 0

    def imagine(
        self,
        images: Sequence[Any],
        num_world_steps: int,
        *,
        seed: int = 0,
        world_prompt: Sequence[str] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Latents (n, C, P + 1 + num_world_steps, h, w), one row per image.

        Args:
            world_prompt: one text per image.
            present: the first P + 1 latent frames of each, if they are known already.
        """
        given = self.model.prompts.now(list(images), None)
        return self.model.runner.imagine(given, num_world_steps, seed, world_prompt, None, present)

    def encode(self, frames: Sequence[Any]) -> Tensor:
        """Latents (1, C, T, h, w) of true frames."""
        return self.model.encode(frames)

    def decode(self, latents: Tensor, *, check_guardrail: bool = True) -> np.ndarray:
        """Frames (n, F, H, W, 3) uint8; those that people look at pass the guardrail."""
        return self.model.decode(latents, check_guardrail=check_guardrail)

    @torch.no_grad()
    def image_features(self, images: Sequence[Any]) -> Tensor:
        """Gemma's soft tokens (images, tokens, D), which `reply` accepts instead of computing them."""
        shown = load_images([image.now if isinstance(image, Video) else image for image in images])
        pixels = self.model.processor.image_processor(shown, return_tensors="pt")["pixel_values"]
        return self.model.model.image_features(pixels.to(self.model.device))

    @torch.no_grad()
    def world_tokens(self, latents: Tensor, kind: str = "trained", seed: int = 0) -> Tensor:
        """World tokens (n, K, D) of latents (n, C, T, h, w), boundaries included.

        Args:
            kind: `trained` uses the projector; `random` an untrained projector of the same architecture, initialised
                with `seed`; `dummy` repeats one constant token between the boundaries, the same for all latents.

        Raises:
            ValueError: if `kind` is not one of TOKEN_KINDS.
        """
        if kind not in TOKEN_KINDS:
            raise ValueError(f"Unknown kind {kind!r}; choose one of {', '.join(TOKEN_KINDS)}.")
        projector = self.model.model.projector
        latents = latents.to(projector.device)
        if kind == "random":
            with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
                untrained = WorldProjector(self.config)
            # seed 0 is excluded because nano's language model learned to read the projector initialised with it
            untrained.reset_parameters(self.model.model.text_embedding_rms(), seed=seed + 1)
            return untrained.to(device=projector.device, dtype=projector.dtype)(latents)
        if kind == "dummy":
            begin, inner, end = projector(torch.zeros_like(latents)).split_with_sizes(
                [1, self.config.world_token_count(latents.shape[2] - 1) - 2, 1], dim=1
            )
            return torch.cat([begin, inner.mean(dim=1, keepdim=True).expand_as(inner), end], dim=1)
        return projector(latents)

    @torch.no_grad()
    def reply(
        self,
        images: Sequence[Any],
        questions: Sequence[Question],
        options: Sequence[Sequence[str]] | None = None,
        max_new_tokens: int = 128,
        inputs: ReplyInputs = ReplyInputs(),
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[Reply]:
        """Answers to a list of questions in one batch, with their lengths and the likelihoods of the options.

        Args:
            images: one image, or list of images, per question.
            options: for each question, the answers whose log-probabilities are wanted.
            temperature: 0 is greedy decoding.
            top_p: nucleus that a temperature above 0 samples from.

        Raises:
            ValueError: if the base Gemma model is requested but was trained, or world tokens come without latents.
        """
        weights = self._weights(inputs)
        features = self._features(images, questions, inputs)
        sampling = {"top_p": top_p} if temperature > 0 else {}
        with weights:
            return generate_scored(self.model, features, options, max_new_tokens, temperature, **sampling)

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Any],
        questions: Sequence[Question],
        answers: Sequence[str],
        inputs: ReplyInputs = ReplyInputs(),
    ) -> list[tuple[float, bool]]:
        """For each question's given answer: its log-probability, and whether greedy decoding gives it.

        The end of the turn does not count. Arguments and errors are those of `reply`.
        """
        logprobs, greedy, in_answer = self._answer_tokens(images, questions, answers, inputs)
        right = (greedy | ~in_answer)[:, :-1].all(dim=1)
        return list(zip(logprobs[:, :-1].sum(dim=1).tolist(), right.tolist(), strict=True))

    @torch.no_grad()
    def label_logprobs(
        self, images: Sequence[Any], questions: Sequence[Question], labels: Sequence[str], inputs: ReplyInputs
    ) -> list[tuple[float, int]]:
        """For each question's label: its log-probability and its number of tokens, both with the end of the turn.

        Their sums over all questions give the loss of training. Arguments and errors are those of `reply`.
        """
        logprobs, _, in_answer = self._answer_tokens(images, questions, labels, inputs)
        return list(zip(logprobs.sum(dim=1).tolist(), in_answer.sum(dim=1).tolist(), strict=True))

    def _answer_tokens(
        self, images: Sequence[Any], questions: Sequence[Question], answers: Sequence[str], inputs: ReplyInputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each token of the answers and of the end of their turns (B, L), which end together.

        Returns:
            Log-probabilities (0 for padding), whether greedy decoding gives the token, and whether it is one.
        """
        weights = self._weights(inputs)
        features = self._features(images, questions, inputs, answers)
        labels = features.pop("labels")
        longest = int((labels != IGNORE_INDEX).sum(dim=1).max())  # rows are left-padded
        with weights:
            logits = self.model.model(**features, logits_to_keep=longest + 1).logits
        scores = logits[:, :-1].float().log_softmax(-1)  # (B, longest, V)
        labels = labels[:, -longest:]
        in_answer = labels != IGNORE_INDEX
        logprobs = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(~in_answer, 0.0)
        return logprobs, scores.argmax(-1) == labels, in_answer

    def _weights(self, inputs: ReplyInputs) -> AbstractContextManager[None]:
        """A context in which the requested weights answer; inputs that do not fit are refused first."""
        if inputs.world_tokens is not None and inputs.world_latents is None:
            raise ValueError("world_tokens need the world_latents that they replace, which give their number of steps.")
        if not inputs.lora and not self.has_base_gemma:
            raise ValueError(
                "Vision or language weights of this model were trained, so the base Gemma model is not in memory; "
                f"evaluate the base model itself ({self.config.vlm_name_or_path})."
            )
        disabled = not inputs.lora and self.config.lora is not None
        return self.model.model.lora_disabled() if disabled else nullcontext()

    def _features(
        self,
        images: Sequence[Any],
        questions: Sequence[Question],
        inputs: ReplyInputs,
        answers: Sequence[str] | None = None,
    ) -> BatchFeature:
        """Model inputs in which precomputed world tokens and image features replace what they are computed from."""
        rollout = RolloutOptions(
            inputs.num_world_steps, inputs.seed, inputs.enable_world, world_latents=inputs.world_latents, mode="tokens"
        )
        # what replaces pixels and frames need not be computed from them
        ids_only = inputs.image_features is not None and (
            inputs.world_latents is not None or inputs.enable_world is False
        )
        features = self.model.prepare_generation(images, list(questions), answers, rollout=rollout, ids_only=ids_only)
        if inputs.world_tokens is not None:
            del features["world_latents"]
            features["world_embeds"] = inputs.world_tokens.to(self.model.device)
        if inputs.image_features is not None:
            features.pop("pixel_values", None)
            features["image_features"] = inputs.image_features.to(self.model.device)
        return features
