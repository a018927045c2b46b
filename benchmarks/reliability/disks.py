"""Small disks, and ways to have them full. Never fills one that is not made for it."""

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reliability.contents import digest_of

TMPFS_BYTES = 40 << 20
NAMESPACES = (["unshare", "-m"], ["unshare", "-rm"])
BALLAST_NAME = "ballast"
FROM_THE_START = 0


@dataclass(frozen=True)
class Squeeze:
    """When the disk becomes full, and how much room it has left then."""

    write: int
    """The how-manieth write of the command; 0 is its start."""
    free_bytes: int


class SmallDisk:
    """A small file system, in which a file without meaning takes all room but so many bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.block_bytes = os.statvfs(root).f_frsize

    @property
    def free_bytes(self) -> int:
        """What may still be written."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def room_for(self, n_bytes: int) -> int:
        """What a file takes."""
        return -(-n_bytes // self.block_bytes) * self.block_bytes

    def room_needed(self, used_before: int, n_bytes: int) -> int:
        """What must be free at the start of a command for a file that it writes when it has used so much."""
        return used_before + self.room_for(n_bytes)

    def squeeze(self, free_bytes: int) -> None:
        """Leave so much room; called in the process of the command."""
        excess = 0
        with open(self.root / BALLAST_NAME, "ab", buffering=0) as ballast:
            with suppress(OSError):  # a file system may keep the last blocks for itself
                while (excess := self.free_bytes - free_bytes) > 0:
                    ballast.write(bytes(excess))
            ballast.truncate(max(0, ballast.tell() + min(0, excess)))

    def still_full(self, squeeze: Squeeze) -> Squeeze | None:
        """What a second command needs to meet the disk as this squeeze left it: the ballast stands."""
        return None

    def release(self) -> None:
        """Give all room back."""
        (self.root / BALLAST_NAME).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Remove everything."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def __str__(self) -> str:
        status = os.statvfs(self.root)
        return f"a file system of {status.f_blocks * status.f_frsize:,} bytes"


class FileLimit(SmallDisk):
    """No small file system, but a kernel that refuses, in one process, each file's bytes beyond a number."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.block_bytes = 1

    def room_needed(self, used_before: int, n_bytes: int) -> int:
        """The limit holds for each file."""
        return n_bytes

    def squeeze(self, free_bytes: int) -> None:
        """From now on, in this process."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def still_full(self, squeeze: Squeeze) -> Squeeze | None:
        """The limit went with the process."""
        return Squeeze(FROM_THE_START, squeeze.free_bytes)

    def __str__(self) -> str:
        return "a limit on each file's bytes (RLIMIT_FSIZE)"


def files(root: Path) -> dict[str, str]:
    """Path -> sha256, of every file but the ballast."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != BALLAST_NAME]
    return {str(path.relative_to(root)): digest_of(path) for path in paths}


def on_tmpfs(command: list[str]) -> int | None:
    """Run a command, with a folder as last argument that is a tmpfs of its own; None where that cannot be had."""
    mount = f'mount -t tmpfs -o size={TMPFS_BYTES} tmpfs "$0" && exec "$@"'
    with tempfile.TemporaryDirectory() as folder:
        for namespace in NAMESPACES:
            start = [*namespace, "sh", "-c", mount, folder]
            try:
                can_mount = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
            except OSError:
                continue
            if can_mount:
                return subprocess.run([*start, *command, folder], check=False).returncode
    return None
