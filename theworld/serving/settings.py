"""The settings of a server: where it listens, who may ask, how requests share batches, and every limit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from theworld.messages import counted
from theworld.serving.listening import is_loopback

KEY_VARIABLE = "THEWORLD_API_KEY"
MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `theworld.serving`.

    Attributes:
        name: the name of the model in requests and answers.
        host: address to listen at.
        port: 0 lets the system choose one.
        api_key: what requests must carry as `Authorization: Bearer KEY`; None serves everybody who can connect.
        force: True listens at an address of the network without a key.
        batch_size: requests that are answered at once, at most.
        batch_wait: seconds that a request waits for others that are on their way.
        max_requests: requests that wait or run at once; more are refused with status 429.
        timeout: seconds from the request to the end of its answer.
        body_timeout: seconds in which the head of a request must have arrived, and its body, and in which a client must
            have read some of its answer.
        shutdown_timeout: seconds in which a server that is asked to stop finishes what it has begun.
        max_body_bytes: size of a request, and of all files that it names together.
        max_images: images and videos of a request.
        max_frames: frames of a video.
        max_pixels: pixels of an image; a video may have 64 times as many in all its frames.
        max_prompt_tokens: length of a prompt, in tokens.
        max_new_tokens: length of an answer, in tokens.
        cache_bytes: size of the latents of earlier images that are kept in memory.
        allow_origins: web pages that may ask from a browser, such as `https://example.org`; `*` allows all of them.
        downloads: whether images may be named by http and https addresses.
        download_timeout: seconds of the download of one file.
    """

    name: str = "nano"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    force: bool = False
    batch_size: int = 16
    batch_wait: float = 0.01
    max_requests: int = 128
    timeout: float = 300.0
    body_timeout: float = 30.0
    shutdown_timeout: float = 60.0
    max_body_bytes: int = 32 * MIB
    max_images: int = 16
    max_frames: int = 1024
    max_pixels: int = 2**24
    max_prompt_tokens: int = 8192
    max_new_tokens: int = 1024
    cache_bytes: int = 256 * MIB
    allow_origins: tuple[str, ...] = ()
    downloads: bool = True
    download_timeout: float = 20.0

    def __post_init__(self) -> None:
        """Raises a ValueError for a number that is too small, and for an address of the network without a key."""
        for field in fields(self):
            value, may_be_zero = getattr(self, field.name), field.name in ("port", "batch_wait", "cache_bytes")
            if not isinstance(value, bool) and isinstance(value, int | float) and not (value > 0 or may_be_zero):
                raise ValueError(f"{field.name} is {value}; it must be above 0.")
        if self.api_key is None and not self.force and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines, and there is no API key: set {KEY_VARIABLE} or name "
                "a file that holds the key, listen at 127.0.0.1, or force it if a proxy checks who may ask."
            )


def read_key(path: str | os.PathLike[str] | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key in a file or, without one, in the environment variable `THEWORLD_API_KEY`; None if there is none.

    Raises:
        ValueError: if the file cannot be read, or the key is empty or has characters that a header cannot hold.
    """
    source = f"The environment variable {KEY_VARIABLE}" if path is None else str(path)
    if path is None:
        if KEY_VARIABLE not in environment:
            return None
        key = environment[KEY_VARIABLE].strip()
    else:
        try:
            key = Path(path).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The file of the API key, {path}, cannot be read ({error}).") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        lines = counted(len(key), "character")
        raise ValueError(f"{source} holds no API key ({lines}): write one line of letters, digits and punctuation.")
    return key
