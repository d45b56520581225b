"""What one transfer found: the map, the vectors, what they do, and the folder that holds it all."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.artifacts import new_folder, write_json, write_text
from lrt_tl.evaluation.evaluate import TransferResult
from lrt_tl.evaluation.report import BehaviorSection, render_report
from lrt_tl.models.identity import describe_sites
from lrt_tl.steering.vector import SteeringVector

SUMMARY_VERSION = 1


@dataclass(frozen=True, eq=False)
class BehaviorTransfer:
    """One behavior's vectors, in the source, carried over, and found in the target itself, and what they do."""

    source_vectors: tuple[SteeringVector, ...]
    """One at each site that the map begins at."""
    transferred: SteeringVector
    native: SteeringVector
    result: TransferResult
    samples: list[dict[str, str]]
    sample_coefficient: float


@dataclass(frozen=True, eq=False)
class TransferRun:
    """Everything that one `transfer` found."""

    affine_map: AffineMap
    behaviors: list[BehaviorTransfer]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        fit = self.affine_map.report
        first = self.behaviors[0].result
        return {
            "format_version": SUMMARY_VERSION,
            "versions": _versions(),
            "arguments": dict(self.arguments),
            "sources": [site.to_json() for site in self.affine_map.sources],
            "target": self.affine_map.target.to_json(),
            "map": fit.to_json(),
            "vector": {"cosine_with_native": first.cosine_with_native, "norm_over_native": first.norm_over_native},
            "behaviors": [behavior.result.summary() for behavior in self.behaviors],
        }

    def save(self, out: str | Path) -> Path:
        """Write `map/`, `vectors/BEHAVIOR/{source,transferred,native}/`, `summary.json` and `report.html` to a new
        folder.

        Raises:
            ArtifactError: the folder exists.
        """
        with new_folder(out) as folder:
            self.affine_map.save(folder / "map")
            for behavior in self.behaviors:
                place = folder / "vectors" / folder_name(behavior.result.behavior)
                for vector in behavior.source_vectors:
                    many = len(behavior.source_vectors) > 1
                    _, layer, point = vector.site.hook_name.split(".")
                    vector.save(place / (f"source-{layer}-{point.removeprefix('hook_')}" if many else "source"))
                behavior.transferred.save(place / "transferred")
                behavior.native.save(place / "native")
            write_json(folder / "summary.json", self.summary())
            write_text(folder / "report.html", self.report())
        return Path(out)

    def report(self) -> str:
        """The run as a page of HTML."""
        sections = [BehaviorSection(b.result, b.samples, b.sample_coefficient) for b in self.behaviors]
        target = self.affine_map.target
        return render_report(
            f"From {describe_sites(self.affine_map.sources)} to {target}",
            sections,
            target="the target" if target.model is None else target.model.name,
            map_table=self.affine_map.summary(),
            harvest_table=self.affine_map.report.harvested(),
            versions=_versions(),
            reproduce=_reproduce(self.arguments),
        )

    def __repr__(self) -> str:
        return f"TransferRun({self.affine_map!r}; {'; '.join(repr(b.result) for b in self.behaviors)})"

    def _repr_html_(self) -> str:
        return self.affine_map._repr_html_() + "".join(b.result._repr_html_() for b in self.behaviors)


def folder_name(behavior: str) -> str:
    """A behavior's name as the name of a folder: letters, digits, `-` and `_` only."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", behavior).strip("-") or "behavior"


def _versions() -> dict[str, str]:
    packages = ("lrt-tl", "transformer-lens", "transformers", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _reproduce(arguments: Mapping[str, Any]) -> str:
    if "command" in arguments:
        return str(arguments["command"])
    called = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return f"lrt_tl.transfer(\n    source, target, documents, tasks,\n{called})"
