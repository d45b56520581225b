"""Does a pass that is killed again and again lose anything?

`python benchmarks/kills.py` takes moments with a checkpoint every 30 ms in a child process, kills it with SIGKILL at a
random instant, and starts it again, until it is done; and begins another pass, until `--kills` kills have happened.
After each kill it loads every checkpoint that there is, and counts the batches that will be done again: none of them
may have been begun later than 30 ms after the last checkpoint, or else one was lost. The moments of each pass must be
those of an uninterrupted one bit for bit, and nothing but the last checkpoint may be left behind. Prints a table for
people, and last one line of JSON. The models are tables of numbers, for what is on trial is the pass, and
TransformerLens takes longer to import than a pass takes.
"""

import argparse
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.harvest import Harvest, PairedActivations
from lrt_tl.alignment.moments import fit_pairs
from lrt_tl.errors import LrtError
from lrt_tl.models.identity import site_of
from lrt_tl.tables import print_table
from lrt_tl.text.documents import read_documents

SECONDS_BETWEEN_CHECKPOINTS = 0.03
HOOK = "blocks.0.hook_resid_post"
BATCHES = 150
LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_token_id = eos_token_id = pad_token_id = 0
    all_special_ids, all_special_tokens = (0,), ("|",)

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[LETTERS.index(letter) + 1 for letter in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {letter: number for number, letter in enumerate(LETTERS, start=1)}


class Point:
    """A hook point."""

    def __init__(self) -> None:
        self.fwd_hooks: list[Any] = []

    def add_hook(self, hook: Any) -> None:
        self.fwd_hooks.append(SimpleNamespace(call=hook, hook=SimpleNamespace(remove=lambda: None)))


class Table:
    """A model whose state at a token is the sum of the embeddings of the tokens before it, and of its own."""

    blocks = ()

    def __init__(self, name: str, d_model: int) -> None:
        self.cfg = SimpleNamespace(
            model_name=name, n_layers=1, d_model=d_model, n_ctx=256, device="cpu", dtype=torch.float32
        )
        self.tokenizer = Letters()
        self.W_E = torch.randn(len(LETTERS) + 1, d_model, generator=torch.Generator().manual_seed(d_model))
        self.hook_dict = {HOOK: Point()}

    def __call__(self, tokens: Tensor, attention_mask: Tensor) -> None:
        states = (self.W_E[tokens] * attention_mask[..., None]).cumsum(1)
        for handle in self.hook_dict[HOOK].fwd_hooks:
            handle.call(states, hook=None)


class Log:
    """What a child leaves in memory that its parent sees, even of a child that is killed. Times are monotonic."""

    def __init__(self) -> None:
        self.begun, self.done = (torch.zeros(BATCHES, dtype=torch.float64).share_memory_() for _ in range(2))
        self.skipped, self.returned = (torch.zeros(1, dtype=torch.int64).share_memory_() for _ in range(2))
        self.started = torch.zeros(1, dtype=torch.float64).share_memory_()

    def clear(self) -> None:
        for tensor in vars(self).values():
            tensor.zero_()


@dataclass(frozen=True)
class LoggedHarvest(Harvest):
    """A harvest that writes down when each batch was begun, and when all was done with it (a checkpoint, too)."""

    log: Log | None = None

    def run(self, *args: Any, skip: int = 0, **options: Any) -> Iterator[PairedActivations]:
        assert self.log is not None
        self.log.skipped[0], self.log.started[0] = skip, time.monotonic()
        for number, batch in enumerate(super().run(*args, skip=skip, **options), start=skip):
            self.log.begun[number] = time.monotonic()
            yield batch
            self.log.done[number] = time.monotonic()


@dataclass
class Found:
    """What the kills have shown."""

    kills: int = 0
    passes: int = 0
    different: int = 0
    """Passes whose moments are not those of the uninterrupted one."""
    lost: int = 0
    """Kills that cost more than one interval's work."""
    broken: int = 0
    """Checkpoints that did not load."""
    left_behind: int = 0
    """Passes after which something else was left than the last checkpoint."""
    in_writing: int = 0
    """Kills while a checkpoint was written, as the leftovers show."""
    in_removal: int = 0
    before_the_first: int = 0
    batches: int = 0
    batches_again: int = 0


def moments_of(harvest: Harvest, place: Path | None) -> HarvestedMoments:
    """One pass."""
    source, target = (site_of(model, hook_name=HOOK) for model in (harvest.source, harvest.target))
    pairs = fit_pairs([f"source:{HOOK}"], [f"target:{HOOK}"])
    return accumulate(harvest, [source], [target], pairs, checkpoint=place, seconds=SECONDS_BETWEEN_CHECKPOINTS)


def fork(harvest: LoggedHarvest, place: Path, result: Path) -> int:
    """Start a pass, or go on with it, in a child, which has imported and loaded all that it needs."""
    assert harvest.log is not None
    harvest.log.clear()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with result.with_suffix(".log").open("w") as log:
            os.dup2(log.fileno(), 2)
        moments = moments_of(harvest, place)
        harvest.log.returned[0] = 1
        moments.save(result)
        status = 0
    finally:
        os._exit(status)


def killed_after(seconds: float, child: int, log: Log) -> bool:
    """Let a child live so long. False: it was done before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until or log.returned[0]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise LrtError(f"the pass ended with status {status}")
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def inspect(place: Path, log: Log, found: Found) -> None:
    """What a kill has left, and what it will cost."""
    found.kills += 1
    numbers = sorted(int(path.name) for path in place.glob("*") if re.fullmatch(r"\d{12}", path.name))
    for number in numbers:
        try:
            HarvestedMoments.load(place / f"{number:012d}")
        except LrtError:
            found.broken += 1
    last, skipped = max(numbers, default=0), int(log.skipped)
    leftovers = [int(path.name[1:13]) for path in place.glob(".*.partial-*")]
    found.in_writing += any(number > last for number in leftovers)
    found.in_removal += any(number <= last for number in leftovers)
    if not log.started:
        return  # before it began, or went on
    done = skipped + int((log.done[skipped:] > 0).sum())
    found.before_the_first += not last
    again = log.begun[last:done]
    since = log.done[last - 1] if last > skipped else log.started[0]
    found.batches_again += len(again)
    found.lost += last < skipped or bool((again - since > SECONDS_BETWEEN_CHECKPOINTS).any())


def tensors_of(harvested: HarvestedMoments) -> list[Tensor]:
    """All numbers."""
    moments = harvested.moments
    return [moments.count, *moments.shifts.values(), *moments.sums.values(), *moments.products.values()]


def same(ours: HarvestedMoments, theirs: HarvestedMoments) -> bool:
    """Bit for bit, the counts too."""
    equal = all(torch.equal(a, b) for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True))
    return equal and ours.counts == theirs.counts


def campaign(harvest: LoggedHarvest, wanted: HarvestedMoments, kills: int, longest: float, seed: int) -> Found:
    """Passes that are killed at random instants, `longest` seconds after they were started at most."""
    found, generator, log = Found(), random.Random(seed), harvest.log
    assert log is not None
    with tqdm(total=kills, desc="kills") as progress:
        while found.kills < kills:
            with tempfile.TemporaryDirectory() as folder:
                place, result = Path(folder) / "checkpoint", Path(folder) / "moments"
                while True:
                    child = fork(harvest, place, result)
                    alive = generator.uniform(0, longest) if found.kills < kills else float("inf")
                    if not killed_after(alive, child, log):
                        break
                    inspect(place, log, found)
                    progress.update()
                found.passes += 1
                found.batches += BATCHES
                found.different += not same(HarvestedMoments.load(result), wanted)
                found.left_behind += {path.name for path in place.iterdir()} != {f"{BATCHES:012d}"}
    return found


def main() -> None:
    """The campaign, and what it has shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # a thread, which a fork would not take along
    tqdm.set_lock(threading.RLock())  # its own is shared by forks, and whoever is killed never gives it back
    generator = random.Random(given.seed)
    texts = ["".join(generator.choices(LETTERS, k=generator.randint(10, 100))).strip() for _ in range(4 * BATCHES)]
    log = Log()
    harvest = LoggedHarvest(Table("small", 64), Table("large", 128), [HOOK], [HOOK], read_documents(texts), 4, log=log)
    started = time.monotonic()
    wanted = moments_of(harvest, None)
    seconds = time.monotonic() - started
    found = campaign(harvest, wanted, given.kills, longest=seconds, seed=given.seed)
    print_table(
        f"{found.kills} kills of {found.passes} passes of {BATCHES} batches ({seconds:.1f} s uninterrupted)",
        {
            "passes with other moments": str(found.different),
            "kills that cost more than one interval": str(found.lost),
            "checkpoints that did not load": str(found.broken),
            "passes that left more than the last checkpoint": str(found.left_behind),
            "kills while a checkpoint was written": str(found.in_writing),
            "kills while one was removed": str(found.in_removal),
            "kills before the first checkpoint": str(found.before_the_first),
            "batches done again, of all": f"{found.batches_again} of {found.batches}",
        },
    )
    print(json.dumps({"benchmark": "kills", **vars(found), "seed": given.seed}))


if __name__ == "__main__":
    main()
