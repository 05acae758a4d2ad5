"""From the messages of a request to a question with its images."""

from __future__ import annotations

from typing import Any

from theworld.inference.prompting import Chat, Question
from theworld.serving.errors import RequestError
from theworld.serving.schemas import AssistantMessage, MediaPart, Message, SystemMessage, TextPart, UserMessage


def read_messages(messages: list[Message]) -> tuple[Question, list[tuple[str, MediaPart]]]:
    """The question of a chat, and its images and videos in the order of the prompt, each with its place.

    In a turn with one text, images come before it, as in training and in `TheWorld.generate`; with several texts, the
    order is kept. A chat of one turn without a system message is a plain question.

    Raises:
        RequestError: if turns do not alternate, or the last one is not a question of the user.
    """
    check_turns(messages)
    turns: list[dict[str, Any]] = []
    media: list[tuple[str, MediaPart]] = []
    for number, message in enumerate(messages):
        content = message.content
        if isinstance(message, UserMessage):
            parts, found = user_parts(content, f"messages[{number}].content")
            turns.append({"role": "user", "content": parts})
            media += found
        else:
            text = content if isinstance(content, str) else "\n".join(part.text for part in content)  # type: ignore[union-attr]
            role = "system" if isinstance(message, SystemMessage) else "assistant"
            turns.append({"role": role, "content": text})
    texts = [part["text"] for part in turns[-1]["content"] if part["type"] == "text"]
    if not any(text.strip() for text in texts):
        raise RequestError(400, "The last message asks nothing; add a text.", param=f"messages[{len(messages) - 1}]")
    if len(turns) == 1 and len(texts) == 1:
        return texts[0], media
    return Chat(turns), media


def user_parts(content: Any, where: str) -> tuple[list[dict[str, Any]], list[tuple[str, MediaPart]]]:
    """The parts of a turn of the user for a chat template, and its images and videos."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}], []
    parts: list[dict[str, Any]] = []
    media: list[tuple[str, MediaPart]] = []
    for number, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        else:
            parts.append({"type": "image"})
            media.append((f"{where}[{number}]", part))
    if sum(part["type"] == "text" for part in parts) == 1:
        parts.sort(key=lambda part: part["type"] == "text")
    return parts, media


def check_turns(messages: list[Message]) -> None:
    """Raises a RequestError unless the messages are a chat: perhaps a system message, then user, assistant, …, user."""
    first = int(isinstance(messages[0], SystemMessage))
    for number, message in enumerate(messages[first:], start=first):
        wanted = AssistantMessage if (number - first) % 2 else UserMessage
        if not isinstance(message, wanted):
            expected = "assistant" if wanted is AssistantMessage else "user"
            raise RequestError(
                400,
                f"messages[{number}].role is {message.role!r}, and {expected!r} is expected: after a system message, "
                "messages of the user and the assistant alternate.",
                param=f"messages[{number}].role",
            )
    if not isinstance(messages[-1], UserMessage):
        raise RequestError(400, "The last message must be one of the user.", param="messages")
