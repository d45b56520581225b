"""Passes that several processes share, for `test_processes.py`: `python -m tests.alignment.sharing source target out`.

It loads two models once, and forks the processes of each case, which costs milliseconds. Of each process it leaves what
it raised, in `out/CASE/RANK.json`, or the moments, in `out/CASE/RANK`. Who is not done in time is killed.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.fit import harvest_moments
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.layer_search import search_layers
from lrt_tl.alignment.moments import fit_pairs
from lrt_tl.models.identity import site_of
from lrt_tl.models.loading import load_model
from lrt_tl.text.documents import Exclusion, read_documents

SECONDS = 60.0
HOOKS = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
Work = Callable[[int], HarvestedMoments | None]


def texts() -> list[str]:
    """50 batches of 4, some with unknown words, which are special tokens."""
    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(41)]
    return [" ".join(generator.choice(words, size=generator.integers(4, 30))) for _ in range(200)]


def run(out: Path, case: str, size: int, work: Work, *, on_file: bool = False) -> None:
    """Do the work in `size` processes of one group, or in a single process without any."""
    folder = out / case
    folder.mkdir(parents=True)
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            try:
                one_process(folder, rank, size, work, on_file=on_file)
            finally:
                os._exit(0)
        children.append(child)
    until = time.monotonic() + SECONDS
    for child in children:
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.01)


def one_process(folder: Path, rank: int, size: int, work: Work, *, on_file: bool) -> None:
    """Join the group; leave the result."""
    with (folder / f"{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if size > 1:
        store = dist.FileStore(str(folder / "store"), size) if on_file else tcp_store(folder / "port", rank)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    report: dict[str, Any] = {"error": None, "type": None}
    try:
        moments = work(rank)
        if moments is not None:
            moments.save(folder / str(rank))
    except Exception as error:
        report = {"error": str(error), "type": type(error).__name__}
    (folder / f"{rank}.json").write_text(json.dumps(report))


def tcp_store(file: Path, rank: int) -> Any:
    """A store in rank 0, which goes with it, at a port that is free."""
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        file.with_suffix(".partial").write_text(str(store.port))
        file.with_suffix(".partial").rename(file)
        return store
    while not file.exists():
        time.sleep(0.01)
    return dist.TCPStore("127.0.0.1", int(file.read_text()), is_master=False, timeout=timedelta(seconds=30))


@contextmanager
def doing(before_batch: Callable[[int], None], *, method: str = "run") -> Iterator[None]:
    """Do something before each batch, which is told how many this process has done; or before it calibrates."""
    original = getattr(Harvest, method)

    def run(self: Harvest, *args: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(original(self, *args, **options)):
            before_batch(number)
            yield batch

    def other(self: Harvest, *args: Any, **options: Any) -> Any:
        before_batch(0)
        return original(self, *args, **options)

    setattr(Harvest, method, run if method == "run" else other)
    try:
        yield
    finally:
        setattr(Harvest, method, original)


def failing(at: int) -> Callable[[int], None]:
    def fail(number: int) -> None:
        if number == at:
            raise RuntimeError("the disk is on fire")

    return fail


def killed(at: int) -> Callable[[int], None]:
    def kill(number: int) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def main() -> None:
    """All cases."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # a thread, which a fork would not take along
    tqdm.set_lock(threading.RLock())  # its own is shared by forks, and whoever is killed never gives it back
    source, target, out = map(Path, sys.argv[1:])
    models = load_model(source), load_model(target)
    sites = [site_of(model, hook_name=hook) for model, hook in zip(models, HOOKS, strict=True)]
    pairs = fit_pairs([f"source:{HOOKS[0]}"], [f"target:{HOOKS[1]}"])
    every = texts()

    def passed(some: list[str], *, distributed: bool = True, batch_size: int = 4, **options: Any) -> HarvestedMoments:
        harvest = Harvest(
            *models,
            HOOKS[:1],
            HOOKS[1:],
            read_documents(some),
            batch_size=batch_size,
            context_length=16,
            exclude=Exclusion(every[:3]),
        )
        return accumulate(harvest, sites[:1], sites[1:], pairs, distributed=distributed, **options)

    for name, some in {"all": every, "few": every[3:10]}.items():
        run(out, f"{name}-alone", 1, lambda rank, some=some: passed(some, distributed=False))
        run(out, f"{name}-of-3", 3, lambda rank, some=some: passed(some))

    def fails_and_goes_on(rank: int) -> HarvestedMoments:
        done = []

        def slow(number: int) -> None:
            done.append(number)
            time.sleep(0.25)

        try:
            with doing(failing(2) if rank == 1 else slow):
                passed(every)
        except Exception as error:
            (out / f"failed-{rank}.json").write_text(json.dumps([str(error), len(done)]))
        return passed(every)

    run(out, "fails-and-goes-on", 3, fails_and_goes_on)

    def fails_to_calibrate(rank: int) -> HarvestedMoments:
        with doing(failing(0), method="calibrate"):
            return passed(every)

    run(out, "fails-to-calibrate", 3, fails_to_calibrate)

    def fails_where_the_store_is(rank: int) -> HarvestedMoments:
        with doing(failing(1) if rank == 0 else lambda number: None):
            return passed(every)

    run(out, "fails-where-the-store-is", 3, fails_where_the_store_is)
    run(out, "other-batches", 3, lambda rank: passed(every, batch_size=5 if rank == 2 else 4))
    run(out, "no-documents", 2, lambda rank: harvest_moments(
        *models, out / "missing.txt" if rank else every, layers=(1, 2), distributed=True
    ))  # fmt: skip

    def interrupted(place: Path, deaths: tuple[int, ...]) -> Work:
        def work(rank: int) -> HarvestedMoments:
            with doing(killed(deaths[rank])):
                return passed(every, checkpoint=place, seconds=0.0)

        return work

    run(out, "uninterrupted", 2, interrupted(out / "kept", (-1, -1)), on_file=True)
    for name, deaths in {"both": (7, 2), "one": (0, 5)}.items():
        place = out / f"kept-{name}"
        run(out, f"killed-{name}", 2, interrupted(place, deaths), on_file=True)
        run(out, f"of-3-{name}", 3, interrupted(place, (-1, -1, -1)), on_file=True)
        run(out, f"alone-{name}", 1, lambda rank, place=place: passed(every, distributed=False, checkpoint=place))
        kept = {path.parent.name: int(path.name) for path in place.glob("rank-*/0*")}
        (out / f"kept-{name}.json").write_text(json.dumps(kept))
        run(out, f"resumed-{name}", 2, interrupted(place, (-1, -1)), on_file=True)

    def searched(rank: int, *, distributed: bool = True) -> None:
        found = search_layers(*models, every, n_nulls=2, sketch=8, distributed=distributed)
        tables = {name: getattr(found, name).tolist() for name in ("cv_r2", "test_r2", "cka")}
        (out / f"search-{rank if distributed else 'alone'}.json").write_text(json.dumps(tables))

    run(out, "search-alone", 1, lambda rank: searched(rank, distributed=False))
    run(out, "search-of-2", 2, searched)


if __name__ == "__main__":
    main()
