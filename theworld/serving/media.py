"""The images and videos of a request: fetched from where the request says, checked for size, and decoded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from theworld.media.limits import MediaLimits
from theworld.media.video import Video
from theworld.model.configuration import TheWorldConfig
from theworld.serving.errors import RequestError
from theworld.serving.schemas import FramesPart, ImagePart, MediaPart, VideoPart
from theworld.serving.settings import MIB, ServerSettings
from theworld.storage.downloads import Downloader, DownloadSettings, Failed

DECODERS = 2  # threads
SHOWN = 60  # characters of an address in messages
Result = TypeVar("Result")


class MediaReader:
    """Reads the media of requests; use as a context manager.

    Args:
        downloader: replaces the one that opens public addresses only, for tests.
    """

    def __init__(self, settings: ServerSettings, downloader: Downloader | None = None) -> None:
        self.settings = settings
        self._limits = MediaLimits(settings.max_frames, settings.max_pixels)
        limits = DownloadSettings(
            concurrency=32,
            per_host=8,
            timeout=settings.download_timeout,
            attempts=2,
            max_bytes=settings.max_body_bytes,
            obey_opt_out=False,  # which is about training
        )
        self._downloader = downloader or Downloader(limits)
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="media")

    def __enter__(self) -> MediaReader:
        self._downloader.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._downloader.__exit__(*exception)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, parts: list[tuple[str, MediaPart]], config: TheWorldConfig) -> list[Image.Image | Video]:
        """The images and videos of a request's parts, which are named for messages.

        Raises:
            RequestError: if one cannot be fetched or read, or is too large.
        """
        settings, files = self.settings, _Files(self)
        if len(parts) > settings.max_images:
            raise RequestError(
                400, f"The request has {len(parts)} images and videos, and this server takes {settings.max_images}."
            )
        media: list[Image.Image | Video] = []
        for where, part in parts:
            if isinstance(part, ImagePart):
                content = await files.read(part.image_url.url, f"{where}.image_url.url")
                media.append(await self._decoded(where, self._limits.image, content))
            elif isinstance(part, VideoPart):
                content = await files.read(part.video_url.url, f"{where}.video_url.url")
                media.append(
                    await self._decoded(where, self._limits.video, content, config.read_video, part.video_url.fps)
                )
            else:
                media.append(await self._frames(where, part, files, config))
        return media

    async def _frames(self, where: str, part: FramesPart, files: _Files, config: TheWorldConfig) -> Video:
        urls = part.frames.urls
        if len(urls) > self.settings.max_frames:
            raise RequestError(
                400, f"{where} has {len(urls):,} frames, and this server takes {self.settings.max_frames:,}."
            )
        contents = [await files.read(url, f"{where}.frames.urls[{number}]") for number, url in enumerate(urls)]

        def load() -> Video:
            self._limits.check_frames(contents)
            return config.read_video(Video(contents, fps=part.frames.fps))

        return await self._decoded(where, load)

    async def _decoded(self, where: str, read: Callable[..., Result], *arguments: object) -> Result:
        """What `read` returns in a thread; its ValueErrors name the part of the request."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read, *arguments)
        except ValueError as error:
            raise RequestError(400, f"{where}: {' '.join(str(error).split())}", param=where) from error


class _Files:
    """The files of one request, whose sizes are added up."""

    def __init__(self, reader: MediaReader) -> None:
        self._reader = reader
        self._left = reader.settings.max_body_bytes

    async def read(self, address: str, where: str) -> bytes:
        scheme = address[:8].lower()
        if scheme.startswith("data:"):
            content = data_of(address, where)
        elif not scheme.startswith(("http://", "https://")):
            raise RequestError(
                400, f"{where} is {shortened(address)!r}; give a data: address or an http(s) address.", param=where
            )
        elif not self._reader.settings.downloads:
            raise RequestError(400, f"{where}: this server fetches no addresses; send a data: address.", param=where)
        else:
            try:
                content = await asyncio.wrap_future(self._reader._downloader.fetch(address))
            except Failed as failed:
                message = f"{where}: the file at {shortened(address)!r} could not be fetched: {failed}."
                raise RequestError(400, message, param=where, code="unreachable_file") from failed
        self._left -= len(content)
        if self._left < 0:
            limit = self._reader.settings.max_body_bytes / MIB
            raise RequestError(413, f"The files of the request are larger than {limit:g} MiB together.", param=where)
        return content


def data_of(address: str, where: str) -> bytes:
    """The content of a `data:` address."""
    header, comma, data = address.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        if header.lower().endswith(";base64"):
            return base64.b64decode(urllib.parse.unquote(data), validate=True)
        return urllib.parse.unquote_to_bytes(data)
    except (ValueError, binascii.Error) as error:
        raise RequestError(400, f"{where} is not a valid data: address ({error}).", param=where) from error


def shortened(address: str) -> str:
    return address if len(address) <= SHOWN else f"{address[:SHOWN]}…"
