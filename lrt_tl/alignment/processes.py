"""Several processes share a pass: each runs the models on its own batches, and at the end their sums add up.

They are those of `torch.distributed`'s group, and rank 0 is the one that prints. During the pass no process waits for
another. What one has to tell the others it leaves in the group's store: an error, above all, at which they look every
second. A collective would wait for a process that never comes, so before each one all meet at the store.
"""

import atexit
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.progress import BAR

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LOOKS_AT_A_MEETING = 0.02
_SECONDS_TO_PART = 30.0
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")


def is_first() -> bool:
    """Whether this process is the one to print and to draw progress bars: the only one, or rank 0 of its group."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def bar() -> dict[str, Any]:
    """For tqdm: one process draws the bars, unless `TQDM_DISABLE` says that none does."""
    return BAR if is_first() else BAR | {"disable": True}


def join_launched(device: str | None) -> tuple[str | None, bool]:
    """Join the group of the processes that torchrun launched, if it launched this one.

    Args:
        device: if None, each process gets a CUDA device of its own, where there are any.

    Returns:
        the device to use, and whether there is such a group.

    Raises:
        LrtError: there are more processes than CUDA devices on this machine.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return device, False
    own = device is None and torch.cuda.is_available()
    if own:
        device = _own_cuda_device(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own and dist.is_nccl_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return device, True


def _own_cuda_device(local_rank: int, n_devices: int) -> str:
    if local_rank >= n_devices:
        raise LrtError(
            f"process {local_rank} of this machine has no CUDA device of its own, for there are {n_devices}: start no "
            f"more processes than that (--nproc-per-node={n_devices}), or give --device"
        )
    return f"cuda:{local_rank}"


class Processes:
    """The processes that share one pass, as one of them sees them. Of a single one, nothing here does anything.

    Args:
        store: where they leave notes for one another; each pass has its own keys in it.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: "Store | None" = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._meetings, self._looked = itertools.count(), time.monotonic()

    def look(self) -> None:
        """Look, once a second at most, whether another process has failed.

        Raises:
            LrtError: one has; its rank and message. Or the store is gone, with the process that kept it.
        """
        if self._store is not None and time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
            with _naming_lost_others():
                self._look_at(self._store)
            self._looked = time.monotonic()

    def gather(self, value: Any) -> list[Any]:
        """Each process's value (JSON), by rank. Waits for them all.

        Raises:
            LrtError: as `look`.
        """
        if self._store is None:
            return [value]
        meeting = next(self._meetings)
        keys = [f"{meeting}/{rank}" for rank in range(self.size)]
        with _naming_lost_others():
            self._store.set(keys[self.rank], json.dumps(value))
            while not self._store.check(keys):
                failed = self._store.check(["failed"])
                if failed and not self._store.check(keys):  # else one failed at what it heard here, as all will
                    self._look_at(self._store)
                time.sleep(_SECONDS_BETWEEN_LOOKS_AT_A_MEETING)
            return [json.loads(self._store.get(key)) for key in keys]

    def meet(self) -> None:
        """Wait for all.

        Raises:
            LrtError: as `look`.
        """
        self.gather(None)

    def from_one(self, make: Callable[[], _Value], *, rank: int) -> _Value:
        """What `make` gives in the process of one rank, in all. It is pickled: tensors must be on the CPU."""
        if self._store is None:
            return make()
        box: list[Any] = [make() if self.rank == rank else None]
        self.meet()
        dist.broadcast_object_list(box, src=rank)
        made: _Value = box[0]
        return made

    def add_(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor its sum over the processes, the same bits in each."""
        if self._store is None:
            return
        self.meet()
        for tensor in tensors:
            there = tensor.to({"nccl": "cuda", "gloo": "cpu"}.get(dist.get_backend(), tensor.device))
            dist.all_reduce(there)
            tensor.copy_(there)

    def tell(self, error: BaseException) -> None:
        """Leave an error for the others, unless another was first."""
        message = str(error) if isinstance(error, LrtError) else f"{type(error).__name__}: {error}"
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone already
                self._store.compare_set("failed", "", json.dumps([self.rank, message]))

    def part(self) -> None:
        """Wait until all have come here, some time at most: the store may go with this process."""
        if self._store is not None:
            until = time.monotonic() + _SECONDS_TO_PART
            with suppress(RuntimeError):  # the store is gone, and so the one that kept it has seen all come
                self._store.add("parting", 1)
                while self._store.add("parting", 0) < self.size and time.monotonic() < until:
                    time.sleep(_SECONDS_BETWEEN_LOOKS_AT_A_MEETING)

    def _look_at(self, store: "Store") -> None:
        if store.check(["failed"]):
            rank, message = json.loads(store.get("failed"))
            raise LrtError(f"process {rank} of {self.size} failed: {message}")


_passes = itertools.count()
_open: list[Processes] = []


@contextmanager
def sharing(distributed: bool) -> Iterator[Processes]:
    """The processes that share what is done in this block, in which an error of one stops all.

    A block in another one is of the same processes.

    Args:
        distributed: those of torch.distributed's group, all of which must come here; else this one alone.

    Raises:
        LrtError: there is no such group, or another process failed.
    """
    if not distributed:
        yield Processes()
    elif _open:
        yield _open[0]
    else:
        _open.append(_group())
        try:
            yield _open[0]
            _open[0].meet()
        except BaseException as error:
            _open[0].tell(error)
            raise
        finally:
            _open.pop().part()


def shared(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """All of a function in such a block, where it is called with `distributed=True`."""

    @wraps(function)
    def call(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        with sharing(bool(options.get("distributed"))):
            return function(*args, **options)

    return call


def _group() -> Processes:
    if not (dist.is_available() and dist.is_initialized()):
        raise LrtError(
            "distributed=True shares a pass with the other processes of torch.distributed's group, and there is none: "
            "start the program with torchrun, and let it call torch.distributed.init_process_group() first"
        )
    store = dist.distributed_c10d._get_default_store()
    rank, size = dist.get_rank(), dist.get_world_size()
    return Processes(rank, size, dist.PrefixStore(f"lrt_tl/{next(_passes)}", store))  # type: ignore[attr-defined]


@contextmanager
def _naming_lost_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LrtError(f"the other processes are gone, or cannot be reached: {error}") from error
