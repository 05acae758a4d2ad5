"""The pipeline: `TheWorld` answers questions about images and videos with a model and its processor.

model = TheWorld("nano")
answer = model.generate("scene.png", "Which bin will the ball land in: left, middle or right?", num_world_steps=4)
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature, BitsAndBytesConfig

from theworld.inference.futures import FutureAnswers, ask, check_futures
from theworld.inference.generation import FRAMES_INSTEAD, WITHOUT_IMAGE, prepare
from theworld.inference.options import (
    MAX_NEW_TOKENS,
    GenerateOptions,
    RolloutOptions,
    check_keywords,
    decoding_arguments,
    split_options,
)
from theworld.inference.prompting import PromptBuilder, Question, checked_labels
from theworld.inference.streaming import check_streamable, stream_text
from theworld.inference.world_runner import WorldRunner, warn_once
from theworld.media.images import stack_pixels
from theworld.messages import Progress
from theworld.model import checkpoint_file, freezing
from theworld.model.call_plan import CallPlan, check_integer, plan_call, steps_to_imagine, world_parts_for
from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import resolve_device_and_dtype
from theworld.model.processing import TheWorldProcessor, texts_of
from theworld.model.published import DEFAULT_GEMMA
from theworld.model.spec import ModelSpec, resolve_model
from theworld.quantization import check_settings
from theworld.world_models.configuration import COSMOS_2B

logger = logging.getLogger(__name__)


class TheWorld(nn.Module):
    """A vision-language model that looks ahead.

    Args:
        model_name: a Gemma 3 (Hub id or folder) to fuse with a world model, a trained TheWorld model (`nano`, folder or
            Hub id), or what `resolve_model` returned for one of them.
        num_world_steps: future latent frames that a call imagines unless it sets its own number. None means the model's
            number if its projector is trained. If it is not, `generate` imagines 4 and shows them as frames, and
            `forward` imagines none.
        cosmos_model_name: world model to fuse a Gemma 3 with; a trained model has its own.
        freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae: False makes that part trainable, in addition to
            the projector.
        max_world_steps: maximum number of world steps of a new model (rows of its temporal embedding).
        lora: LoRA on the language model of a new model, trainable with the projector: its rank (alpha is twice the
            rank, on all linear layers), or peft's settings as a dict.
        dtype: a torch dtype or its name (`bfloat16`, `float32`, `float16`); None means bfloat16 on a GPU and on
            a CPU with bfloat16 instructions, else float32.
        device: None means the first GPU, or the CPU.
        fast_path: `auto`, `on` or `off`: compiled layers and CUDA graphs, as docs/python.md says.
        device_map: the devices of Gemma's layers (`"auto"`, or a dict), instead of `device`; see docs/python.md.
        quantization, world_model_offload: for GPUs with little memory; see docs/small_cards.md.
        config: further fields of TheWorldConfig for a new model (`projector`, `spatial_merge`, `world_images`, …);
            `max_past_steps` of 1 or more enables videos.

    Raises:
        ValueError: if a model cannot be read, or settings contradict each other.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec = DEFAULT_GEMMA,
        num_world_steps: int | None = None,
        cosmos_model_name: str = COSMOS_2B,
        freeze_gemma_vision: bool = True,
        freeze_gemma_language: bool = True,
        freeze_cosmos_vae: bool = True,
        max_world_steps: int = 16,
        *,
        lora: int | dict[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        fast_path: str = "auto",
        quantization: str | BitsAndBytesConfig | None = None,
        world_model_offload: str = "none",
        **config: Any,
    ) -> None:
        super().__init__()
        target, dtype = resolve_device_and_dtype(device, device_map, dtype)
        check_keywords(config, type(self))  # before anything is fetched
        check_settings(quantization, world_model_offload, target, fast_path)
        if lora is not None:
            config["lora"] = lora
        if isinstance(model_name, ModelSpec):
            spec = model_name
        else:
            values = {**config, "num_world_steps": num_world_steps or 0, "max_world_steps": max_world_steps}
            spec = resolve_model(model_name, world_model=cosmos_model_name, **values)
        if spec.is_fused or spec is model_name:
            spec.check_no_settings(config)
        if spec.shipped_note:
            warn_once(spec.shipped_note)
        settings = copy.deepcopy(spec.config)
        if num_world_steps is not None:
            settings.num_world_steps = settings.check_world_steps(num_world_steps)
        # a new fusion has the parts for its own number of steps; a trained model loads others when they are needed
        parts = ("encoder",) if spec.is_fused else world_parts_for(settings.num_world_steps)
        places: dict[str, Any] = {"dtype": dtype, "device": target, "device_map": device_map, "config": settings}
        places |= {"quantization": quantization, "world_model_offload": world_model_offload}
        model = spec.load(world_parts=parts, **places)
        self.model = model if target is None or world_model_offload == "cpu" else model.to(target)
        self.model.use_fast_path(fast_path)
        self.processor = TheWorldProcessor.from_config(model.config, model.bases_folder)
        self.prompts = PromptBuilder(self.processor)
        self.default_steps = num_world_steps  # of `generate`; None leaves the choice to `plan_call`
        self.runner = WorldRunner(model, self.processor, spec.note_on_steps)
        self._warned: set[str] = set()
        self.is_shipped = spec.shipped_note is not None
        self.eval()  # like transformers' from_pretrained; call train() to train
        frozen = {"vision": freeze_gemma_vision, "language": freeze_gemma_language, "vae_encoder": freeze_cosmos_vae}
        freezing.train_new_parts(self.model, [part for part, is_frozen in frozen.items() if not is_frozen])

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | os.PathLike[str],
        checkpoint_name: str | None = None,
        *,
        num_world_steps: int | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        fast_path: str = "auto",
        quantization: str | BitsAndBytesConfig | None = None,
        world_model_offload: str = "none",
        freeze_gemma_vision: bool = True,
        freeze_gemma_language: bool = True,
        freeze_cosmos_vae: bool = True,
        **config: Any,
    ) -> TheWorld:
        """Loads a trained model: `nano`, a folder or a Hub id.

        Args:
            checkpoint_name: a checkpoint in it: `checkpoint-1000` or `checkpoint-1000/pytorch_model.bin`.
            num_world_steps: default of later calls; None keeps the model's own.
            revision: branch, tag or commit of a Hub repository.
            dtype, device, device_map, fast_path, quantization, world_model_offload, freeze_…: as in the constructor.
            config: not supported, because a trained model has its own configuration.

        Raises:
            ValueError: if the model cannot be read, its tensors are missing or unexpected, or a keyword is unknown.
        """
        check_keywords(config, cls.from_pretrained)  # before anything is fetched
        spec = resolve_model(model_name, revision=revision, checkpoint_name=checkpoint_name)
        spec.check_fused()
        spec.check_no_settings(config)
        frozen = (freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae)
        placed: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map, "fast_path": fast_path}
        placed |= {"quantization": quantization, "world_model_offload": world_model_offload}
        return cls(spec, num_world_steps, COSMOS_2B, *frozen, **placed)

    @property
    def config(self) -> TheWorldConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def projector_is_trained(self) -> bool:
        """Whether the language model can read world tokens; also True if the model has no world model."""
        return self.model.world is None or self.config.reads_world_tokens

    @property
    def needs_guardrail(self) -> bool:
        """Whether NVIDIA's guardrail checks world prompts and displayed frames."""
        return self.runner.world.needs_guardrail

    def get_trainable_parameters(self) -> tuple[int, int, float]:
        """Number of trainable parameters, of all parameters in memory, and their ratio in percent."""
        rows = self.parameter_table()
        trainable, total = sum(row.trainable for row in rows), sum(row.total for row in rows)
        return trainable, total, 100.0 * trainable / total

    def parameter_table(self) -> list[freezing.PartCount]:
        """Numbers of parameters, one row per part in memory."""
        return freezing.count_parameters(self.model)

    def plan(self, mode: str | None = None, num_world_steps: int | None = None, num_past_steps: int = 0) -> CallPlan:
        """How a call of `generate` with these arguments uses the world model; see `plan_call`."""
        steps = self.default_steps if num_world_steps is None else num_world_steps
        return plan_call(self.config, mode, steps, num_past_steps=num_past_steps)

    def prepare(
        self,
        image: Any = None,
        question: str | Sequence[str] | None = None,
        answer: str | Sequence[str] | None = None,
        *,
        video: Any = None,
        num_world_steps: int | None = None,
        seed: int = 0,
        enable_world: bool | None = None,
        world_images: str | None = None,
        world_prompt: str | Sequence[str] | None = None,
    ) -> BatchFeature:
        """Chat-formatted model inputs, left-padded, on this model's device.

        Args:
            image: an image (PIL, path, bytes, NumPy array or tensor), or a list of several for one question; with a
                list of questions, one entry (or list) per question. None asks without an image: the language model
                then answers from the text alone. A list may contain videos that `theworld.media.video.load_video` has
                read.
            question: a string or a list of strings.
            answer: adds the answer's turn, and `labels` with its ids, -100 elsewhere.
            video: a video, in any form that `load_video` takes, instead of `image`; its last frame is now. The world
                model reads it at its own rate: give frames without a file as `Video(frames, fps=…)`. With a list of
                questions, one video per question.
            num_world_steps, seed, enable_world, world_images, world_prompt: see `RolloutOptions`.

        Returns:
            Those of `TheWorldProcessor`: `input_ids`, `attention_mask`, `token_type_ids` (B, L) int64, `pixel_values`
            (images, 3, H, W) float32; with the world model `world_frames`, `world_seeds` and `num_world_steps`; with an
            answer `labels` (B, L) int64.
        """
        images, questions = self.prompts.normalize_inputs(image, question, video)
        rollout = RolloutOptions(num_world_steps, seed, enable_world, world_images, world_prompt=world_prompt)
        return self.prompts.inputs(images, questions, answer, rollout).to(self.device)

    def forward(
        self,
        image: Any = None,
        text: str | Sequence[str] | None = None,
        labels: str | Sequence[str] | Tensor | None = None,
        num_world_steps: int | None = None,
        world_prompt: str | Sequence[str] | None = None,
        *,
        video: Any = None,
        world_images: str | None = None,
    ) -> Any:
        """Computes logits, and the loss if labels are given.

        Args:
            image, video: as in `prepare`.
            text: the question or questions.
            labels: answers as text, or label ids (B, L), one per token of `prepare(image, text)["input_ids"]`.
            num_world_steps: future latent frames to imagine; None means the model's own default.
            world_prompt, world_images: see `RolloutOptions`.

        Returns:
            Gemma 3's output: `logits` (B, L, vocabulary) and, with labels, `loss`, a scalar.
        """
        if not self.projector_is_trained:
            self.warn_once(FRAMES_INSTEAD)
        images, questions = self.prompts.normalize_inputs(image, text, video)
        if not all(images):
            self.warn_once(WITHOUT_IMAGE)
        rollout = RolloutOptions(num_world_steps, world_images=world_images, world_prompt=world_prompt)
        if any(images) and self.model.world is not None:
            steps = self.config.num_world_steps if num_world_steps is None else num_world_steps
            self.runner.load_parts(*world_parts_for(steps))
        answers = None if labels is None or isinstance(labels, Tensor) else texts_of("labels", labels)
        inputs = self.prompts.inputs(images, questions, answers, rollout).to(self.device)
        if isinstance(labels, Tensor):
            inputs["labels"] = checked_labels(labels, inputs["input_ids"])
        return self.model(**inputs)

    @overload
    def generate(
        self,
        image: Any = ...,
        question: str = ...,
        max_new_tokens: int = ...,
        temperature: float | None = ...,
        num_world_steps: int | None = ...,
        *,
        video: Any = ...,
        progress: Progress | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        image: Any = ...,
        question: list[str] | tuple[str, ...] = ...,
        max_new_tokens: int = ...,
        temperature: float | None = ...,
        num_world_steps: int | None = ...,
        *,
        video: Any = ...,
        progress: Progress | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> list[str]: ...

    def generate(
        self,
        image: Any = None,
        question: str | Sequence[str] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float | None = None,
        num_world_steps: int | None = None,
        *,
        video: Any = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str | list[str]:
        """Answers one question with a string, or a list of questions, as one batch, with a list of strings.

        Args:
            image, question, video: as in `prepare`.
            max_new_tokens: maximum length of an answer, in tokens.
            temperature: sampling temperature; 0 means greedy decoding (or beam search, with `num_beams`). None means 0,
                or with `do_sample=True` transformers' 1.0.
            num_world_steps: future latent frames to imagine; None means the model's own default.
            progress: called with (denoising steps done, total) during the rollout.
            options: `seed` (of the rollout's noise; sampled tokens follow `torch.manual_seed`), `enable_world`,
                `world_images`, `world_latents`, `world_prompt` and `mode`, which `RolloutOptions` explains, and any
                option of transformers' `generate` (`top_p`, `num_beams`, `repetition_penalty`, `stop_strings`,
                `generation_config`, `logits_processor`, …).

        Raises:
            ValueError: if an option is unknown, out of range or contradicts another one, or if images, questions and
                world steps do not fit together. Nothing has been imagined then.
        """
        rollout, decoding = split_options(options, num_world_steps, progress)
        arguments = decoding_arguments(max_new_tokens, temperature, decoding, self.processor.tokenizer)
        inputs = self.prepare_generation(image, question, video=video, rollout=rollout)
        ids = self.model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :]
        answers = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        return answers[0] if isinstance(question, str) else answers

    def ask(
        self,
        image: Any = None,
        question: str = "",
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float | None = None,
        num_world_steps: int | None = None,
        *,
        video: Any = None,
        options: Sequence[str] = (),
        futures: int = 1,
        imagine: str = "always",
        progress: Progress | None = None,
        **further: Unpack[GenerateOptions],
    ) -> FutureAnswers:
        """Answers one question from several imagined futures, which have the seeds `seed`, `seed` + 1, ….

        Other arguments and errors are those of `generate`; several futures of a call that imagines nothing are one.

        Args:
            options: possible answers, whose probabilities are wanted; they are not added to the question.
            futures: how many futures are imagined, in one batch.
            imagine: `auto` first answers without a future, imagines only if that answer is not confident, and uses only
                futures that agree with the present (see `Gate`).
        """
        rollout, decoding = split_options(further, num_world_steps, progress)
        decoding |= {"max_new_tokens": max_new_tokens, "temperature": temperature}
        return ask(self, image, question, video, options, futures, imagine, rollout, decoding)

    def stream(
        self,
        image: Any = None,
        question: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float | None = None,
        num_world_steps: int | None = None,
        *,
        video: Any = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str]:
        """Yields the answer to one question piece by piece, as it is generated.

        Arguments and errors are those of `generate`; beam search and a `streamer` of one's own are not possible.
        """
        if self.prompts.questions(image, question) and not isinstance(question, str):
            raise ValueError("stream answers one question; pass a list of questions to generate.")
        rollout, decoding = split_options(options, num_world_steps, progress)
        arguments = decoding_arguments(max_new_tokens, temperature, decoding, self.processor.tokenizer)
        check_streamable(arguments)

        def pieces() -> Iterator[str]:
            inputs = self.prepare_generation(image, question, video=video, rollout=rollout)
            yield from stream_text(self.model.generate, self.processor.tokenizer, {**inputs, **arguments})

        return pieces()

    def prepare_generation(
        self,
        image: Any,
        question: str | Sequence[Question] | None,
        answer: Sequence[str] | None = None,
        *,
        video: Any = None,
        rollout: RolloutOptions,
        ids_only: bool = False,
    ) -> BatchFeature:
        """Inputs for `self.model.generate`, or with an answer per question for `self.model`; the future is imagined.

        Returns:
            Those of `prepare`, with `world_latents` (n, C, P + 1 + N, h, w) instead of frames to imagine from, and in
            mode `frames` with the imagined frames as images. `ids_only` is that of the processor.
        """
        return prepare(self, *self.prompts.normalize_inputs(image, question, video), answer, rollout, ids_only)

    def imagine(
        self,
        image: Any = None,
        num_world_steps: int | None = None,
        *,
        video: Any = None,
        seed: int = 0,
        futures: int = 1,
        world_prompt: str | Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Latents (futures · n, C, P + 1 + N, h, w) of n images or videos and of N imagined world steps.

        P is the number of past latent frames of a video, and 0 for images. The other arguments are those of `generate`;
        `world_prompt` is one text for all images or one per image. Several `futures` have the seeds `seed`, `seed` + 1,
        … and are imagined in one batch: all images with the first seed, then all with the next.
        """
        steps, seed = steps_to_imagine(self.config, num_world_steps), check_integer("seed", seed)
        images = self.prompts.now(image, video)
        return self.runner.imagine_futures(images, steps, seed, check_futures(futures), world_prompt, progress)

    def seen(self, video: Any) -> np.ndarray:
        """The frames of a video that the world model reads, (1 + 4·P, S, S, 3) uint8; the last one is now."""
        return stack_pixels([self.processor.frames_of(self.prompts.video(video))], self.config.world_image_size)[0]

    def encode(self, clip: Sequence[Any]) -> Tensor:
        """Latents (1, C, T, h, w) of 1 + 4·(T - 1) true frames: those of a perfect rollout."""
        return self.runner.encode(clip)

    def decode(self, latents: Tensor, *, check_guardrail: bool = True) -> np.ndarray:
        """Decodes latents (n, C, T, h, w) to frames (n, F, H, W, 3) uint8, F = 1 + 4·(T - 1).

        Args:
            check_guardrail: True checks the frames with NVIDIA's guardrail if these are NVIDIA's weights; False is for
                frames that only a model sees.

        Raises:
            ValueError: if the guardrail is needed and is not installed, or refuses the frames.
        """
        return self.runner.decode(latents, check_guardrail=check_guardrail)

    def warn_once(self, message: str) -> None:
        """Logs a warning the first time that it occurs, outside of training."""
        if message not in self._warned and not self.training:
            self._warned.add(message)
            logger.warning(message)

    def merge_lora(self) -> None:
        """Merges the LoRA into the language model's weights, which a full export requires."""
        self.model.merge_lora()

    def save_pretrained(
        self, folder: str | os.PathLike[str], full: bool = False, dtype: torch.dtype | str | None = None
    ) -> None:
        """Writes the adapter (what was trained, and the ids of the base models), or everything with `full=True`.

        `dtype` is that of exported base models (see `TheWorldForConditionalGeneration.save_pretrained`).
        """
        self.model.save_pretrained(folder, full=full, dtype=dtype)

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        optimizer: torch.optim.Optimizer | None = None,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        """Writes the trained parts, the optimiser's state, epoch and step to one file, atomically."""
        checkpoint_file.save_checkpoint(self.model, path, optimizer, epoch, step)

    def load_checkpoint(
        self, path: str | os.PathLike[str], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, int | None]:
        """Loads a file of `save_checkpoint`, from which training continues exactly where the saved run stopped.

        Returns:
            `{"epoch": …, "step": …}`; None for a value that was not saved.

        Raises:
            ValueError: if the file is damaged, or was written for other base models or other parts than
                this model would save. Nothing changes then.
            FileNotFoundError: if there is no such file.
        """
        return checkpoint_file.load_checkpoint(self.model, path, optimizer)
