"""How a large file gets into a store whole or not at all, and goes on after a break: by the kind of place.

A folder: a hidden unfinished file, synced, compared with its sha256, then linked. S3:
`cache.store.s3`; other places: `cache.store.moving`.
Run: `softlabel cache push t.h5 URL`
"""

import hashlib
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cache import durable
from cache.errors import CacheDamaged
from cache.store.address import FOLDER, StoreAddress
from cache.store.files import Files, Progress, check_room
from cache.store.moving import UNFINISHED, AtomicFiles, MovingFiles
from cache.store.s3 import S3Files
from cache.store.ssh import SshFiles
from cache.store.trouble import Patience, StoreError

log = logging.getLogger(__name__)

_PIECE_BYTES = 4 << 20
_ATOMIC = ("gs", "gcs", "hf", "abfs", "abfss", "az", "adl", "memory")
_S3 = ("s3", "s3a")
_SSH = ("ssh", "sftp")


def files_of(address: StoreAddress, patience: Patience) -> Files:
    """The files of a store, by its kind of place."""
    protocol = address.protocol
    if protocol == FOLDER:
        return FolderFiles(address, patience)
    if protocol in _S3:
        return S3Files(address, patience)
    if protocol in _SSH:
        return SshFiles(address, patience)
    kind = AtomicFiles if protocol in _ATOMIC else MovingFiles
    return kind(address, patience)


def is_folder_there(address: StoreAddress) -> bool:
    """Whether the folder of a store stands; StoreError where a file is in its way."""
    path = Path(address.url)
    nearest = _nearest(path)
    if not os.path.isdir(nearest):
        raise StoreError(f"{address.shown} cannot be a store: {nearest} is a file, not a folder")
    return nearest == path


def refuse_read_only(address: StoreAddress) -> None:
    """StoreError where a folder, or the one that it would be made in, cannot be written."""
    is_folder_there(address)
    nearest = _nearest(Path(address.url))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(f"the folder {nearest} cannot be written: ask for the right to, or choose another")


def _nearest(path: Path) -> Path:
    """It, or the first of its parents that stands."""
    return next((one for one in (path, *path.parents) if os.path.lexists(one)), path)


class FolderFiles(Files):
    """A folder of this machine, or of a network drive that is mounted here."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """As `Files.sizes`; an absent folder is an error, as it may be a drive that is not mounted."""
        if not is_folder_there(self.address):
            raise StoreError(f"there is no folder {self.address.shown}: is its drive mounted? A first push makes it")
        return super().sizes(folder)

    def write_small(self, name: str, content: bytes) -> None:
        """Under a hidden name, synced, then renamed."""
        final = self._final(name)
        temp = final.with_name(f".{final.name}.{secrets.token_hex(8)}{UNFINISHED}")
        with self.explained():
            try:
                with open(temp, "xb") as file:
                    file.write(content)
                    file.flush()
                    durable.fsync_file(file.fileno())
                durable.publish_replace(temp, final)
            finally:
                with suppress(OSError):
                    temp.unlink(missing_ok=True)

    def upload(self, source: Path, name: str, sha256: str, progress: Progress, *, replace: bool = False) -> None:
        """Append to what an earlier try of the same bytes left.

        Two who push the same bytes at once write the same ones to the same places of one hidden file: neither harms
        the other, whichever file system lies below. Nothing is linked before the whole file has the right sha256.
        """
        final = self._final(name)
        hidden = final.with_name(f".{final.name}{UNFINISHED}")
        with self.explained():
            if not self._filled(source, hidden, sha256, progress):
                # A host that crashed may have left holes. The name may be another's by now: never cut its file.
                hidden.unlink(missing_ok=True)
                log.info("what an earlier push left in %s was not sound: from the start", self.address.shown)
                hidden = hidden.with_name(f".{final.name}.{secrets.token_hex(8)}{UNFINISHED}")
                if not self._filled(source, hidden, sha256, progress):
                    hidden.unlink(missing_ok=True)
                    raise StoreError(
                        f"{self.address.shown} gives back other bytes than were written: check its drive and try again"
                    )
            with suppress(FileNotFoundError):  # whoever pushed the same bytes was first, with this very file
                if replace:
                    durable.publish_replace(hidden, final)
                else:
                    durable.publish_new(hidden, final)

    def _final(self, name: str) -> Path:
        final = Path(self.address.url) / name
        with self.explained():
            durable.make_folder(final.parent)
        return final

    def _filled(self, source: Path, hidden: Path, sha256: str, progress: Progress) -> bool:
        """Write what `hidden` lacks of `source`; whether it is the very bytes then."""
        n_bytes = source.stat().st_size
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        with open(fd, "r+b", buffering=0) as target, open(source, "rb", buffering=0) as wanted:
            there = os.fstat(fd).st_size
            if there > n_bytes:
                return False
            if there:
                log.info("going on at %s of %s bytes", f"{there:,}", f"{n_bytes:,}")
            progress(there)
            check_room(hidden.parent, n_bytes - there)
            target.seek(there)
            wanted.seek(there)
            while piece := wanted.read(_PIECE_BYTES):
                left = memoryview(piece)
                while left:
                    left = left[target.write(left) :]
                progress(len(piece))
            durable.fsync_file(fd)
            digest = hashlib.sha256()
            with suppress(CacheDamaged):  # shorter: somebody cut it
                for chunk in durable.chunks(target, 0, n_bytes):
                    digest.update(chunk)
            return digest.hexdigest() == sha256 and os.fstat(fd).st_size == n_bytes
