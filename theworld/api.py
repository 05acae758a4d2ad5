"""TheWorld: model and processor behind the calls people write.

model = TheWorld("nano")
answer = model.generate("scene.png", "Which bin will the ball land in: left, middle or right?", num_world_steps=4)
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from theworld import checkpoints, freezing
from theworld.configuration import TheWorldConfig
from theworld.images import load_image, load_images, to_frames, to_pixels
from theworld.loading import fingerprints
from theworld.modeling import TheWorldForConditionalGeneration, world_parts_for
from theworld.processing import TheWorldProcessor, prompts_each
from theworld.world_models import guardrail

logger = logging.getLogger(__name__)

DEFAULT_GEMMA = "google/gemma-3-4b-it"
DEFAULT_COSMOS = "nvidia/Cosmos-Predict2-2B-Video2World"
IGNORED = -100  # label of a token that is not learned
MODES = ("tokens", "frames")  # how the future reaches the language model: as world tokens, or as further pictures

Progress = Callable[[int, int], None]


class TheWorld(nn.Module):
    """A vision-language model that looks ahead.

    Args:
        model_name: a Gemma 3 model (Hub id or folder) to fuse afresh, or a trained TheWorld model (`nano`, folder, id).
        num_world_steps: future latent frames a call imagines unless it says otherwise; None means 0 for a fresh fusion
            and the model's own number for a trained one.
        cosmos_model_name: world model of a fresh fusion.
        freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae: False lets that part learn beside the projector.
        max_world_steps: rows of the temporal embedding of a fresh fusion.
        lora: LoRA on the language model of a fresh fusion, which learns beside the projector: its rank (alpha is twice
            that, on all linear layers), or peft's settings as a dict.
        dtype: None means bfloat16 on a GPU and float32 on a CPU.
        device: None means the first GPU, or the CPU.
        device_map: where Gemma's layers go (`"auto"`, or a dict of module and device), instead of `device`; the world
            model and the projector lie where the input embeddings lie.
        config: further fields of TheWorldConfig for a fresh fusion (`projector`, `spatial_merge`, …).

    Raises:
        ValueError: a model that cannot be read, or settings that do not fit together.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = DEFAULT_GEMMA,
        num_world_steps: int | None = None,
        cosmos_model_name: str = DEFAULT_COSMOS,
        freeze_gemma_vision: bool = True,
        freeze_gemma_language: bool = True,
        freeze_cosmos_vae: bool = True,
        max_world_steps: int = 16,
        *,
        lora: int | dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        **config: Any,
    ) -> None:
        super().__init__()
        name = os.fspath(model_name)
        place, dtype = _place(device, device_map, dtype)
        values = checkpoints.read_json(checkpoints.resolve(name), revision=config.get("vlm_revision"))
        if lora is not None:
            config["lora"] = lora
        if values.get("model_type") == TheWorldConfig.model_type:
            if config:
                raise ValueError(f"{name} is a trained model; {', '.join(config)} cannot be changed any more.")
            model = _load(name, num_world_steps, dtype, device_map=device_map)
        else:
            steps = num_world_steps or 0
            model = TheWorldForConditionalGeneration.from_base_models(
                name,
                cosmos_model_name,
                dtype=dtype,
                device_map=device_map,
                num_world_steps=steps,
                max_world_steps=max_world_steps,
                **config,
            )
        self._set(model, place)
        self._freeze(freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae)

    def _set(self, model: TheWorldForConditionalGeneration, place: torch.device | None) -> None:
        self.model = model if place is None else model.to(place)
        self.processor = TheWorldProcessor.from_config(model.config, model.bases_folder)
        tokens = self.processor.tokenizer.added_tokens_decoder.values()
        self._control_tokens = tuple(token.content for token in tokens if token.special)
        self._warned = False
        self.eval()  # as transformers hands models out; call train() to train

    def _freeze(self, vision: bool, language: bool, vae: bool) -> None:
        parts = [] if self.model.world is None else ["projector"]
        parts += ["lora"] if self.config.lora is not None else []
        parts += [
            part for part, frozen in (("vision", vision), ("language", language), ("vae_encoder", vae)) if not frozen
        ]
        freezing.train_only(self.model, parts)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | os.PathLike[str],
        checkpoint_name: str | None = None,
        *,
        num_world_steps: int | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        freeze_gemma_vision: bool = True,
        freeze_gemma_language: bool = True,
        freeze_cosmos_vae: bool = True,
    ) -> TheWorld:
        """A trained model from `nano`, a folder or the Hub.

        Args:
            checkpoint_name: a checkpoint inside it: `checkpoint-1000` or `checkpoint-1000/pytorch_model.bin`.
            num_world_steps: default of later calls; None keeps the model's own.
            revision: branch, tag or commit of a Hub repository.
            device_map: where Gemma's layers go, instead of `device`.

        Raises:
            ValueError: a model that cannot be read, or tensors that are not exactly those it should have.
        """
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        place, dtype = _place(device, device_map, dtype)
        self._set(_load(os.fspath(model_name), num_world_steps, dtype, checkpoint_name, revision, device_map), place)
        self._freeze(freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae)
        return self

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def config(self) -> TheWorldConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def projector_is_trained(self) -> bool:
        """Whether world tokens mean something to the language model; always true when there are none."""
        return self.model.world is None or "projector" in self.config.trained_parts

    def get_trainable_parameters(self) -> tuple[int, int, float]:
        """(trainable, total, percent) over the parts in memory."""
        rows = self.parameter_table()
        trainable, total = sum(row.trainable for row in rows), sum(row.total for row in rows)
        return trainable, total, 100.0 * trainable / total

    def parameter_table(self) -> list[freezing.PartCount]:
        """Parameters and trainable ones, a row a part in memory."""
        return freezing.count_parameters(self.model)

    def mode_of(self, mode: str | None = None, num_world_steps: int | None = None) -> str:
        """How a call with this `mode` would answer: `tokens`, `frames`, or `picture` where nothing is imagined or read.

        None means world tokens where the projector has learned to make them, and imagined frames where it has not.
        """
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}.")
        if self.model.world is None:
            return "picture"
        if (mode or ("tokens" if self.projector_is_trained else "frames")) == "tokens":
            return "tokens"
        steps = self.config.num_world_steps if num_world_steps is None else num_world_steps
        return "frames" if steps else "picture"

    # --------------------------------------------------------------------------------------------- from image to answer

    def prepare(
        self,
        image: Any,
        question: str | Sequence[str],
        answer: str | Sequence[str] | None = None,
        *,
        num_world_steps: int | None = None,
        seed: int = 0,
        enable_world: bool | None = None,
        world_prompt: str | Sequence[str] | None = None,
    ) -> BatchFeature:
        """Chat-formatted model inputs, left-padded, on this model's device.

        Args:
            image: one picture, several for one question, or with a list of questions one entry (or list) each; None
                asks without a picture.
            question: one or a list.
            answer: with it the answer's turn is added and `labels` hold its ids, -100 elsewhere.
            world_prompt: what the imagined future shows, one for all questions or one each.
        """
        questions = [question] if isinstance(question, str) else list(question)
        pictures = group_pictures(image, question)
        answers = [answer] if isinstance(answer, str) else answer
        if answers is not None and len(answers) != len(questions):
            raise ValueError(f"{len(questions)} questions were given with {len(answers)} answers.")
        for text in (*questions, *(answers or ())):
            check_text(text, self._control_tokens)
        chats = [user_turn(len(own), text) for own, text in zip(pictures, questions, strict=True)]
        prompts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        texts = prompts
        if answers is not None:
            texts = [prompt + text + "<end_of_turn>" for prompt, text in zip(prompts, answers, strict=True)]
        inputs = self.processor(
            images=pictures if any(pictures) else None,
            text=texts,
            num_world_steps=self.config.num_world_steps if num_world_steps is None else num_world_steps,
            seed=seed,
            enable_world=enable_world,
            world_prompt=world_prompt,
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the template has written <bos>
            return_tensors="pt",
        )
        if answers is not None:
            inputs["labels"] = self._answer_labels(inputs["input_ids"], answers)
        return inputs.to(self.device)

    def _answer_labels(self, input_ids: Tensor, answers: Sequence[str]) -> Tensor:
        """Labels (B, L): the ids of each answer and its end of turn, which close each left-padded row."""
        labels = torch.full_like(input_ids, IGNORED)
        for row, text in enumerate(answers):
            ids = self.processor.tokenizer(text + "<end_of_turn>", add_special_tokens=False)["input_ids"]
            if input_ids[row, -len(ids) :].tolist() != ids:
                raise AssertionError(f"the answer {text!r} is tokenised otherwise behind its prompt")
            labels[row, -len(ids) :] = input_ids[row, -len(ids) :]
        return labels

    def forward(
        self,
        image: Any,
        text: str | Sequence[str],
        labels: str | Sequence[str] | Tensor | None = None,
        num_world_steps: int | None = None,
        world_prompt: str | Sequence[str] | None = None,
    ) -> Any:
        """Logits, and the loss when there are labels.

        Args:
            image: as in `prepare`.
            text: the question or questions.
            labels: answers as text, or label ids (B, L) in step with `prepare(image, text)["input_ids"]`.
            num_world_steps: overrides the model's own number.
            world_prompt: as in `generate`.
        """
        self._warn_if_untrained()
        answers = None if isinstance(labels, Tensor) else labels
        inputs = self.prepare(image, text, answers, num_world_steps=num_world_steps, world_prompt=world_prompt)
        if isinstance(labels, Tensor):
            if labels.shape != inputs["input_ids"].shape:
                raise ValueError(
                    f"labels are {tuple(labels.shape)} but the prompt is {tuple(inputs['input_ids'].shape)}; give the "
                    "answers as text, or label ids in step with prepare(image, text)['input_ids']."
                )
            inputs["labels"] = labels.to(self.device)
        if "world_frames" in inputs:
            self._load_world_parts(*world_parts_for(int(inputs["num_world_steps"][0])))
        return self.model(**inputs)

    def generate(
        self,
        image: Any,
        question: str | Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        num_world_steps: int | None = None,
        *,
        seed: int = 0,
        enable_world: bool | None = None,
        world_latents: Tensor | None = None,
        world_prompt: str | Sequence[str] | None = None,
        mode: str | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The answer to one question, or a list of answers to a list of questions in one batch.

        Args:
            image: as in `prepare`.
            temperature: 0 is greedy.
            num_world_steps: overrides the model's own number.
            seed: another number imagines another future of the same picture.
            enable_world: False asks Gemma alone.
            world_latents: (n, C, T, h, w) to read instead of imagining, as `imagine` returns them.
            world_prompt: what the imagined future shows ("the cup is pushed to the left"), one for all questions or
                one each; None or an empty one leaves it to the picture. It needs a world model with a text encoder.
            mode: `tokens` reads the future as world tokens; `frames` shows it as further pictures, which needs no
                training; None takes tokens where the projector is trained (see `mode_of`).
            progress: called with (denoise steps done, of how many) while it imagines.
        """
        inputs, arguments = self._generation(
            image,
            question,
            max_new_tokens,
            temperature,
            num_world_steps,
            seed,
            enable_world,
            world_latents,
            world_prompt,
            mode,
            progress,
        )
        ids = self.model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :]
        answers = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        return answers[0] if isinstance(question, str) else answers

    def stream(
        self,
        image: Any,
        question: str,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        num_world_steps: int | None = None,
        *,
        seed: int = 0,
        enable_world: bool | None = None,
        world_latents: Tensor | None = None,
        world_prompt: str | Sequence[str] | None = None,
        mode: str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[str]:
        """The answer in pieces, as it is written; arguments as in `generate`."""
        inputs, arguments = self._generation(
            image,
            question,
            max_new_tokens,
            temperature,
            num_world_steps,
            seed,
            enable_world,
            world_latents,
            world_prompt,
            mode,
            progress,
        )
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        gone = Gone()
        with ThreadPoolExecutor(max_workers=1) as executor:
            arguments["stopping_criteria"] = StoppingCriteriaList([gone])
            writing = executor.submit(self.model.generate, **inputs, **arguments, streamer=streamer)
            # a failure would else leave the reader waiting for ever
            writing.add_done_callback(lambda done: streamer.end() if done.exception() else None)
            try:
                yield from streamer
                writing.result()
            finally:
                gone.reader = True  # the executor waits for the writer: not for the rest of its answer

    def _generation(
        self,
        image: Any,
        question: str | Sequence[str],
        max_new_tokens: int,
        temperature: float,
        num_world_steps: int | None,
        seed: int,
        enable_world: bool | None,
        world_latents: Tensor | None,
        world_prompt: str | Sequence[str] | None,
        mode: str | None,
        progress: Progress | None,
    ) -> tuple[BatchFeature, dict[str, Any]]:
        """Model inputs with the future already imagined, and `generate`'s arguments."""
        if world_latents is not None:
            if world_prompt is not None:
                raise ValueError("world_latents are imagined already, so no world_prompt can steer them; give one.")
            num_world_steps = world_latents.shape[2] - 1
        if enable_world is not False and image is not None:
            how = self.mode_of(mode, num_world_steps)
            if how == "picture" and any(prompts_each(world_prompt, None)):
                raise ValueError("a world prompt steers imagined steps, and num_world_steps is 0; ask for 1 or more.")
            if how == "frames":
                image, question = self._with_frames(
                    image, question, num_world_steps, seed, world_latents, world_prompt, progress
                )
            if how != "tokens":
                if mode is None:
                    self._warn_if_untrained()
                enable_world, world_latents, world_prompt = False, None, None
        inputs = self.prepare(
            image,
            question,
            num_world_steps=num_world_steps,
            seed=seed,
            enable_world=enable_world,
            world_prompt=world_prompt,
        )
        if "world_frames" in inputs:
            self._warn_if_untrained()
            frames, seeds, steps = (inputs.pop(name) for name in ("world_frames", "world_seeds", "num_world_steps"))
            prompts = inputs.pop("world_prompt", None)
            if world_latents is None:
                world_latents = self._imagine(frames, int(steps[0]), seeds.tolist(), progress, prompts)
            inputs["world_latents"] = world_latents.to(self.device)
        elif world_latents is not None:
            raise ValueError("world_latents were given, but the world is off or there is no picture.")
        if not 0 <= temperature < math.inf:  # written so that NaN fails
            raise ValueError(f"temperature is {temperature}; 0 is greedy, a larger number is freer.")
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        return inputs, {"max_new_tokens": max_new_tokens, **sampling}

    def _with_frames(
        self,
        image: Any,
        question: str | Sequence[str],
        num_world_steps: int | None,
        seed: int,
        world_latents: Tensor | None,
        world_prompt: str | Sequence[str] | None,
        progress: Progress | None,
    ) -> tuple[list[Any], str | list[str]]:
        """The pictures with the last frame of each imagined world step behind them, and the question introduced."""
        groups = group_pictures(image, question)
        if not all(groups):
            raise ValueError("imagined frames need a picture for each question.")
        every = self.config.world_images == "all"
        chosen = [picture for own in groups for picture in (own if every else own[:1])]
        if world_latents is None:
            prompts = prompts_each(world_prompt, len(groups))
            steering = [text for own, text in zip(groups, prompts, strict=True) for _ in (own if every else own[:1])]
            world_latents = self.imagine(chosen, num_world_steps, seed=seed, world_prompt=steering, progress=progress)
        factor = self.config.world_config.temporal_factor
        frames = iter(
            self.decode(world_latents, for_people=False)[:, factor::factor]
        )  # each (N, H, W, 3): where a world step ends
        shown, texts = [], []
        for own, text in zip(groups, [question] if isinstance(question, str) else question, strict=True):
            imagined = [frame for _ in (own if every else own[:1]) for frame in next(frames)]
            now, after = numbered(1, len(own)), numbered(len(own) + 1, len(own) + len(imagined))
            introduction = f"{now} what is there now. {after} what is imagined to happen next, in order of time."
            shown.append([*own, *imagined])
            texts.append(f"{introduction}\n\n{text}")
        return (shown[0], texts[0]) if isinstance(question, str) else (shown, texts)

    # --------------------------------------------------------------------------------------------------- the future

    def imagine(
        self,
        image: Any,
        num_world_steps: int | None = None,
        *,
        seed: int = 0,
        world_prompt: str | Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Latents of now and the imagined next moments, one row a picture: (n, C, 1 + num_world_steps, h, w).

        `world_prompt` says what they show, one for all pictures or one each.
        """
        steps = self.config.num_world_steps if num_world_steps is None else num_world_steps
        steps = self.config.check_world_steps(steps)
        inputs = self.processor.world_inputs(load_images(image), steps, seed, world_prompt)
        frames, seeds, prompts = inputs["world_frames"], inputs["world_seeds"].tolist(), inputs.get("world_prompt")
        return self._imagine(frames.to(self.device), steps, seeds, progress, prompts)

    @torch.no_grad()
    def _imagine(
        self,
        frames: Tensor,
        steps: int,
        seeds: Sequence[int],
        progress: Progress | None,
        world_prompt: Sequence[str] | None,
    ) -> Tensor:
        if world_prompt:
            self._world().check_takes_prompts()  # said before the transformer is loaded
        self._load_world_parts(*world_parts_for(steps))
        return self.model.world_latents_of(frames, steps, seeds, progress, world_prompt)

    @torch.no_grad()
    def encode(self, clip: Sequence[Any]) -> Tensor:
        """Latents (1, C, T, h, w) of true frames, 1 + 4·N of them: what a perfect rollout would have imagined."""
        self._load_world_parts("encoder")
        frames = to_frames([list(clip)], self.config.world_image_size)
        return self._world().encode(frames.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, for_people: bool = True) -> np.ndarray:
        """Latents (n, C, T, h, w) to frames (n, F, H, W, 3) uint8 that people can look at; F = 1 + 4·(T - 1).

        With NVIDIA's weights the frames pass NVIDIA's guardrail first.

        Args:
            for_people: False for frames that no person sees, such as a picture for the language model to read.

        Raises:
            ValueError: no guardrail where one is needed, or frames that it refuses.
        """
        checked = for_people and self.needs_guardrail
        if checked:
            guardrail.require_installed()  # said before anything is loaded
        self._load_world_parts("decoder")
        frames = to_pixels(self._world().decode(latents.to(self.device)))
        return guardrail.check_frames(frames, self.device) if checked else frames

    @property
    def needs_guardrail(self) -> bool:
        """Whether NVIDIA's guardrail checks people's world prompts, and the frames that people see."""
        return bool(self._world().needs_guardrail)

    def _world(self) -> Any:
        if self.model.world is None:
            raise ValueError("this model was trained with the world off (enable_world=False); it cannot imagine.")
        return self.model.world

    def _load_world_parts(self, *parts: str) -> None:
        """Loads what a call needs and the model does not have yet, from where the world model came from."""
        world = self._world()
        missing = [part for part in parts if part not in world.parts]
        if missing:
            logger.info("loading the world model's %s", " and ".join(missing))
            world.load_parts(*missing)

    def _warn_if_untrained(self) -> None:
        if not self.projector_is_trained and not self.training and not self._warned:
            self._warned = True
            logger.warning(
                "The projector of this model is untrained, so its world tokens mean nothing to the language model yet: "
                "unless mode='tokens' asks for them, answers come from imagined frames shown as pictures, or with 0 "
                "world steps from the picture alone; train it, or load a trained model with TheWorld.from_pretrained."
            )

    # ------------------------------------------------------------------------------------------------ checkpoints

    def merge_lora(self) -> None:
        """Adds what the LoRA learned to the language model's weights, so that everything can be exported."""
        self.model.merge_lora()

    def save_pretrained(self, folder: str | os.PathLike[str], full: bool = False) -> None:
        """Writes the adapter (what was trained, and the bases' ids), or everything with `full=True`."""
        self.model.save_pretrained(folder, full=full)

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        optimizer: torch.optim.Optimizer | None = None,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        """Writes what was trained, the optimiser's state, epoch and step to one file, all or nothing."""
        path = Path(path)
        tensors = self.model.adapter_tensors()
        content = {
            "model": {name: tensor.detach().cpu() for name, tensor in tensors.items()},
            "bases": fingerprints(self.model, self._parts_outside(tensors)),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "epoch": epoch,
            "step": step,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        side = path.with_name(f".{path.name}.writing")
        try:
            torch.save(content, side)
            os.replace(side, path)
        finally:
            side.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | os.PathLike[str], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, int | None]:
        """Reads a file of `save_checkpoint` back; it must hold exactly the parts this model has in training.

        The next step is then the one that the saved run would have taken.

        Returns:
            `{"epoch": …, "step": …}`, None where none was saved.

        Raises:
            ValueError: damaged, not such a file, or of another base or other parts; nothing has changed then.
            FileNotFoundError: no such file.
        """
        content = checkpoints.read_pickle(Path(path))
        named = all(isinstance(content.get(name), dict) for name in ("model", "bases"))
        if not named or not {"optimizer", "epoch", "step"} <= set(content):
            raise ValueError(f"{path} was not written by save_checkpoint.")
        expected = self.model.adapter_tensors()
        checkpoints.check_tensors(expected, content["model"], str(path))
        bases = fingerprints(self.model, self._parts_outside(expected))
        for part in bases.keys() & content["bases"].keys():
            if bases[part] != content["bases"][part]:
                raise ValueError(f"{path} was made for another base: the frozen {part} part has other weights there.")
        if optimizer is not None:
            if content["optimizer"] is None:
                raise ValueError(f"{path} holds no optimiser state; load it without optimizer=.")
            try:
                optimizer.load_state_dict(content["optimizer"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} holds the state of another optimiser, or of one over other parameters ({error})."
                ) from error
        checkpoints.copy_tensors(expected, content["model"], str(path))
        return {"epoch": content["epoch"], "step": content["step"]}

    def _parts_outside(self, tensors: Iterable[str]) -> list[str]:
        """Parts in memory that a checkpoint of these tensors does not hold, so that they must be the same again."""
        inside = {freezing.part_of(name) for name in tensors}
        return [row.part for row in self.parameter_table() if row.part not in inside]


def _place(
    device: str | torch.device | None, device_map: Any, dtype: torch.dtype | None
) -> tuple[torch.device | None, torch.dtype]:
    """Where a model goes, None where `device_map` says it, and the type of its weights."""
    if device is not None and device_map is not None:
        raise ValueError("device and device_map were both given; give one.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    return (place if device_map is None else None), dtype


def _load(
    name: str,
    num_world_steps: int | None,
    dtype: torch.dtype,
    checkpoint_name: str | None = None,
    revision: str | None = None,
    device_map: Any = None,
) -> TheWorldForConditionalGeneration:
    """A trained model whose default number of world steps may be another than the one it was saved with."""
    model = TheWorldForConditionalGeneration.from_pretrained(
        name,
        dtype=dtype,
        revision=revision,
        checkpoint_name=checkpoint_name,
        world_parts=("encoder",),
        **({} if device_map is None else {"device_map": device_map}),
    )
    if num_world_steps is not None:
        model.config.num_world_steps = model.config.check_world_steps(num_world_steps)
    return model


class Gone(StoppingCriteria):
    """Stops writing after the token at hand when nobody reads any more: Ctrl-C, or a loop that was left."""

    reader = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.reader, device=input_ids.device)


def check_text(text: str, control_tokens: Iterable[str]) -> None:
    """Raises a ValueError for text that would be read as more than text.

    A tokenizer takes the name of a control token for the token, wherever it stands: a question could end its own turn,
    answer itself, or bring placeholders that nothing fills. What people and data sets write is text, so it is refused;
    prompts with control tokens of one's own are for the processor.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} has bytes in it that are no text; write it in UTF-8.") from error
    for token in control_tokens:
        if token in text:
            raise ValueError(
                f"The text has {token!r} in it, which is a control token of the language model and would be "
                "read as one; write it another way."
            )


def user_turn(num_pictures: int, question: str) -> list[dict[str, Any]]:
    """A chat of one user turn: pictures first, then the question."""
    return [{"role": "user", "content": [*[{"type": "image"}] * num_pictures, {"type": "text", "text": question}]}]


def numbered(first: int, last: int) -> str:
    """`Picture 1 shows`, `Pictures 2 to 5 show`."""
    return f"Picture {first} shows" if first == last else f"Pictures {first} to {last} show"


def group_pictures(image: Any, question: str | Sequence[str]) -> list[list[Any]]:
    """One list of loaded pictures a question."""
    if isinstance(question, str):
        return [[] if image is None else load_images(image)]
    questions = list(question)
    if image is None:
        return [[] for _ in questions]
    items = list(image) if isinstance(image, (list, tuple, np.ndarray, Tensor)) else [image]
    if len(items) != len(questions):
        raise ValueError(f"{len(items)} pictures were given for {len(questions)} questions; give one entry each.")
    return [load_images(item) if isinstance(item, (list, tuple)) else [load_image(item)] for item in items]
