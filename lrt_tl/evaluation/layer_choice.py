"""Which layer of the target to carry vectors to: chosen on prompts on which nothing is scored afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.effects import COEFFICIENTS, dose_response, slopes
from lrt_tl.models.protocol import HookedModel
from lrt_tl.report.style import layout
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_columns

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Vectors = tuple[SteeringVector, SteeringVector]
"""The native one at a layer, and the transferred one."""


@dataclass(frozen=True)
class LayerChoice:
    """The effects at every layer that was tried, on the choosing half of the prompts.

    Attributes:
        hook_names: where the target was tried.
        transferred: by behavior, the slope of the transferred vector's effect at each, for a length of the native one.
        native: the same of the native vector.
        chosen: which of `hook_names`: where the transferred vectors do most, each behavior's slopes in units of its
            best.
    """

    hook_names: tuple[str, ...]
    transferred: Mapping[str, tuple[float, ...]]
    native: Mapping[str, tuple[float, ...]]
    chosen: int

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a layer."""
        return [
            {"layer": f"{name}{' (chosen)' if place == self.chosen else ''}"}
            | {
                f"{behavior}, slope": f"{carried[place]:+.3g} (native {self.native[behavior][place]:+.3g})"
                for behavior, carried in self.transferred.items()
            }
            for place, name in enumerate(self.hook_names)
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        by_behavior = {
            name: {"transferred": list(self.transferred[name]), "native": list(self.native[name])}
            for name in self.native
        }
        return {"hook_names": list(self.hook_names), "chosen": self.hook_names[self.chosen], "slopes": by_behavior}

    def figure(self) -> "Figure":
        """A heat map of the transferred vectors' slopes, each behavior's in units of its largest."""
        from html import escape

        from plotly.graph_objects import Figure, Heatmap

        shares = [_in_units_of_best(values) for values in self.transferred.values()]
        figure = Figure(
            Heatmap(
                z=shares,
                x=[escape(name) for name in self.hook_names],
                y=[escape(name) for name in self.transferred],
                text=[[f"{value:+.3g}" for value in values] for values in self.transferred.values()],
                texttemplate="%{text}",
                colorscale="RdBu_r",
                zmin=-1,
                zmax=1,
                colorbar={"title": "of the best"},
            )
        )
        return figure.update_layout(layout(height=180 + 40 * len(shares), margin={"l": 90, "t": 30}))

    def __repr__(self) -> str:
        return f"LayerChoice({self.hook_names[self.chosen]} of {len(self.hook_names)}, for {', '.join(self.native)})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def choose_layer(
    target: HookedModel,
    vectors: Sequence[Sequence[Vectors]],
    behaviors: Sequence[Behavior],
    *,
    coefficients: Sequence[float] = COEFFICIENTS,
    prepend_bos: bool = True,
) -> LayerChoice:
    """Measure the native and the transferred vectors at every layer, and choose where the transferred ones do most.

    Args:
        vectors: for each layer, those of every behavior.
        behaviors: with the prompts to choose on alone.
    """
    found: dict[str, tuple[list[float], list[float]]] = {behavior.name: ([], []) for behavior in behaviors}
    for of_layer in vectors:
        for behavior, (native, transferred) in zip(behaviors, of_layer, strict=True):
            directions = torch.stack([native.direction, transferred.scaled_to(native.norm).direction])
            scores = dose_response(
                target, native.site.hook_name, directions, behavior, coefficients, prepend_bos=prepend_bos
            )
            for kept, slope in zip(found[behavior.name], slopes(scores, coefficients).mean(1).tolist(), strict=True):
                kept.append(slope)
    transferred_slopes = {name: tuple(slope) for name, (_, slope) in found.items()}
    total = torch.tensor([_in_units_of_best(slope) for slope in transferred_slopes.values()]).sum(0)
    return LayerChoice(
        tuple(of_layer[0][0].site.hook_name for of_layer in vectors),
        transferred_slopes,
        {name: tuple(slope) for name, (slope, _) in found.items()},
        int(total.argmax()),
    )


def _in_units_of_best(values: Sequence[float]) -> list[float]:
    largest = max(*map(abs, values), 1e-30)
    return [value / largest for value in values]
