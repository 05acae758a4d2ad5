"""Errors of the server in the form of OpenAI's: a status, and a body with one sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from starlette.exceptions import HTTPException
from starlette.responses import Response

logger = logging.getLogger(__name__)

# status -> (type, what the documentation says)
DOCUMENTED = {
    400: ("invalid_request_error", "The request cannot be answered; the message says why."),
    401: ("authentication_error", "The API key is missing or wrong."),
    403: ("permission_error", "The request was made under the name of another host."),
    404: ("not_found_error", "There is no such model or address."),
    405: ("invalid_request_error", "This address has another method."),
    408: ("timeout_error", "The request did not arrive completely in time."),
    413: ("invalid_request_error", "The request is too large."),
    415: ("invalid_request_error", "The body is not sent as application/json."),
    429: ("rate_limit_error", "Too many requests wait; `Retry-After` says in how many seconds to ask again."),
    500: ("server_error", "A fault of the server, which its log describes."),
    503: ("server_error", "The model is being loaded, the server is stopping, or its memory is used up."),
    504: ("timeout_error", "The answer was not complete in time."),
}


class RequestError(HTTPException):
    """Ends a request with a status and OpenAI's error body.

    Args:
        message: one sentence.
        param: the field of the request that is wrong.
        code: a name for programs, such as `model_not_found`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        kind = DOCUMENTED.get(self.status_code, ("invalid_request_error",))[0]
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body, self.status_code, self.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, which also holds what UTF-8 cannot encode."""
    return Response(json.dumps(content), status, headers, "application/json")


def as_request_error(error: Exception) -> RequestError:
    """What a client reads about an exception of the model; faults of this program are logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        logger.error("The memory is used up: %s", error)
        return RequestError(503, "The server has not enough memory for this request.", code="out_of_memory")
    if isinstance(error, ValueError):
        return RequestError(400, " ".join(str(error).split()))
    logger.error("A request failed.", exc_info=error)
    return RequestError(500, "The server failed to answer; its log says why.", code="internal_error")


def invalid(errors: Sequence[Mapping[str, Any]], body: Any) -> RequestError:
    """The error of a body that does not fit the schema, from pydantic's list of errors."""
    error = max(errors, key=lambda each: len(each["loc"]))
    if error["type"] == "json_invalid":
        return RequestError(400, "The body is not valid JSON.")
    if not isinstance(body, dict):
        return RequestError(400, "The body must be a JSON object.")
    path = ""
    value: Any = body
    location = error["loc"][1:] if error["loc"][:1] == ("body",) else error["loc"]
    for number, part in enumerate(location, start=1):
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (error["type"] == "missing" and number == len(location))):
            path, value = f"{path}.{part}" if path else str(part), value.get(part)
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        key = f"{path}.{context['discriminator'].strip(chr(39))}"
        return RequestError(400, f"{key} is {context['tag']!r}; choose one of {context['expected_tags']}.", param=key)
    reason = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return RequestError(400, f"{path}: {reason}." if path else f"{reason}.", param=path or None)
