"""From a request that was read to jobs of the engine, and from their events to answers."""

from __future__ import annotations

import asyncio
import base64
import difflib
import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar, cast

from starlette.requests import Request

from theworld.inference.options import MAX_NEW_TOKENS
from theworld.inference.pipeline import TheWorld
from theworld.media.export import encode_rollout, moment_labels
from theworld.model.call_plan import CallPlan, steps_to_imagine, world_parts_for
from theworld.serving import schemas
from theworld.serving.chat import read_messages
from theworld.serving.decoding import Decoding, TokenScore
from theworld.serving.engine import ARRIVAL, Engine
from theworld.serving.errors import RequestError
from theworld.serving.jobs import Answer, AnswerJob, Event, ImagineJob, Job, Piece, Shown
from theworld.serving.latents import LatentCache
from theworld.serving.media import MediaReader
from theworld.serving.metrics import Metrics
from theworld.serving.settings import ServerSettings

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

MISSPELLED = 0.85  # similarity of names
MAX_NAME = 100  # characters
MAX_WARNINGS = 16  # in an answer
MAX_LOGGED = 20  # names
MIME_TYPES: dict[str, schemas.MimeType] = {"gif": "image/gif", "mp4": "video/mp4"}


class ClientLeft(Exception):
    """The client has closed its connection."""


class Service:
    """What the addresses of the server do.

    Args:
        engine: does the jobs.
        media: reads images and videos.
    """

    def __init__(self, engine: Engine, media: MediaReader, settings: ServerSettings, metrics: Metrics) -> None:
        self.engine, self.media, self.settings, self.metrics = engine, media, settings, metrics
        self.created = int(time.time())
        self.latents = LatentCache(settings.cache_bytes)
        self._logged: set[str] = set()

    @property
    def model(self) -> TheWorld:
        if self.engine.model is None:
            raise RequestError(503, "The model is being loaded.", code="loading", headers={"Retry-After": "5"})
        return self.engine.model

    def check_model(self, name: str) -> None:
        if name != self.settings.name:
            message = f"There is no model {name!r} here; this server has {self.settings.name!r}."
            raise RequestError(404, message, param="model", code="model_not_found")

    def card(self) -> schemas.ModelCard:
        config = self.model.config
        with_world = ["tokens", "frames"] if config.enable_world else []
        return schemas.ModelCard(
            id=self.settings.name,
            created=self.created,
            num_world_steps=self.model.plan().num_world_steps,
            max_world_steps=config.max_world_steps if config.enable_world else 0,
            reads_videos=config.enable_world and config.max_past_steps > 0,
            modes=[*with_world, "off"],
        )

    def warnings(self, body: schemas.Request) -> list[str]:
        """What the answer says about the fields that are ignored, as clients send many; each is logged once.

        Raises:
            RequestError: for a field whose name is nearly that of another one.
        """
        found = []
        for path, name, known in itertools.islice(schemas.ignored_fields(body), MAX_WARNINGS):
            shown = ascii(path[:MAX_NAME])
            if close := difflib.get_close_matches(name[:MAX_NAME], known, 1, MISSPELLED):
                raise RequestError(400, f"There is no field {shown}; did you mean {close[0]!r}?", param=path[:MAX_NAME])
            found.append(f"There is no field {shown}; it was ignored.")
            if name not in self._logged and len(self._logged) < MAX_LOGGED and len(name) < MAX_NAME:
                self._logged.add(name)
                logger.warning("Requests have the field %s, which is ignored.", ascii(name))
        return found

    # ---------------------------------------------------------------------------------------------------------- jobs

    async def answer_job(self, body: schemas.ChatRequest) -> AnswerJob:
        """The job of a chat request, checked as far as possible without the model's time.

        Raises:
            RequestError, ValueError: if something is wrong with the request.
        """
        self.check_model(body.model)
        config, decoding = self.model.config, self.decoding_of(body)
        question, parts = read_messages(body.messages)
        characters = sum(len(text) for text in _texts(body))
        if characters > 16 * self.settings.max_prompt_tokens:
            raise RequestError(400, f"The prompt has {characters:,} characters: make it shorter.", param="messages")
        images = await self.media.read(parts, config)
        past = 0
        if not images or body.mode == "off":
            plan = CallPlan("off", 0, ())
        else:
            if config.enable_world:
                (read,) = self.model.processor.with_world([images])
                past = self.model.processor.num_past_steps(read)
            plan = self.model.plan(body.mode, body.num_world_steps, past)
        if plan.mode == "off" and (body.num_world_steps or body.mode not in (None, "off")):
            reason = "without an image" if not images else "in mode off" if body.mode == "off" else "by this model"
            raise RequestError(400, f"Nothing is imagined {reason}; leave out num_world_steps and mode.")
        if body.world_prompt and not plan.num_world_steps:
            raise RequestError(400, "world_prompt has no effect without imagined steps.", param="world_prompt")
        if plan.mode == "frames" and not isinstance(question, str):
            raise RequestError(
                400,
                "Mode frames answers single messages with one text; use mode tokens or off for chats.",
                param="mode",
            )
        if body.attachment and not plan.num_world_steps:
            raise RequestError(400, "attachment needs 1 world step or more.", param="attachment")
        futures = body.futures or 1
        if futures > 1 and (body.stream or not plan.num_world_steps):
            reason = "cannot be streamed" if body.stream else "need an image and 1 world step or more"
            raise RequestError(400, f"Answers from several futures {reason}.", param="futures")
        return AnswerJob(
            images,
            plan,
            body.seed or 0,
            (body.world_prompt or "").strip() or None,
            num_past_steps=past,
            latents=self.latents,
            question=question,
            decoding=decoding,
            stream=bool(body.stream),
            shows_rollout=body.attachment is not None,
            max_prompt_tokens=self.settings.max_prompt_tokens,
            futures=futures,
        )

    def decoding_of(self, body: schemas.ChatRequest) -> Decoding:
        limit = self.settings.max_new_tokens
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise RequestError(400, "max_tokens and max_completion_tokens are the same; give one.", param="max_tokens")
        length = body.max_completion_tokens or body.max_tokens or min(MAX_NEW_TOKENS, limit)
        if length > limit:
            raise RequestError(
                400, f"max_tokens is {length:,}; this server writes {limit:,} at most.", param="max_tokens"
            )
        if body.top_logprobs and not body.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        if body.stream_options is not None and not body.stream:
            raise RequestError(400, "stream_options needs stream to be true.", param="stream_options")
        return Decoding(
            length,
            body.temperature or 0.0,
            1.0 if body.top_p is None else body.top_p,
            body.seed,
            (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            (body.top_logprobs or 0) if body.logprobs else None,
        )

    async def imagine_job(self, body: schemas.VideoRequest) -> ImagineJob:
        """The job of a request for a video; raises as `answer_job`."""
        self.check_model(body.model)
        parts: list[tuple[str, schemas.MediaPart]] = []
        if body.image is not None:
            url = schemas.ImageUrl(url=body.image)
            parts.append(("image", schemas.ImagePart(type="image_url", image_url=url)))
        if body.video is not None:
            parts.append(("video", schemas.VideoPart(type="video_url", video_url=body.video)))
        if body.frames is not None:
            parts.append(("frames", schemas.FramesPart(type="frames", frames=body.frames)))
        if len(parts) != 1:
            raise RequestError(400, "Give exactly one of image, video and frames.")
        config = self.model.config
        if not config.enable_world:
            raise RequestError(400, "This model has no world model, so it cannot imagine.")
        steps = steps_to_imagine(config, body.num_world_steps)
        images = await self.media.read(parts, config)
        return ImagineJob(
            images,
            CallPlan("frames", steps, world_parts_for(steps, "frames")),
            body.seed or 0,
            (body.world_prompt or "").strip() or None,
            num_past_steps=self.model.processor.num_past_steps(images),
            latents=self.latents,
        )

    # -------------------------------------------------------------------------------------------------------- events

    async def events(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job; closing the iterator cancels the job.

        Raises:
            RequestError: instead of an event that is one.
        """
        queue, loop = asyncio.Queue[Event](), asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event)

        job.deliver = deliver
        self.engine.add(job)
        ARRIVAL.get().end()
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            self.engine.cancel(job)

    async def result(self, job: Job) -> Any:
        """The last event of a job."""
        async with aclosing(self.events(job)) as events:
            async for event in events:
                last = event
        return last

    # -------------------------------------------------------------------------------------------------------- answers

    def count(self, answer: Answer) -> schemas.Usage:
        self.metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(answer.completion_tokens)
        return schemas.Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            total_tokens=answer.prompt_tokens + answer.completion_tokens,
        )

    async def world(self, job: Job, answer: Answer, extension: str | None) -> schemas.World:
        shares = [schemas.FutureShare(answer=text, share=share) for text, share in answer.shares.items()]
        shown = answer.imagined
        return schemas.World(
            mode=cast(schemas.Mode, job.plan.mode),
            num_world_steps=job.plan.num_world_steps,
            seconds_per_world_step=self.model.config.world_config.seconds_per_world_step,
            seed=job.seed,
            futures=shares or None,
            attachment=None if shown is None else await self.attachment(shown, extension or "gif"),
        )

    async def attachment(self, shown: Shown, extension: str) -> schemas.Attachment:
        fps = self.model.config.world_config.fps
        labels = moment_labels(shown.num_past, len(shown.frames), fps) if shown.num_past else None
        content = await asyncio.to_thread(encode_rollout, shown.frames, f".{extension}", fps, labels=labels)
        return schemas.Attachment(
            mime_type=MIME_TYPES[extension],
            num_frames=len(shown.frames),
            num_past_frames=shown.num_past,
            fps=fps,
            data=base64.b64encode(content).decode("ascii"),
        )

    async def completion(self, body: schemas.ChatRequest) -> schemas.ChatCompletion:
        """Answers a request at once."""
        warnings = self.warnings(body)
        job = await self.answer_job(body)
        answer: Answer = await self.result(job)
        choice = schemas.Choice(
            message=schemas.AnswerMessage(content=answer.text),
            logprobs=None if answer.scores is None else logprobs_of(answer.scores),
            finish_reason=answer.finish_reason,
        )
        return schemas.ChatCompletion(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.settings.name,
            choices=[choice],
            usage=self.count(answer),
            world=await self.world(job, answer, body.attachment),
            warnings=warnings,
        )

    async def chunks(self, body: schemas.ChatRequest) -> AsyncGenerator[schemas.ChatCompletionChunk, None]:
        """Answers a request piece by piece; the first chunk comes when the answer has begun."""
        warnings = self.warnings(body)
        job = await self.answer_job(body)
        name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

        def chunk(delta: schemas.Delta | None = None, **values: Any) -> schemas.ChatCompletionChunk:
            further = {key: values.pop(key) for key in ("usage", "world", "warnings") if key in values}
            choices = [] if delta is None else [schemas.ChunkChoice(delta=delta, **values)]
            return schemas.ChatCompletionChunk(
                id=name, created=created, model=self.settings.name, choices=choices, **further
            )

        begun = False
        async with aclosing(self.events(job)) as events:
            async for event in events:
                if not begun:
                    yield chunk(schemas.Delta(role="assistant", content=""))
                    begun = True
                if isinstance(event, Piece):
                    scores = logprobs_of(event.scores) if job.decoding.top_logprobs is not None else None
                    yield chunk(schemas.Delta(content=event.text), logprobs=scores)
                elif isinstance(event, Answer):
                    answer = event
        world = await self.world(job, answer, body.attachment)
        yield chunk(schemas.Delta(), finish_reason=answer.finish_reason, world=world, warnings=warnings)
        usage = self.count(answer)
        if self.shows_usage(body):
            yield chunk(usage=usage)

    @staticmethod
    def shows_usage(body: schemas.ChatRequest) -> bool:
        return body.stream_options is not None and bool(body.stream_options.include_usage)

    async def video(self, body: schemas.VideoRequest) -> schemas.GeneratedVideo:
        warnings = self.warnings(body)
        job = await self.imagine_job(body)
        shown: Shown = await self.result(job)
        return schemas.GeneratedVideo(
            id=f"video-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.settings.name,
            num_world_steps=job.plan.num_world_steps,
            seconds_per_world_step=self.model.config.world_config.seconds_per_world_step,
            seed=job.seed,
            video=await self.attachment(shown, body.format),
            warnings=warnings,
        )

    async def in_time(self, request: Request, work: Awaitable[Result], end: float) -> Result:
        """What `work` returns, unless the time is up or the client leaves before.

        Args:
            end: on the event loop's clock.
        """
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(disconnected(request))
        try:
            wait = end - asyncio.get_running_loop().time()
            await asyncio.wait({task, left}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if left.done():
                raise ClientLeft
            raise self.too_late()
        finally:
            task.cancel()
            left.cancel()
            await asyncio.gather(task, left, return_exceptions=True)

    def too_late(self) -> RequestError:
        return RequestError(504, f"The answer was not complete within {self.settings.timeout:g} s.", code="timeout")


async def disconnected(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def logprobs_of(scores: list[TokenScore]) -> schemas.Logprobs:
    def one(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode())}

    return schemas.Logprobs(
        content=[
            schemas.TokenLogprob(
                **one(score.token, score.logprob), top_logprobs=[schemas.TopLogprob(**one(*each)) for each in score.top]
            )
            for score in scores
        ]
    )


def _texts(body: schemas.ChatRequest) -> list[str]:
    contents = [message.content for message in body.messages]
    return [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [getattr(part, "text", "") for part in content])
    ]
