"""The processes of one command that torchrun started, its ranks: who is first, who has which share, what all agree on.

Computes nothing and reads no environment (`pipeline.commands.torchrun` does). Plain objects travel through gloo, sums
of gradients through NCCL where the ranks are on CUDA. A process by itself is `ALONE`: every step is then a no-op, and
torch.distributed is not imported. Run: torchrun --nproc-per-node 2 $(which softlabel) cache build DATA -o t.h5
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import PipelineError, SettingError, first_line
from pipeline.machine import this_machine

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")
_PATIENCE = timedelta(days=30)
"""How long a rank waits for the others: the slowest one may have hours of work left. A dead one is noticed at once."""
_JOIN_PATIENCE = timedelta(minutes=10)
_SPOKEN = "softlabel/spoken"
_FIRST_SPEAKS_S = 1.0
"""An error that all ranks meet is told by the first one, which gets so much of a start."""


class RankLost(PipelineError):
    """Another rank ended before its work was done."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which one of the processes of a command this one is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the ranks of this machine."""
    local_world_size: int = 1
    restart_count: int = 0
    """How often the launcher has started all of them anew."""
    launch: str = ""
    """What all ranks and restarts of one launch have in common, and no other launch has."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes outputs and prints lines."""
        return self.rank == 0


class Ranks:
    """A process by itself; `JoinedRanks` are several."""

    def __init__(self, place: Place = Place()) -> None:
        self.place = place
        self.rank, self.world_size, self.is_first = place.rank, place.world_size, place.is_first

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.world_size == 1

    @property
    def group(self) -> Any:
        """The process group of tensors on the device; None without one."""
        return None

    @property
    def stop_signals(self) -> tuple[signal.Signals, ...]:
        """What ends a rank beside Ctrl-C: a launcher's SIGTERM, when another rank has failed."""
        return () if self.is_alone else (signal.SIGTERM,)

    def workers(self, n_default: int) -> int:
        """Loader processes of this rank, where one process by itself would have so many."""
        if self.is_alone:
            return n_default
        return min(n_default, max(0, this_machine().n_usable // self.place.local_world_size - 1))

    def share(self, n: int) -> slice:
        """This rank's part of n things in order: sizes differ by one at most."""
        return _cut(n, self.rank, self.world_size)

    def use(self, device: str) -> None:
        """From now on `device` is this rank's own one of that kind, and sums are taken there."""

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in order; each rank waits for all."""
        return [value]

    def broadcast(self, value: Value) -> Value:
        """The first rank's value."""
        return value

    def scatter(self, values: Sequence[Value] | None) -> Value:
        """This rank's one of the values that the first rank has for each."""
        assert values is not None
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place, bit-equal on all; of a tensor on the device in use, or on the CPU."""
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""

    @contextlib.contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Inside, the first rank is ahead of the others, which then do the same once more, in silence."""
        yield

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """Inside, all ranks do the same: the first one alone speaks."""
        yield

    @contextlib.contextmanager
    def explained_by(self, check_interrupt: Callable[[], None]) -> Iterator[None]:
        """Inside, a rank that was lost after Ctrl-C was interrupted like this one, which `check_interrupt` raises."""
        yield

    def may_speak(self) -> bool:
        """Whether nobody has told an error before this rank, which then does."""
        return True

    def leave(self) -> None:
        """Part from the others."""


ALONE = Ranks()


class JoinedRanks(Ranks):
    """Ranks that have found each other; every method is called by all of them, in the same order."""

    def __init__(self, place: Place) -> None:
        """Meet the others where torch's own variables say; RankLost where they do not come."""
        super().__init__(place)
        import torch.distributed as dist

        self._dist = dist
        self._on_device: Any = None
        with _or_lost("the ranks cannot reach each other"):
            store, _, _ = next(iter(dist.rendezvous("env://", place.rank, place.world_size, timeout=_JOIN_PATIENCE)))
            self._store = dist.PrefixStore(f"softlabel/{place.restart_count}", store)
            dist.init_process_group(
                "gloo", store=dist.PrefixStore("group", self._store), rank=place.rank, world_size=place.world_size,
                timeout=_PATIENCE,
            )  # fmt: skip

    @property
    def group(self) -> Any:
        """NCCL's on CUDA, else gloo's."""
        return self._on_device or self._dist.group.WORLD

    def use(self, device: str) -> None:
        """The rank's own GPU of this machine; SettingError where there are fewer of them than ranks."""
        import torch

        if device == "mps":
            raise SettingError("ranks share no MPS device: run softlabel without torchrun, or with --device cpu")
        if device != "cuda":
            return
        if (n_devices := torch.cuda.device_count()) < self.place.local_world_size:
            raise SettingError(
                f"{self.place.local_world_size} ranks on a machine with {n_devices} GPUs: start it with "
                f"--nproc-per-node {n_devices}"
            )
        torch.cuda.set_device(self.place.local_rank)
        if self._on_device is None:
            with _or_lost("the GPUs cannot reach each other"):
                self._on_device = self._dist.new_group(backend="nccl")

    def gather(self, value: Value) -> list[Value]:
        """Through gloo, pickled."""
        found: list[Any] = [None] * self.world_size
        with _or_lost():
            self._dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Value) -> Value:
        """Through gloo, pickled."""
        found = [value]
        with _or_lost():
            self._dist.broadcast_object_list(found, src=0)
        return found[0]

    def scatter(self, values: Sequence[Value] | None) -> Value:
        """Through gloo, pickled."""
        found: list[Any] = [None]
        with _or_lost():
            self._dist.scatter_object_list(found, list(values) if values is not None and self.is_first else None, src=0)
        mine: Value = found[0]
        return mine

    def sum(self, tensor: Tensor) -> Tensor:
        """Through NCCL on a GPU, else through gloo."""
        with _or_lost():
            self._dist.all_reduce(tensor, group=self._on_device if tensor.is_cuda else None)
        return tensor

    def barrier(self) -> None:
        """Through gloo, whose threads sleep."""
        with _or_lost():
            self._dist.barrier()

    @contextlib.contextmanager
    def first_then_others(self) -> Iterator[None]:
        """The first one has made what is made once (a split, hashes, downloads) when the others look for it."""
        if not self.is_first:
            self.barrier()
        with self.alike():
            yield
        if self.is_first:
            self.barrier()

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """Not even warnings of the others: they are the same."""
        before = logging.root.manager.disable
        if not self.is_first:
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)

    @contextlib.contextmanager
    def explained_by(self, check_interrupt: Callable[[], None]) -> Iterator[None]:
        """A signal is answered only when the waiting for a rank that has gone ends; it also ends loader processes,
        which torch says in a RuntimeError.
        """
        try:
            yield
        except (RankLost, RuntimeError):
            check_interrupt()
            raise

    def may_speak(self) -> bool:
        """The first rank of a common error, and else the first to fail: the others fail because it is gone."""
        try:
            deadline = time.monotonic() + (0 if self.is_first else _FIRST_SPEAKS_S)
            while time.monotonic() < deadline:
                if self._store.check([_SPOKEN]):
                    return False
                time.sleep(0.05)
            return bool(self._store.add(_SPOKEN, 1) == 1)
        except RuntimeError:
            return False  # where the store was, a rank failed before this one

    def leave(self) -> None:
        """After the last word to each other."""
        with contextlib.suppress(RuntimeError):
            self._dist.destroy_process_group()


def _cut(n: int, rank: int, world_size: int) -> slice:
    each, more = divmod(n, world_size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


@contextlib.contextmanager
def _or_lost(what: str = "another rank ended") -> Iterator[None]:
    """torch says it in a RuntimeError of several lines, with the address of a socket."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"{what} ({first_line(error)}): what is finished stays; repeat the same command, with "
            "--max-restarts after torchrun to have that done for you"
        ) from error
