"""One pass over the text → the moments of both models' activations: kept now and then, so that a pass that was killed
goes on where it was, and saved, so that the passes of several machines add up."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from tqdm.auto import tqdm

from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.harvest import Calibration, Harvest, fingerprint_of
from lrt_tl.alignment.moments import Centered, Moments, Pair, device_of_sums
from lrt_tl.alignment.processes import Processes, bar, sharing
from lrt_tl.artifacts import load_artifact, save_artifact
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.models.identity import Site, describe_sites, require_same_site
from lrt_tl.tables import html_table
from lrt_tl.text.documents import N_SPLITS, hash_of
from lrt_tl.text.positions import positions_to_json

KIND = "harvested_moments"
SECONDS_BETWEEN_CHECKPOINTS = 60.0
_RANK_FOLDER = r"rank-\d+-of-\d+"


@dataclass(frozen=True, eq=False)
class HarvestedMoments(OnHub):
    """The moments of one pass, and of what they are.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> first = lrt.harvest_moments(model, model, texts[:30], layers=(0, 2))
        >>> second = lrt.harvest_moments(model, model, texts[30:], layers=(0, 2))
        >>> moments = first.merge(second)
        >>> first.counts.documents, moments.counts.documents
        (30, 60)
    """

    sources: tuple[Site, ...]
    targets: tuple[Site, ...]
    moments: Moments
    """By `source:` or `target:` and the hook name."""
    counts: HarvestCounts

    def parts(self, sources: Sequence[Site], target: Site) -> list[Centered]:
        """Split by split, the moments of these sources, side by side, and of the target."""
        return self.moments.between([f"source:{site.hook_name}" for site in sources], f"target:{target.hook_name}")

    def merge(self, other: "HarvestedMoments") -> "HarvestedMoments":
        """The moments of both passes, which must have read different documents.

        Raises:
            MismatchError: they are of other models, hook points or features, or their texts were read in other ways.
        """
        for ours, theirs in zip(self.sources + self.targets, other.sources + other.targets, strict=False):
            require_same_site(ours, theirs, what="a site of the first moments")
        if (len(self.sources), len(self.targets)) != (len(other.sources), len(other.targets)):
            raise MismatchError("the moments are of different numbers of hook points")
        read, read_there = (
            {name: value for name, value in counts.settings.items() if name != "documents"}
            for counts in (self.counts, other.counts)
        )
        if read != read_there:
            raise MismatchError(f"the text was read in different ways: {read} and {read_there}")
        return HarvestedMoments(
            self.sources, self.targets, self.moments.merge(other.moments), self.counts.merge(other.counts)
        )

    def _repr_html_(self) -> str:
        return html_table(self.counts.summary(), caption=repr(self))

    def save(self, folder: str | Path) -> Path:
        """Write the moments to a new folder.

        Raises:
            ArtifactError: the folder exists.
        """
        return _save(self, folder, {})

    @classmethod
    def load(cls, folder: str | Path) -> "HarvestedMoments":
        """Read moments back.

        Raises:
            ArtifactError: the folder does not hold whole, unaltered moments.
        """
        return _load(folder)[0]

    def __repr__(self) -> str:
        ends = " → ".join(map(describe_sites, (self.sources, self.targets)))
        return f"HarvestedMoments({ends}, {self.counts.positions:,} positions of {self.counts.documents:,} documents)"


def accumulate(
    harvest: Harvest,
    sources: Sequence[Site],
    targets: Sequence[Site],
    pairs: Iterable[Pair],
    *,
    checkpoint: str | Path | None = None,
    seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    distributed: bool = False,
) -> HarvestedMoments:
    """Take the moments of a pass over the text.

    Args:
        pairs: which products to keep.
        checkpoint: a folder in which to keep the moments every `seconds`, and at the end, with the position in the
            text. Started again with the same arguments, the pass goes on from there, and gives the same moments bit for
            bit; of a pass that was done without running a model. The folder is left to whoever named it.
        distributed: share the pass with the other processes of torch.distributed's group, which must be initialized,
            and in which all must call this with the same arguments. Each gets the moments of the whole pass: those of
            one process, but for the order of the float64 sums. Rank 0 calibrates. Each process keeps its own
            checkpoints, in the folder's `rank-R-of-N`, and goes on from its own; one that has none begins at the
            beginning. An error in one stops all; it is for the launcher, as torchrun does, to stop the others of one
            that is killed.

    Raises:
        LrtError: the checkpoint is of other arguments (says which) or of another number of processes, what the harvest
            refuses, or another process failed (says which, and how). The same in all processes if their arguments
            differ.
    """
    pairs = list(pairs)
    with sharing(distributed) as processes:
        place = None if checkpoint is None else _own_place(Path(checkpoint), processes)
        arguments = _arguments(harvest, sources, targets, pairs) if place or distributed else {}
        _require_same(arguments, processes)
        found, done = (None, 0) if place is None else _resume(place, arguments, harvest.source.cfg.device)
        calibration = _calibrate(harvest, found, processes)
        whole = found or HarvestedMoments(
            tuple(sources), tuple(targets), Moments.empty(N_SPLITS, calibration.means, pairs), HarvestCounts()
        )
        batches = harvest.run(calibration, whole.counts, skip=done, rank=processes.rank, size=processes.size)
        saved, kept = time.monotonic(), done
        for batch in batches:
            whole.moments.update(batch.states, batch.splits)
            done += 1
            processes.look()
            if place is not None and time.monotonic() - saved > seconds:
                _keep(place, whole, {**arguments, "batches": done})
                saved, kept = time.monotonic(), done
        if place is not None and kept < done:
            _keep(place, whole, {**arguments, "batches": done})
        return _add_up(whole, processes)


def _own_place(place: Path, processes: Processes) -> Path:
    """Where this process keeps its checkpoints."""
    sizes = [int(path.name.rsplit("-", 1)[1]) for path in place.glob("*") if re.fullmatch(_RANK_FOLDER, path.name)]
    sizes += [1 for _ in _checkpoints(place)]
    others = set(sizes) - {processes.size}
    if others:
        raise LrtError(
            f"{place} holds a pass whose number of processes was {min(others)}, and now it is {processes.size}: start "
            "as many as then to go on, or remove it"
        )
    return place if processes.size == 1 else place / f"rank-{processes.rank}-of-{processes.size}"


def _require_same(arguments: Mapping[str, Any], processes: Processes) -> None:
    """Refuse processes whose arguments differ, in all of them."""
    first, *others = processes.gather(arguments)
    for rank, theirs in enumerate(others, start=1):
        different = [name for name in first if theirs[name] != first[name]]
        if different:
            raise LrtError(
                f"process {rank} of {processes.size} was given another {', '.join(different)} than process 0: "
                + "; ".join(f"{name} is {_short(theirs[name])}, not {_short(first[name])}" for name in different)
                + ". Give the same arguments to all"
            )


def _calibrate(harvest: Harvest, found: HarvestedMoments | None, processes: Processes) -> Calibration:
    """One calibration for all processes: that of the checkpoints, where there is one, or else of rank 0."""
    own = None if found is None else Calibration(found.counts.median_norms, found.moments.shifts)
    known = processes.gather(None if own is None else _of_calibration(own))
    if len(set(known) - {None}) > 1:
        raise LrtError(
            "the processes' checkpoints are of passes with different calibrations: remove them to begin anew"
        )
    if processes.size == 1:
        return own or harvest.calibrate()
    holder = next((rank for rank, fingerprint in enumerate(known) if fingerprint is not None), 0)
    common = processes.from_one(lambda: _moved(own or harvest.calibrate(), "cpu"), rank=holder)
    return _moved(common, harvest.source.cfg.device)


def _of_calibration(calibration: Calibration) -> int:
    means = {key: mean.tolist() for key, mean in calibration.means.items()}
    return hash_of(json.dumps([calibration.median_norms, means], sort_keys=True))


def _moved(calibration: Calibration, device: Any) -> Calibration:
    return replace(calibration, means={key: mean.to(device) for key, mean in calibration.means.items()})


def _add_up(own: HarvestedMoments, processes: Processes) -> HarvestedMoments:
    """The moments of all processes' positions, and the counts: each has read all documents, which count once."""
    moments = own.moments
    processes.add_([moments.count, *moments.sums.values(), *moments.products.values()])
    if processes.rank:
        own.counts.restart()
    everyones = map(HarvestCounts.from_json, processes.gather(asdict(own.counts)))
    return replace(own, counts=reduce(HarvestCounts.merge, everyones))


def _keep(place: Path, whole: HarvestedMoments, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, then remove those before it: at any instant there is a whole one."""
    before = _checkpoints(place)
    _save(whole, place / f"{state['batches']:012d}", state)
    for old in before:
        _discard(old)


def _resume(place: Path, arguments: Mapping[str, Any], device: Any) -> tuple[HarvestedMoments | None, int]:
    """What the last checkpoint holds, where the sums of that device belong, and after how many batches."""
    _sweep(place)
    found = _checkpoints(place)
    if not found:
        return None, 0
    whole, state = _load(found[-1])
    different = [name for name, value in arguments.items() if state.get(name) != value]
    if different:
        raise LrtError(
            f"{place} holds a pass with another {', '.join(different)}: "
            + "; ".join(f"{name} was {_short(state.get(name))}, and is {_short(arguments[name])}" for name in different)
            + ". Give the same arguments to go on, or remove it"
        )
    return replace(whole, moments=whole.moments.to(device_of_sums(torch.device(device)))), int(state["batches"])


def _checkpoints(place: Path) -> list[Path]:
    """Whole checkpoints, the last one last."""
    return sorted(path for path in place.glob("*") if re.fullmatch(r"\d{12}", path.name) and path.is_dir())


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint, renamed first, so that half of one is never taken for a whole."""
    removed = checkpoint.with_name(f".{checkpoint.name}.partial-{token_hex(4)}")
    checkpoint.rename(removed)
    shutil.rmtree(removed)


def _sweep(place: Path) -> None:
    """Remove what is left of checkpoints in whose writing or removal a process was killed."""
    for path in place.glob(".*.partial-*"):
        shutil.rmtree(path)


def _arguments(
    harvest: Harvest, sources: Sequence[Site], targets: Sequence[Site], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """All that decides the moments, in JSON."""
    texts = hashlib.sha256()
    for document in tqdm(harvest.documents, desc="compare", unit=" documents", **bar()):
        texts.update(hash_of(document.text).to_bytes(8, "big"))
    names = ("batch_size", "context_length", "layout", "prepend_bos", "sorted_together")
    configs = {"source": harvest.source.cfg, "target": harvest.target.cfg}
    features = {
        key: fingerprint_of(transform, configs[key.split(":")[0]].d_model, configs[key.split(":")[0]].device)
        for key, transform in harvest.transforms.items()
    }
    return {
        "source": [site.to_json() for site in sources],
        "target": [site.to_json() for site in targets],
        "documents": [harvest.documents.name, texts.hexdigest()],
        "excluded texts": harvest.exclude.fingerprint,
        "features": features,
        **{name: getattr(harvest, name) for name in names},
        "positions": positions_to_json(harvest.positions),
        "products": hash_of(str(pairs)),
    }


def _save(whole: HarvestedMoments, folder: str | Path, state: Mapping[str, Any]) -> Path:
    names = list(whole.moments.shifts)
    tensors = {"count": whole.moments.count}
    for number, name in enumerate(names):
        tensors |= {f"shift.{number}": whole.moments.shifts[name], f"sum.{number}": whole.moments.sums[name]}
    for (a, b), product in whole.moments.products.items():
        tensors[f"product.{names.index(a)}.{names.index(b)}"] = product
    config = {
        "names": names,
        "sources": [site.to_json() for site in whole.sources],
        "targets": [site.to_json() for site in whole.targets],
        "counts": asdict(whole.counts),
        "state": dict(state),
    }
    card = f"# {whole!r}\n\n`lrt-tl merge` adds such folders up, and `lrt-tl solve` makes a map of one."
    return save_artifact(folder, kind=KIND, config=config, tensors=tensors, card=card)


def _load(folder: str | Path) -> tuple[HarvestedMoments, dict[str, Any]]:
    config, tensors = load_artifact(folder, kind=KIND)
    try:
        names = config["names"]
        moments = Moments(
            {name: tensors[f"shift.{number}"] for number, name in enumerate(names)},
            tensors["count"],
            {name: tensors[f"sum.{number}"] for number, name in enumerate(names)},
            {
                (names[int(key.split(".")[1])], names[int(key.split(".")[2])]): tensor
                for key, tensor in tensors.items()
                if key.startswith("product.")
            },
        )
        sources, targets = (tuple(map(Site.from_json, config[side])) for side in ("sources", "targets"))
        return HarvestedMoments(sources, targets, moments, HarvestCounts.from_json(config["counts"])), config["state"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} does not hold whole moments: {error!r}") from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:56]}…"
