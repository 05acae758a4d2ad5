"""Downloaded images kept on disk, so that a second epoch needs no network.

A folder holds WebDataset shards: tar files whose members share a key per sample, `KEY.jpg` (the file as it was
downloaded) and `KEY.json` (its address and caption). The key is a digest of the address. `dead.jsonl` lists addresses
without an image and why. Each process writes shards of its own. Of a shard whose end is missing, the complete samples
are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from theworld.storage.downloads import TRANSIENT

SHARD_BYTES = 256 * 2**20
DEAD = "dead.jsonl"


class ImageShards:
    """The images of a folder by address, to which further ones can be added.

    Args:
        folder: created when the first image is added.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._dead: dict[str, str] = {}
        self._tar: tarfile.TarFile | None = None
        for shard in sorted(self.folder.glob("*.tar")):
            self._index(shard)
        if (self.folder / DEAD).is_file():
            for line in (self.folder / DEAD).read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last line may be incomplete
                    entry = json.loads(line)
                    self._dead[key_of(entry["url"])] = entry["cause"]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, url: str) -> bool:
        return key_of(url) in self._places

    def read(self, url: str) -> bytes | None:
        """The file that was downloaded from an address; None if there is none."""
        if (place := self._places.get(key_of(url))) is None:
            return None
        shard, offset, size = place
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def cause(self, url: str) -> str | None:
        """Why an address has no image, if that will not change: a cause of `theworld.storage.downloads`."""
        cause = self._dead.get(key_of(url))
        return None if cause in TRANSIENT else cause

    def add(self, url: str, text: str, content: bytes) -> None:
        """Keeps a downloaded image with its caption."""
        with Image.open(io.BytesIO(content)) as image:
            suffix = (image.format or "img").lower().replace("jpeg", "jpg")
        tar = self._writable()
        key = key_of(url)
        self._write(tar, f"{key}.{suffix}", content)
        offset = tar.offset - blocks(len(content))
        self._write(tar, f"{key}.json", json.dumps({"url": url, "text": text}).encode())
        self._file.flush()
        self._places[key] = (Path(self._file.name), offset, len(content))

    def mark(self, url: str, cause: str) -> None:
        """Notes that there is no image at an address."""
        self._dead[key_of(url)] = cause
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / DEAD).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"url": url, "cause": cause, "time": int(time.time())}) + "\n")

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._file.close()
            self._tar = None

    def __enter__(self) -> ImageShards:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _index(self, shard: Path) -> None:
        """Finds the complete samples of a shard: an image that is followed by its `.json`."""
        length = shard.stat().st_size
        image: tarfile.TarInfo | None = None
        try:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.offset_data + member.size > length:
                        return
                    if not member.name.endswith(".json"):
                        image = member
                    elif image is not None and Path(image.name).stem == Path(member.name).stem:
                        self._places[Path(member.name).stem] = (shard, image.offset_data, image.size)
        except tarfile.ReadError:
            return  # the process that wrote it was killed

    def _writable(self) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset > SHARD_BYTES:
            self.close()
        if self._tar is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self.folder.glob("*.tar")))
            while self._tar is None:
                try:
                    self._file = (self.folder / f"{number:06d}.tar").open("xb")
                    self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115
                except FileExistsError:  # another process was faster
                    number += 1
        return self._tar

    @staticmethod
    def _write(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def key_of(url: str) -> str:
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def blocks(length: int) -> int:
    """Bytes that a member of this length takes in a tar file."""
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
