"""The web application: addresses, errors and the OpenAPI description."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response, StreamingResponse

import theworld
from theworld.serving import schemas
from theworld.serving.engine import Engine
from theworld.serving.errors import DOCUMENTED, RequestError, as_request_error, invalid
from theworld.serving.guard import LEFT, Guard
from theworld.serving.media import MediaReader
from theworld.serving.metrics import CONTENT_TYPE, Metrics
from theworld.serving.service import ClientLeft, Service
from theworld.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

NO_CACHE = {"Cache-Control": "no-cache"}
EVENT = {  # of a stream
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A chunk of the answer in JSON; [DONE] is the last one."}},
    "required": ["data"],
}
ALWAYS = (401, 403, 500)
POST = (*ALWAYS, 400, 404, 408, 413, 415, 429, 503, 504)


def create_app(engine: Engine, settings: ServerSettings, metrics: Metrics, media: MediaReader | None = None) -> FastAPI:
    """The application of a server; it starts the engine, and closes it at the end.

    Args:
        media: replaces the reader of images and videos, for tests.
    """
    reader = MediaReader(settings) if media is None else media
    service = Service(engine, reader, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with reader:
            engine.start()
            yield
            if engine.model is not None:  # a model that is being loaded is not waited for
                await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="TheWorld",
        version=theworld.__version__,
        description="A vision-language model that looks ahead, behind OpenAI's chat completions.",
        docs_url=None,  # its scripts come from the network
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, settings=settings, engine=engine, metrics=metrics)
    if settings.allow_origins:  # outside the guard: browsers ask for leave without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    add_errors(app)

    @app.post(
        "/v1/chat/completions",
        response_model=schemas.ChatCompletion,
        responses=errors(*POST) | {200: {"content": {"text/event-stream": {"schema": EVENT}}}},
    )
    async def chat_completions(body: schemas.ChatRequest, request: Request) -> Any:
        end = asyncio.get_running_loop().time() + settings.timeout
        if not body.stream:
            return await service.in_time(request, service.completion(body), end)
        chunks = service.chunks(body)
        first = await service.in_time(request, anext(chunks), end)
        return StreamingResponse(
            server_sent(service, first, chunks, end, shows_usage=service.shows_usage(body)),
            media_type="text/event-stream",
            headers=NO_CACHE,
        )

    @app.post("/v1/videos/generate", response_model=schemas.GeneratedVideo, responses=errors(*POST))
    async def generate_video(body: schemas.VideoRequest, request: Request) -> Any:
        end = asyncio.get_running_loop().time() + settings.timeout
        return await service.in_time(request, service.video(body), end)

    @app.get("/v1/models", response_model=schemas.ModelList, responses=errors(*ALWAYS, 503))
    async def models() -> Any:
        return schemas.ModelList(data=[service.card()])

    @app.get("/v1/models/{name:path}", response_model=schemas.ModelCard, responses=errors(*ALWAYS, 404, 503))
    async def model(name: str) -> Any:
        service.check_model(name)
        return service.card()

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=schemas.Health, responses=errors(503))
    async def health() -> Any:
        _ = service.model
        return schemas.Health(status="ready")

    @app.get("/metrics", responses=errors(*ALWAYS) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def report() -> Response:
        metrics.ready.set(engine.model is not None)
        metrics.latents.set(service.latents.size)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    describe(app, settings)
    return app


async def server_sent(
    service: Service,
    first: schemas.ChatCompletionChunk,
    chunks: AsyncGenerator[schemas.ChatCompletionChunk, None],
    end: float,
    *,
    shows_usage: bool,
) -> AsyncIterator[str]:
    """The chunks of an answer as server-sent events; an error is the last one."""
    async with aclosing(chunks):
        try:
            chunk: schemas.ChatCompletionChunk | None = first
            while chunk is not None:
                yield event_of(chunk, shows_usage)
                async with asyncio.timeout_at(end):  # not around `yield`, where it would end the sending instead
                    chunk = await anext(chunks, None)
            yield "data: [DONE]\n\n"
        except TimeoutError:
            yield f"data: {json.dumps(service.too_late().body)}\n\n"
        except Exception as error:  # noqa: BLE001 - the client must read about any of them
            yield f"data: {json.dumps(as_request_error(error).body)}\n\n"


def event_of(chunk: schemas.ChatCompletionChunk, shows_usage: bool) -> str:
    content = chunk.model_dump(exclude_none=True)
    if shows_usage:
        content.setdefault("usage", None)  # as OpenAI's chunks have it
    for choice in content["choices"]:
        choice.setdefault("finish_reason", None)  # clients wait for it
    return f"data: {json.dumps(content)}\n\n"


def add_errors(app: FastAPI) -> None:
    """Turns every exception into OpenAI's error body."""

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return error.response()
        assert isinstance(error, HTTPException)
        message = {404: f"There is nothing at {request.url.path}.", 405: "This address has another method."}
        plain = RequestError(error.status_code, message.get(error.status_code, error.detail), headers=error.headers)
        return plain.response()

    async def unfit(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if not request.headers.get("content-type", "").partition(";")[0].strip().lower().endswith("json"):
            return RequestError(415, "Send the body with the header Content-Type: application/json.").response()
        return invalid(error.errors(), error.body).response()

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=LEFT)

    async def failed(request: Request, error: Exception) -> Response:
        return as_request_error(error).response()

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(ClientLeft, left)
    for kind in (ValueError, RuntimeError, OSError, LookupError, TypeError, ArithmeticError, AttributeError):
        app.add_exception_handler(kind, failed)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error answers."""
    return {status: {"model": schemas.ErrorBody, "description": DOCUMENTED[status][1]} for status in statuses}


def describe(app: FastAPI, settings: ServerSettings) -> None:
    """Describes the server as it is: errors of the schema have status 400, and the key is named."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            content = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in content["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                content["components"]["schemas"].pop(name, None)
            if settings.api_key is not None:
                content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                content["security"] = [{"key": []}]
                content["paths"]["/health"]["get"]["security"] = []
            app.openapi_schema = content
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
