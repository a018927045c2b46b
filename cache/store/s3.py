"""S3 and what speaks its API: uploads in parts, which the server keeps, so that the next try goes on.

An unfinished upload is found by the name of its object, which has the sha256 in it: its parts are of the same bytes,
and each is kept if its MD5 says so. Endpoint and credentials come from where botocore has them (AWS_ENDPOINT_URL, ...).
Run: `softlabel cache push t.h5 s3://BUCKET/PATH`
"""

import asyncio
import base64
import concurrent.futures
import hashlib
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cache.errors import printable
from cache.store.files import Files, Progress
from cache.store.trouble import StoreError, code_of

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""S3 takes parts of 5 MiB and more."""
_MAX_PARTS = 9_000
_POLL_S = 0.5
_MAX_RESTARTS = 3


class _Body(io.BytesIO):
    """Bytes on their way out, and when some of them were last taken: HTTP libraries limit the time of reads alone."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.moved_s = time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        self.moved_s = time.monotonic()
        return super().read(size)


class S3Files(Files):
    """A bucket, or a folder in one."""

    def options(self) -> dict[str, Any]:
        """One try a call, as `ask` repeats; checksums as every S3 server knows them (ours is the sha256)."""
        config = {
            "connect_timeout": self.patience.connect_s,
            "read_timeout": self.patience.read_s,
            "retries": {"total_max_attempts": 1},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        return {**super().options(), "config_kwargs": config}

    @property
    def place(self) -> str:
        """With the server, where that is not Amazon's: the same bucket's name elsewhere is another place."""
        self.ask(self.fs.connect)
        endpoint = urlsplit(str(self.fs.s3.meta.endpoint_url))
        host = endpoint.hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return self.address.shown
        port = f":{endpoint.port}" if endpoint.port else ""
        return f"{self.address.shown} at {endpoint.scheme}://{host}{port}"

    def size(self, name: str) -> int | None:
        """As `Files.size`, by one request."""
        try:
            found = self.ask(lambda: self._call("head_object", name), may_lack=True)
        except FileNotFoundError:
            return None
        return int(found["ContentLength"])

    def is_store_lacking(self, error: FileNotFoundError) -> bool:
        """By the server's code."""
        return code_of(error) == "NoSuchBucket"

    def write_small(self, name: str, content: bytes) -> None:
        """One request; S3 shows an object when it is whole."""
        self.ask(lambda: self._call("put_object", name, Body=content, ContentMD5=_base64_md5(content)))

    def upload(self, source: Path, name: str, sha256: str, progress: Progress, *, replace: bool = False) -> None:
        """In parts, or at once where it is smaller than one."""
        n_bytes = source.stat().st_size
        if n_bytes <= PART_BYTES:
            self.write_small(name, source.read_bytes())
            progress(n_bytes)
            return
        for _ in range(_MAX_RESTARTS):
            try:
                self._upload_in_parts(source, name, n_bytes, progress)
            except FileNotFoundError:
                if replace or self.size(name) != n_bytes:
                    continue
                # Whoever pushes the same bytes completed this very upload.
            self._drop_unfinished(name)
            return
        raise StoreError(f"{self.shown(name)}: its unfinished upload vanishes again and again; try again later")

    def _upload_in_parts(self, source: Path, name: str, n_bytes: int, progress: Progress) -> None:
        part_bytes = max(PART_BYTES, -(-n_bytes // _MAX_PARTS))
        upload_id, there = self._resumed(name)
        parts = []
        with source.open("rb") as file:
            for number, piece in enumerate(iter(lambda: file.read(part_bytes), b""), start=1):
                etag, size = there.get(number, ("", 0))
                if (etag.strip('"'), size) != (hashlib.md5(piece, usedforsecurity=False).hexdigest(), len(piece)):
                    etag = self._upload_part(name, upload_id, number, piece)
                parts.append({"PartNumber": number, "ETag": etag})
                progress(len(piece))
        self.ask(
            lambda: self._call("complete_multipart_upload", name, UploadId=upload_id, MultipartUpload={"Parts": parts}),
            may_lack=True,
        )

    def _upload_part(self, name: str, upload_id: str, number: int, piece: bytes) -> str:
        sent = self.ask(
            lambda: self._call(
                "upload_part", name, UploadId=upload_id, PartNumber=number, Body=piece, ContentMD5=_base64_md5(piece)
            ),
            may_lack=True,
        )
        return str(sent["ETag"])

    def _resumed(self, name: str) -> tuple[str, dict[int, tuple[str, int]]]:
        """(an upload, its parts by number): the oldest one of this object, else a new one."""
        unfinished = sorted(self._unfinished(name), key=lambda one: (str(one.get("Initiated", "")), one["UploadId"]))
        if not unfinished:
            made = self.ask(lambda: self._call("create_multipart_upload", name))
            return str(made["UploadId"]), {}
        upload_id = str(unfinished[0]["UploadId"])
        listed = self._pages("list_parts", name, "Parts", {"PartNumberMarker": "NextPartNumberMarker"},
                             UploadId=upload_id)  # fmt: skip
        parts = {int(part["PartNumber"]): (str(part["ETag"]), int(part["Size"])) for part in listed}
        if parts:
            log.info("going on with %d parts that stand in %s", len(parts), self.address.shown)
        return upload_id, parts

    def _unfinished(self, name: str) -> list[dict[str, Any]]:
        """The uploads of this object that are not completed; none where we may not ask."""
        key, markers = self._bucket_key(name)[1], {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        try:
            found = list(self._pages("list_multipart_uploads", "", "Uploads", markers, Prefix=key))
        except StoreError as error:
            log.debug("unfinished uploads are not listed: %s", error)
            return []
        return [one for one in found if one.get("Key") == key]

    def _pages(
        self, method: str, name: str, field: str, markers: dict[str, str], **words: Any
    ) -> Iterator[dict[str, Any]]:
        marker: dict[str, Any] = {}
        while True:
            page = self.ask(partial(self._call, method, name, **words, **marker), may_lack=True)
            yield from page.get(field) or []
            marker = {word: page[found] for word, found in markers.items() if page.get(found)}
            if not page.get("IsTruncated") or not marker:
                return

    def _drop_unfinished(self, name: str) -> None:
        """The object stands whole: other unfinished uploads of it, paid for by the byte, could only give the same."""
        for one in self._unfinished(name):
            with suppress(StoreError, FileNotFoundError):
                self.ask(partial(self._call, "abort_multipart_upload", name, UploadId=one["UploadId"]), may_lack=True)

    def _call(self, method: str, name: str, **words: Any) -> Any:
        """One request. Waiting for an answer has its limit in botocore; the body that goes out is watched here."""
        bucket, key = self._bucket_key(name)
        of_object = {"Key": key} if name else {}
        body = _Body(words.pop("Body")) if "Body" in words else None
        if body is not None:
            words["Body"] = body
        future = asyncio.run_coroutine_threadsafe(
            self.fs._call_s3(method, Bucket=bucket, **of_object, **words), self.fs.loop
        )
        limit_s = self.patience.connect_s + 2 * self.patience.read_s
        while True:
            done, _ = concurrent.futures.wait([future], _POLL_S)
            if done:
                return future.result()
            if body is not None and time.monotonic() - body.moved_s > limit_s:
                future.cancel()
                raise TimeoutError("the server takes no more bytes")

    def _bucket_key(self, name: str) -> tuple[str, str]:
        bucket, key, _ = self.fs.split_path(self.path(name))
        return str(bucket), str(key)

    def _open(self) -> tuple[Any, Any]:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if (server := os.environ.get(name)) and not server.lower().startswith(("http://", "https://")):
                shown = printable(server.rpartition("@")[2].rpartition("://")[2])
                raise StoreError(f"{name} has no http:// or https://: write http://{shown} in {name}")
        made, root = super()._open()
        made.retries = 1
        return made, root


def _base64_md5(content: bytes) -> str:
    """As the server compares it with what arrived."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
