"""Requests and answers of the server, in the form of OpenAI's API with the fields of world models added."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

INT64 = 2**63

Address = Annotated[
    str, Field(min_length=1, description="A `data:` address with the content in base64, or an http(s) address.")
]
Fps = Annotated[float | None, Field(gt=0, le=1000, description="Frames per second; by default those of the file.")]
WorldSteps = Annotated[int | None, Field(ge=0, description="Future latent frames to imagine; by default the model's.")]
Seed = Annotated[
    int | None,
    Field(ge=-INT64, lt=INT64, description="Another value gives another future, and other samples."),
]
WorldPrompt = Annotated[str | None, Field(description="Text that steers the future; for models with a text encoder.")]
Zero = Annotated[float | None, Field(ge=0, le=0, description="Not supported.")]
Empty = Annotated[list[Any] | None, Field(max_length=0, description="Not supported.")]
AttachmentFormat: TypeAlias = Literal["gif", "mp4"]
MimeType: TypeAlias = Literal["image/gif", "video/mp4"]
Mode: TypeAlias = Literal["tokens", "frames", "off"]
FinishReason: TypeAlias = Literal["stop", "length"]


class Request(BaseModel):
    """A part of a request; fields that it does not have are ignored, and named in the answer (`ignored_fields`)."""

    model_config = ConfigDict(extra="allow", strict=True)

    @field_validator("*")
    @classmethod
    def is_utf8(cls, value: Any) -> Any:
        """Raises a ValueError for halves of characters, which JSON can hold and UTF-8 cannot."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii() and re.search("[\ud800-\udfff]", text):
                raise ValueError("the text is not valid UTF-8")
        return value


# ---------------------------------------------------------------------------------------------------- parts of a turn


class TextPart(Request):
    type: Literal["text"]
    text: str


class ImageUrl(Request):
    url: Address
    detail: Literal["auto", "low", "high", "original"] | None = None  # images of any size are read as one square


class ImagePart(Request):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Request):
    """A video file; its last frame is the present."""

    url: Address
    fps: Fps = None


class VideoPart(Request):
    type: Literal["video_url"]
    video_url: VideoUrl


class Frames(Request):
    """The frames of a video in order of time; the last one is the present."""

    urls: Annotated[list[Address], Field(min_length=1)]
    fps: Fps = None


class FramesPart(Request):
    type: Literal["frames"]
    frames: Frames


MediaPart: TypeAlias = ImagePart | VideoPart | FramesPart
UserPart = Annotated[TextPart | ImagePart | VideoPart | FramesPart, Field(discriminator="type")]


# -------------------------------------------------------------------------------------------------------------- turns


class SystemMessage(Request):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(Request):
    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(min_length=1)]
    name: str | None = None


class AssistantMessage(Request):
    """An earlier answer; the fields after `name` are those of OpenAI's answers, and must be empty."""

    role: Literal["assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: str | None = None
    annotations: Empty = None
    tool_calls: Empty = None
    audio: None = None
    function_call: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


# ----------------------------------------------------------------------------------------------------------- requests


class StreamOptions(Request):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(Request):
    type: Literal["text"]


class ChatRequest(Request):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1, description="The same as max_completion_tokens.")] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, description="Tokens of the answer; by default 128.")] = (
        None
    )
    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="0, the default, is greedy decoding; above, tokens are sampled.")
    ] = None
    top_p: Annotated[float | None, Field(ge=0, le=1, description="The nucleus that is sampled from.")] = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[bool | None, Field(description="Log-probabilities of the tokens, before temperature.")] = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    # world models
    num_world_steps: WorldSteps = None
    seed: Seed = None
    mode: Annotated[
        Mode | None,
        Field(description="How the future reaches the language model; off answers without the world model."),
    ] = None
    world_prompt: WorldPrompt = None
    futures: Annotated[
        int | None,
        Field(ge=1, le=16, description="Futures that are imagined, with consecutive seeds; the most frequent answer."),
    ] = None
    attachment: Annotated[
        AttachmentFormat | None, Field(description="Adds what was imagined to the answer, as a GIF or MP4 in base64.")
    ] = None
    # accepted, and without effect on the answer
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    # accepted only where they have no effect
    n: Annotated[int | None, Field(ge=1, le=1, description="1 answer per request.")] = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    repetition_penalty: Annotated[float | None, Field(ge=1, le=1, description="Not supported.")] = None
    top_k: Annotated[int | None, Field(ge=-1, le=0, description="Not supported.")] = None
    min_p: Zero = None
    min_tokens: Annotated[int | None, Field(ge=0, le=0, description="Not supported.")] = None
    ignore_eos: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0, description="Not supported.")] = None
    tools: Empty = None
    functions: Empty = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]] | None, Field(max_length=1)] = None


class VideoRequest(Request):
    """Imagines what follows one image or video: exactly one of `image`, `video` and `frames` is given."""

    model: str
    image: Address | None = None
    video: VideoUrl | None = None
    frames: Frames | None = None
    num_world_steps: Annotated[int | None, Field(ge=1, description="Future latent frames; by default the model's.")] = (
        None
    )
    seed: Seed = None
    world_prompt: WorldPrompt = None
    format: AttachmentFormat = "gif"


def ignored_fields(value: Any, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """The fields of a request that are not in its schema: their paths, their names, and the names that there are."""
    if isinstance(value, Request):
        known = list(type(value).model_fields)
        for name in value.model_extra or {}:
            yield f"{path}{name}", name, known
        for name in known:
            yield from ignored_fields(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from ignored_fields(each, f"{path[:-1]}[{number}].")


# ------------------------------------------------------------------------------------------------------------ answers

Warnings = Annotated[list[str], Field(description="Fields of the request that were ignored.")]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class Attachment(BaseModel):
    """A file with what was imagined, after what was seen."""

    mime_type: MimeType
    num_frames: int
    num_past_frames: int
    fps: float
    data: Annotated[str, Field(description="The file in base64.")]


class FutureShare(BaseModel):
    """An answer, and the share of the futures that give it."""

    answer: str
    share: float


class World(BaseModel):
    """How the world model was used; `num_world_steps` is 0 and `mode` is off if it was not."""

    mode: Mode
    num_world_steps: int
    seconds_per_world_step: float
    seed: int
    futures: Annotated[
        list[FutureShare] | None, Field(description="With several futures, the most frequent first.")
    ] = None
    attachment: Attachment | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    world: World
    warnings: Warnings = []


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    world: World | None = None
    warnings: Warnings | None = None


class GeneratedVideo(BaseModel):
    id: str
    object: Literal["video"] = "video"
    created: int
    model: str
    num_world_steps: int
    seconds_per_world_step: float
    seed: int
    video: Attachment
    warnings: Warnings = []


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "theworld"
    num_world_steps: int
    max_world_steps: int
    reads_videos: bool
    modes: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ready"]
