"""One pass over the text → the moments of both models' activations: kept now and then, so that a pass that was killed
goes on where it was, and saved, so that the passes of several machines add up."""

import hashlib
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.harvest import Calibration, Harvest, Transform
from lrt_tl.alignment.moments import Centered, Moments, Pair
from lrt_tl.artifacts import load_artifact, save_artifact
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import Site, describe_sites, require_same_site
from lrt_tl.text.documents import N_SPLITS, hash_of

KIND = "harvested_moments"
SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True, eq=False)
class HarvestedMoments:
    """The moments of one pass, and of what they are."""

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
            MismatchError: they are of other models or hook points.
        """
        for ours, theirs in zip(self.sources + self.targets, other.sources + other.targets, strict=False):
            require_same_site(ours, theirs, what="a site of the first moments")
        if (len(self.sources), len(self.targets)) != (len(other.sources), len(other.targets)):
            raise MismatchError("the moments are of different numbers of hook points")
        return HarvestedMoments(
            self.sources, self.targets, self.moments.merge(other.moments), self.counts.merge(other.counts)
        )

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
) -> HarvestedMoments:
    """Take the moments of a pass over the text.

    Args:
        pairs: which products to keep.
        checkpoint: a folder in which to keep the moments every `seconds`, with the position in the text. Started again
            with the same arguments, the pass goes on from there, and gives the same moments bit for bit. What
            was kept is removed at the end; nothing else that is in the folder is touched.

    Raises:
        LrtError: the checkpoint is of other arguments (says which), or what the harvest refuses.
    """
    place = None if checkpoint is None else Path(checkpoint)
    arguments = _arguments(harvest, sources, targets) if place else {}
    found = None if place is None else _resume(place, arguments)
    if found is None:
        calibration, done = harvest.calibrate(), 0
        whole = HarvestedMoments(
            tuple(sources), tuple(targets), Moments.empty(N_SPLITS, calibration.means, pairs), HarvestCounts()
        )
    else:
        whole, done = found
        calibration = Calibration(whole.counts.median_norms, whole.moments.shifts)
    saved = time.monotonic()
    for number, batch in enumerate(harvest.run(calibration, whole.counts, skip=done), start=done + 1):
        whole.moments.update(batch.states, batch.splits)
        if place is not None and time.monotonic() - saved > seconds:
            _keep(place, whole, {**arguments, "batches": number})
            saved = time.monotonic()
    if place is not None:
        _remove(place)
    return whole


def _keep(place: Path, whole: HarvestedMoments, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, then remove those before it: at any instant there is a whole one."""
    before = _checkpoints(place)
    _save(whole, place / f"{state['batches']:012d}", state)
    for old in before:
        shutil.rmtree(old)


def _resume(place: Path, arguments: Mapping[str, Any]) -> tuple[HarvestedMoments, int] | None:
    found = _checkpoints(place)
    if not found:
        return None
    whole, state = _load(found[-1])
    different = [name for name, value in arguments.items() if state.get(name) != value]
    if different:
        raise LrtError(
            f"{place} holds a pass with another {', '.join(different)}: "
            + "; ".join(f"{name} was {_short(state.get(name))}, and is {_short(arguments[name])}" for name in different)
            + ". Give the same arguments to go on, or remove it"
        )
    return whole, int(state["batches"])


def _checkpoints(place: Path) -> list[Path]:
    """Whole checkpoints, the last one last."""
    return sorted(path for path in place.glob("*") if re.fullmatch(r"\d{12}", path.name) and path.is_dir())


def _remove(place: Path) -> None:
    """Remove the checkpoints, and what a killed writer left of one; and the folder, if nothing else is in it."""
    for path in [*_checkpoints(place), *place.glob(".*.partial-*")]:
        shutil.rmtree(path)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _arguments(harvest: Harvest, sources: Sequence[Site], targets: Sequence[Site]) -> dict[str, Any]:
    """All that decides the moments, in JSON."""
    texts = hashlib.sha256()
    for document in tqdm(harvest.documents, desc="compare", unit=" documents", leave=False):
        texts.update(hash_of(document.text).to_bytes(8, "big"))
    names = ("batch_size", "context_length", "layout", "prepend_bos")
    widths = {"source": harvest.source.cfg.d_model, "target": harvest.target.cfg.d_model}
    return {
        "source": [site.to_json() for site in sources],
        "target": [site.to_json() for site in targets],
        "documents": [harvest.documents.name, texts.hexdigest()],
        "excluded texts": harvest.exclude.fingerprint,
        "features": {key: _fingerprint(f, widths[key.split(":")[0]]) for key, f in harvest.transforms.items()},
        **{name: getattr(harvest, name) for name in names},
    }


def _fingerprint(transform: Transform, d_model: int) -> str:
    """Of a function, by what it makes of some fixed states."""
    states = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0))
    return hashlib.sha256(transform(states).detach().float().cpu().numpy().tobytes()).hexdigest()[:16]


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
