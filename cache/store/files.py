"""The files below a store's root, over fsspec: list, read, write small ones. Each call is repeated while it may pass.

Never knows what is in a file. How large ones get there whole is a matter of the place: `cache.store.places`.
Run: `softlabel cache list URL`
"""

import logging
import os
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from cache.errors import CacheDiskFull
from cache.store.address import FOLDER, StoreAddress
from cache.store.trouble import Patience, StoreError, explained, is_passing, keep_trying

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Progress = Callable[[int], None]
"""Called with the number of bytes that arrived."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "ssh": "ssh", "sftp": "ssh"}
"""Protocol -> the extra that brings its backend."""
_LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "huggingface_hub", "paramiko", "s3fs",
              "urllib3")  # fmt: skip
_READ_TOGETHER = 128


class Files(ABC):
    """A store's files by their names below its root; one object a process (a forked child makes its own connection)."""

    def __init__(self, address: StoreAddress, patience: Patience) -> None:
        self.address, self.patience = address, patience
        self._pid = os.getpid()
        self._is_met = False
        for library in _LIBRARIES:  # who writes no handlers gets their warnings on standard error, addresses and all
            logging.getLogger(library).addHandler(logging.NullHandler())

    def options(self) -> dict[str, Any]:
        """What the backend is started with."""
        return {"use_listings_cache": False}

    def backend(self) -> Any:
        """Its class; ValueError for an unknown protocol, ImportError where its package is not installed."""
        from fsspec.registry import get_filesystem_class

        return get_filesystem_class(self.address.protocol)

    @property
    def place(self) -> str:
        """Where what is written goes, for the question whether it may."""
        return self.address.shown

    @property
    def fs(self) -> Any:
        """The backend, made at first use in each process."""
        return self._backend()[0]

    def path(self, name: str = "") -> str:
        """A name below the root, as the backend takes it."""
        root = str(self._backend()[1]).rstrip("/")
        return f"{root}/{name}" if name else root or "/"

    def shown(self, name: str) -> str:
        """A name below the root, for people."""
        return f"{self.address.shown.rstrip('/')}/{name}"

    @property
    def remedy(self) -> str:
        """What puts a damaged object right."""
        return f"ask who has it to run `softlabel cache push FILE {shlex.quote(self.address.shown)} --check`"

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of all files below a folder of the store, by one listing; StoreError without a store."""
        root = self.path()

        def find() -> Mapping[str, Any]:
            self.fs.invalidate_cache()
            found: Mapping[str, Any] = self.fs.find(self.path(folder), detail=True)
            return found

        try:
            found = self.ask(find, may_lack=True)
        except FileNotFoundError:
            found = {}
        return {
            path.removeprefix(root).lstrip("/"): int(info.get("size") or 0)
            for path, info in found.items()
            if info.get("type") == "file"
        }

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

        def size() -> int:
            self.fs.invalidate_cache()
            return int(self.fs.info(self.path(name))["size"])

        try:
            return self.ask(size, may_lack=True)
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """These bytes of a file; StoreError where it has fewer."""
        return self.ask(lambda: self.read_once(name, start, stop))

    def read_once(self, name: str, start: int, stop: int) -> bytes:
        """The same without another try: raises what the backend raises, or ConnectionError for fewer bytes."""
        found: bytes = self.fs.cat_file(self.path(name), start=start, end=stop)
        if len(found) != stop - start:
            raise ConnectionError(f"{len(found)} bytes instead of {stop - start}")
        return found

    def read_many(self, sizes: Mapping[str, int]) -> dict[str, bytes | Exception]:
        """Name -> content of small files of these sizes, read at the same time; an error stands for what cannot be."""
        found: dict[str, bytes | Exception] = {}
        names = list(sizes)
        for start in range(0, len(names), _READ_TOGETHER):
            part = names[start : start + _READ_TOGETHER]
            for name, content in zip(part, self.ask(partial(self._read_part, part, sizes)), strict=True):
                if isinstance(content, Exception) and is_passing(content):
                    found[name] = self._read_or_error(name, sizes[name])
                else:
                    found[name] = content
        return found

    def _read_or_error(self, name: str, n_bytes: int) -> bytes | Exception:
        try:
            return self.read(name, 0, n_bytes)
        except StoreError as error:
            return error

    @abstractmethod
    def write_small(self, name: str, content: bytes) -> None:
        """Write a small file, in place of another one if there is one: whole, or not at all."""

    @abstractmethod
    def upload(self, source: Path, name: str, sha256: str, progress: Progress, *, replace: bool = False) -> None:
        """Write a large file that is `source`, whole or not at all; goes on with what an earlier try left.

        With `replace` something else stands under the name, which gives way once the new one is whole.
        """

    def ask(self, action: Callable[[], Result], *, may_lack: bool = False) -> Result:
        """The result of an action on the backend, which is repeated while its failure may pass.

        StoreError for every other failure; with `may_lack` FileNotFoundError stays one, unless the store itself lacks.
        """

        def tries() -> int:
            return self.patience.tries if self._is_met else self.patience.first_tries

        with self.explained(may_lack=may_lack):
            found = keep_trying(action, self.patience, tries)
        self._is_met = True
        return found

    @contextmanager
    def explained(self, *, may_lack: bool = False) -> Iterator[None]:
        """Inside, what the backend raises becomes a StoreError; with `may_lack` a file's absence stays what it is."""
        lacking: list[FileNotFoundError] = []
        with explained(self.address.shown, self.address.redact, is_folder=self.address.protocol == FOLDER):
            try:
                yield
            except FileNotFoundError as error:
                if not may_lack or self.is_store_lacking(error):
                    raise
                lacking.append(error)
        for absence in lacking:
            self._is_met = True
            raise absence

    def is_store_lacking(self, error: FileNotFoundError) -> bool:
        """Whether it is the bucket, not a file in it, that does not exist."""
        return False

    def _backend(self) -> tuple[Any, Any]:
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self.__dict__.pop("_opened", None)
        return self._opened

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        with self.explained():
            return self._open()

    def _open(self) -> tuple[Any, Any]:
        protocol = self.address.protocol
        try:
            kind = self.backend()
        except ValueError:
            raise StoreError(
                f"{self.address.shown}: nothing here knows {protocol}://; a store is a folder, or s3://, gs://, hf://, "
                "ssh:// or another protocol of fsspec"
            ) from None
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install '.[{extra}]'" if extra else f"pip install the package that it names ({error})"
            raise StoreError(f"{self.address.shown} needs a package that is not installed: {remedy}") from None
        options = {**kind._get_kwargs_from_urls(self.address.url), **self.options()}
        made = kind(**options, skip_instance_cache=True)
        return made, kind._strip_protocol(self.address.url)

    def _read_part(self, names: Sequence[str], sizes: Mapping[str, int]) -> list[bytes | Exception]:
        paths = [self.path(name) for name in names]
        stops = [sizes[name] for name in names]
        found: list[bytes | Exception] = self.fs.cat_ranges(paths, [0] * len(paths), stops, on_error="return")
        return found


def check_room(folder: Path, n_bytes: int) -> None:
    """Before the first byte, as far as the system knows: CacheDiskFull where there is no room."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < n_bytes:
        raise CacheDiskFull(
            f"no room for {n_bytes:,} bytes in {folder} ({free:,} are free): free some space, then run the same "
            "command again"
        )
