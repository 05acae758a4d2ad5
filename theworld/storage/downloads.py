"""Downloads of files from addresses that strangers wrote: many at a time, bounded in every way, and only from the web.

Addresses in a dataset or in a request to a server are untrusted input. Only http and https are opened, and only
connections to public addresses: this is checked for each connection that is made, whatever led to it (an address in
digits, a redirect, a DNS answer). Proxy variables are not read. Time, size, redirects and attempts have limits, and so
has the number of downloads per host. Every failure has one of the `CAUSES`; nothing but a fault of this program is
raised.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

logger = logging.getLogger(__name__)

Row = TypeVar("Row")
CAUSES = {
    "address": "not an http or https address",
    "private": "leads to an address that is not public",
    "dns": "no such host",
    "connection": "no connection, or it was broken off",
    "timeout": "not complete in time",
    "refused": "answered 4xx, such as 404",
    "server": "answered 5xx or 429",
    "redirects": "too many redirects",
    "opt-out": "its owner excludes it from training",
    "size": "too large",
    "image": "not an image that can be read",
}
TRANSIENT = frozenset({"dns", "connection", "timeout", "server"})  # may succeed another time
RETRIED = frozenset({"connection", "server"})
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})  # directives of the header X-Robots-Tag
CHUNK = 2**16
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class DownloadSettings:
    """Limits of downloads.

    Attributes:
        concurrency: downloads at a time.
        per_host: downloads from one host at a time.
        lookahead: rows that are requested or waiting to be read, since results keep the order of their rows.
        timeout: seconds of one attempt, from the DNS request to the last byte.
        attempts: attempts in all, after broken connections and answers 5xx and 429.
        back_off: seconds before the second attempt; doubled before each further one.
        max_bytes: size of a file.
        max_redirects: redirects of one request.
        obey_opt_out: whether files with an `X-Robots-Tag` of noai, noimageai, noindex or noimageindex are left out.
    """

    concurrency: int = 256
    per_host: int = 16
    lookahead: int = 1024
    timeout: float = 10.0
    attempts: int = 3
    back_off: float = 0.5
    max_bytes: int = 20 * 2**20
    max_redirects: int = 5
    obey_opt_out: bool = True


@dataclass(frozen=True)
class Downloaded(Generic[Row]):
    """A row with the file at its address, or with the cause (a key of `CAUSES`) that there is none."""

    row: Row
    content: bytes | None = None
    cause: str | None = None


class Failed(Exception):
    """Ends a download; `cause` is a key of `CAUSES`."""

    def __init__(self, cause: str) -> None:
        super().__init__(CAUSES[cause])
        self.cause = cause


class PrivateAddress(OSError):
    """A connection would have led to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether an IP address (text, perhaps with a scope) is one of the public internet.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, Teredo, NAT64) count as themselves.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.is_site_local or not all(is_public(str(each)) for each in (ip.sixtofour, *(ip.teredo or ())) if each):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Downloader:
    """Downloads the files of rows, in the order of the rows; use as a context manager.

    Args:
        settings: limits.
        allow: called with the IP address and port of each connection before it is made; False forbids it.
        resolver: replaces the system's DNS, for tests.
    """

    def __init__(
        self,
        settings: DownloadSettings | None = None,
        allow: Callable[[str, int], bool] = lambda address, port: is_public(address),
        resolver: aiohttp.abc.AbstractResolver | None = None,
    ) -> None:
        self.settings = settings or DownloadSettings()
        self._allow = allow
        self._resolver = resolver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Downloader:
        self._thread.start()
        self._call(self._open()).result()
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def map(self, rows: Iterable[Row], request: Callable[[Row], str | Downloaded[Row]]) -> Iterator[Downloaded[Row]]:
        """Downloads the file of each row; results come in the order of the rows.

        Args:
            request: gives the address for a row, or the result if nothing needs to be downloaded.
        """
        waiting = deque[tuple[Row, Future[bytes] | Downloaded[Row]]]()
        source = iter(rows)
        last = object()
        try:
            while True:
                while len(waiting) < self.settings.lookahead and (row := next(source, last)) is not last:
                    wanted = request(row)  # type: ignore[arg-type]
                    known = isinstance(wanted, Downloaded)
                    waiting.append((row, wanted if known else self.fetch(wanted)))  # type: ignore[arg-type]
                if not waiting:
                    return
                row, result = waiting.popleft()
                if not isinstance(result, Downloaded):
                    try:
                        result = Downloaded(row, content=result.result())
                    except Failed as failed:
                        result = Downloaded(row, cause=failed.cause)
                yield result
        finally:
            for _, result in waiting:
                if not isinstance(result, Downloaded):
                    result.cancel()

    def fetch(self, address: str) -> Future[bytes]:
        """The file at an address, or an exception Failed; cancelling the future ends the download."""
        return self._call(self._download(address))

    def _call(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _open(self) -> None:
        settings = self.settings
        self._loop.set_default_executor(ThreadPoolExecutor(64, thread_name_prefix="dns"))
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()  # those in use
        connector = aiohttp.TCPConnector(
            limit=0,  # the semaphores limit connections
            resolver=self._resolver,
            socket_factory=self._new_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            headers={"User-Agent": "theworld", "Accept-Encoding": "identity"},
            auto_decompress=False,  # a small answer could become a large one
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def _close(self) -> None:
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _new_socket(self, info: Any) -> socket.socket:
        """The socket of a connection that is about to be made to the address in `info`."""
        family, kind, protocol, _, place = info
        if not self._allow(place[0], place[1]):
            raise PrivateAddress(f"{place[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    async def _download(self, address: str) -> bytes:
        """The file at an address, after at most `attempts` attempts; raises Failed."""
        try:
            host = URL(address).host or ""
        except ValueError as error:
            raise Failed("address") from error
        # Not the connector's limit: waiting for a connection would count as time of the attempt.
        own = self._hosts.setdefault(host, asyncio.Semaphore(self.settings.per_host))
        async with own, self._slots:
            for attempt in range(1, self.settings.attempts + 1):
                try:
                    return await self._attempt(address)
                except Failed as failed:
                    if failed.cause not in RETRIED or attempt == self.settings.attempts:
                        raise
                await asyncio.sleep(self.settings.back_off * 2 ** (attempt - 1))
        raise AssertionError("attempts is at least 1")

    async def _attempt(self, address: str) -> bytes:
        assert self._session is not None
        try:
            async with self._session.get(address, max_redirects=self.settings.max_redirects) as answer:
                return await self._read(answer)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise Failed("address") from error
        except aiohttp.TooManyRedirects as error:
            raise Failed("redirects") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise Failed("dns") from error
        except TimeoutError as error:
            raise Failed("timeout") from error
        except aiohttp.ClientConnectorError as error:
            raise Failed("private" if isinstance(error.os_error, PrivateAddress) else "connection") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failed("connection") from error
        except ValueError as error:  # what parsers of addresses and headers raise
            raise Failed("address") from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status >= 500 or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Failed("server")
        if answer.status != HTTPStatus.OK:
            raise Failed("refused")
        if self.settings.obey_opt_out and opts_out(answer.headers.getall("X-Robots-Tag", [])):
            raise Failed("opt-out")
        if (answer.content_length or 0) > self.settings.max_bytes:
            raise Failed("size")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise Failed("image")  # not what was asked for
        content = bytearray()
        async for chunk in answer.content.iter_chunked(CHUNK):
            content += chunk
            if len(content) > self.settings.max_bytes:
                raise Failed("size")
        return bytes(content)


def opts_out(tags: Iterable[str]) -> bool:
    """Whether X-Robots-Tag headers exclude a file: `noai`, or `somebot: noai`, several with commas."""
    words = {part.rpartition(":")[2].strip().lower() for tag in tags for part in tag.split(",")}
    return not words.isdisjoint(OPT_OUT)
