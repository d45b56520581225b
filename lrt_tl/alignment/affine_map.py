"""The affine map from the residual stream of one model to another's: h_target ≈ A h_source + b."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.carried import Carried, Known, warn_of_little
from lrt_tl.alignment.fit_report import FitReport
from lrt_tl.artifacts import load_artifact, rebuilding, save_artifact, typed
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.models.hook_names import layer_of
from lrt_tl.models.identity import Site, describe_sites, require_same_model, require_same_site
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_table

KIND = "affine_map"
FEW_TOKENS_PER_DIMENSION = 20
LARGEST_COVARIANCE = 8192
"""Dimensions of a source whose covariance a map keeps: 268 MB."""


@dataclass(frozen=True, eq=False)
class AffineMap(OnHub):
    """h_target ≈ weight · h_source + bias, from one site, or from several of one model side by side, to one site.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> affine_map = lrt.fit_affine_map(source, target, storyworld.documents(60), layers=(3, 5))
        >>> vector = lrt.mean_difference(source, storyworld.contrast_pairs("refusal", 8), layer=3)
        >>> affine_map.transport(vector)  # doctest: +ELLIPSIS
        SteeringVector(storyworld-medium L5, 128 dimensions, norm ..., mean_difference of 8 pairs, transported)
        >>> _, cache = source.run_with_cache("The capital of Norvia is")
        >>> affine_map(cache).shape
        torch.Size([1, 6, 128])
    """

    weight: Float[Tensor, "d_target d_source"]
    """float32, on the CPU; A in the papers. With several sources d_source is that of all of them together."""
    bias: Float[Tensor, "d_target"]
    sources: tuple[Site, ...]
    target: Site
    target_covariance: Float[Tensor, "d_target d_target"]
    """Of the target's states on the fitting text: what the nulls are drawn from."""
    target_norm: float | None
    """Median norm of the residual stream at the target site."""
    report: FitReport
    source_covariance: Float[Tensor, "d_source d_source"] | None = None
    """Of the source's states on the fitting text: what tells which of their directions the map knows. None, and not
    known, where the source has more than `LARGEST_COVARIANCE` dimensions, and in maps of format 1."""

    def __post_init__(self) -> None:
        shape = (self.target.d_model, self.d_source)
        if not self.sources or self.weight.shape != shape or self.bias.shape != shape[:1]:
            raise LrtError(
                f"a map from {self._from()} to {self.target} has shape {shape}, not {tuple(self.weight.shape)}"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise LrtError("the map holds NaN or infinity")
        if self.report.tokens_per_dimension < FEW_TOKENS_PER_DIMENSION:
            warnings.warn(
                f"the map was fitted on {self.report.tokens_per_dimension:.1f} tokens per source dimension; under "
                f"{FEW_TOKENS_PER_DIMENSION} it is poorly determined: give it more text",
                stacklevel=3,
            )

    @property
    def d_source(self) -> int:
        """Dimensions of the source, of all sites together."""
        return sum(site.d_model for site in self.sources)

    @property
    def source(self) -> Site:
        """The site that the map begins at.

        Raises:
            LrtError: it begins at several.
        """
        if len(self.sources) > 1:
            raise LrtError(f"the map begins at {len(self.sources)} sites: see `sources`")
        return self.sources[0]

    def __call__(self, activations: Any) -> Float[Tensor, "*batch d_target"]:
        """Map states; dtype and device are theirs.

        Args:
            activations: `[..., d_source]`, such as `cache["blocks.2.hook_resid_post"]`; or the cache itself (or any
                mapping by hook name), from which a map with several sources takes its states. In a tensor they are
                side by side in the order of `sources`.

        Raises:
            MismatchError: the width is not the source's, or the cache lacks a hook point.
            LrtError: it is neither tensor nor cache.
        """
        states: Tensor = activations if isinstance(activations, Tensor) else self._from_cache(activations)
        self._check_width(states)
        return states @ self.weight.T.to(states) + self.bias.to(states)

    @overload
    def transport(self, vector: SteeringVector | Sequence[SteeringVector]) -> SteeringVector: ...
    @overload
    def transport(self, vector: Tensor) -> Tensor: ...
    def transport(self, vector: SteeringVector | Sequence[SteeringVector] | Tensor) -> SteeringVector | Tensor:
        """Carry a steering vector, or tensors `[..., d_source]`, to the target: A v.

        A steering vector is a *difference* of states, so the bias cancels. (Bello et al. 2025, arXiv 2506.00653, write
        A v + b; then b can dominate the direction.) A map can shorten vectors, so state the strength in the
        target's units: `scale="residual"`, or `scaled_to(norm)`.

        A steering vector comes with what `carried` tells of it in its provenance, and a warning where that is little.

        Args:
            vector: one; or, where the map begins at several sites, the same feature's vector at each, in any order.

        Raises:
            MismatchError: a vector is of another model, basis, width or hook point than the map's source, or the
                vectors are not one for each source.
        """
        if isinstance(vector, Tensor):
            self._check_width(vector)
            return vector @ self.weight.T.to(vector)
        vectors = self._at_sources([vector] if isinstance(vector, SteeringVector) else list(vector))
        whole = torch.cat([each.direction for each in vectors])
        carried = self.carried(whole)
        warn_of_little(carried, what="the vector")
        provenance = {
            **vectors[0].provenance,
            "transported_through": repr(self),
            "transported_from": ", ".join(str(each.site) for each in vectors),
            "carried": None if carried is None else asdict(carried),
        }
        return SteeringVector(self.weight @ whole, self.target, self.target_norm, provenance)

    def carried(self, vector: Float[Tensor, "d_source"]) -> Carried | None:
        """How well the map carries a vector; of several sources those of all, side by side, are judged together.

        Returns:
            None, not known, where the map does not keep its source's covariance.
        """
        self._check_width(vector)
        return None if self._known is None else self._known.judge(vector, self.weight @ vector.to(self.weight))

    @cached_property
    def _known(self) -> Known | None:
        if self.source_covariance is None:
            return None
        return Known.of(
            self.weight,
            self.source_covariance,
            self.target_covariance,
            relative_ridge=self.report.relative_ridge,
            r2=self.report.test_r2,
        )

    def pull_back(
        self, weight: Float[Tensor, "*batch d_target"], bias: Float[Tensor, "*batch"] | float = 0.0
    ) -> tuple[Float[Tensor, "*batch d_source"], Float[Tensor, "*batch"]]:
        """Carry readers (probes) of the target's states, w · h + c, to the source: Aᵀw and c + w · b.

        What reads moves against the map, what writes with it: to carry a probe of the small model to the large one, fit
        the map from the large to the small; by ridge, which predicts best. The bias does not cancel here. What is read
        of states that ridge has mapped varies less than of the target's own (by R² of the map along w), so a threshold
        is to be set anew on held-out data.

        Args:
            weight: of one reader, or of several along the first axes.

        Raises:
            MismatchError: the width is not the target's.
        """
        if weight.shape[-1:] != self.bias.shape:
            raise MismatchError(
                f"the map ends at {self.target} with {self.target.d_model} dimensions; a reader of shape "
                f"{tuple(weight.shape)} does not read it"
            )
        return weight @ self.weight.to(weight), bias + weight @ self.bias.to(weight)

    def save(self, folder: str | Path) -> Path:
        """Write the map to a new folder: `config.json`, `tensors.safetensors`, `README.md`.

        Raises:
            ArtifactError: the folder exists.
        """
        config, tensors = self.parts()
        return save_artifact(folder, kind=KIND, config=config, tensors=tensors, card=self._card())

    @classmethod
    def load(cls, folder: str | Path) -> "AffineMap":
        """Read a map back.

        Raises:
            ArtifactError: the folder is not a whole, unaltered affine map.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        with rebuilding(folder, "a whole affine map"):
            return cls.from_parts(config, tensors)

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What an artifact keeps of the map: a configuration for JSON, and tensors."""
        config = {
            "sources": [site.to_json() for site in self.sources],
            "target": self.target.to_json(),
            "target_norm": self.target_norm,
            "report": self.report.to_json(),
        }
        tensors = {"weight": self.weight, "bias": self.bias, "target_covariance": self.target_covariance}
        if self.source_covariance is not None:
            tensors["source_covariance"] = self.source_covariance
        return config, tensors

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "AffineMap":
        """The map of which these are the `parts`.

        Raises:
            KeyError, TypeError: something is missing.
        """
        return typed(
            cls(
                tensors["weight"],
                tensors["bias"],
                tuple(map(Site.from_json, config["sources"])),
                Site.from_json(config["target"]),
                tensors["target_covariance"],
                config["target_norm"],
                FitReport.from_json(config["report"]),
                tensors.get("source_covariance"),
            )
        )

    def __repr__(self) -> str:
        return (
            f"AffineMap({self._from()} → {self.target}, {self.d_source}→{self.target.d_model}, "
            f"{self.report.described()}, R² {self.report.test_r2:.2f})"
        )

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def summary(self) -> Mapping[str, str]:
        """The figures of the fit, for a table."""
        report = self.report
        return {
            "map": f"{self._from()} → {self.target}, {self.d_source} → {self.target.d_model}",
            "R² on test documents": f"{report.test_r2:.3f}",
            "R² in cross-validation": f"{report.cv_r2:.3f} ({min(report.fold_r2):.3f} … {max(report.fold_r2):.3f})",
            "method": report.described(),
            **self._selection(),
            "tokens": f"{report.tokens:,} ({report.tokens_per_dimension:,.0f} per source dimension)",
        }

    def _selection(self) -> dict[str, str]:
        tried = self.report.layers_tried
        path = [f"{'+ ' if number else ''}{name} ({r2:.3f})" for number, (name, r2) in enumerate(tried)]
        return {"layers, in the order tried": " ".join(path)} if path else {}

    def _from(self) -> str:
        return describe_sites(self.sources)

    def _from_cache(self, cache: Any) -> Tensor:
        if not hasattr(cache, "keys"):
            raise LrtError(f"the map takes a tensor or a cache, not {type(cache).__name__}")
        if any(site.features for site in self.sources):
            raise MismatchError(f"the map begins at features of {self._from()}, which a cache does not hold: give them")
        try:
            return torch.cat([cache[site.hook_name] for site in self.sources], dim=-1)
        except KeyError as error:
            raise MismatchError(f"the cache holds no {error.args[0]!r}, at which the map begins") from error

    def _check_width(self, tensor: Tensor) -> None:
        if tensor.shape[-1:] != (self.d_source,):
            raise MismatchError(
                f"the map takes states of {self._from()} with {self.d_source} dimensions, not a tensor of shape "
                f"{tuple(tensor.shape)}"
            )

    def _at_sources(self, vectors: list[SteeringVector]) -> list[SteeringVector]:
        """The vectors in the order of the sources."""
        by_hook = {vector.site.hook_name: vector for vector in vectors}
        if len(vectors) == len(self.sources) == 1:
            self._check_site(self.sources[0], vectors[0].site)
            return vectors
        if len(by_hook) < len(vectors) or by_hook.keys() != {site.hook_name for site in self.sources}:
            raise MismatchError(
                f"the map begins at {self._from()}, and takes a vector at each; these are at "
                f"{', '.join(str(vector.site) for vector in vectors) or 'none'}{self._how_to_find_vectors()}"
            )
        for site in self.sources:
            self._check_site(site, by_hook[site.hook_name].site)
        return [by_hook[site.hook_name] for site in self.sources]

    def _how_to_find_vectors(self) -> str:
        names = [site.hook_name for site in self.sources]
        if not all(names) or any(site.features for site in self.sources):
            return ""
        layers = [layer_of(name) for name in names]
        after_blocks = names == [f"blocks.{layer}.hook_resid_post" for layer in layers]
        places = f"layer={layers}" if after_blocks else f"hook_name={names}"
        return f". One pass finds them: lrt.mean_difference(source, pairs, {places})"

    def _check_site(self, source: Site, site: Site) -> None:
        if source.features:
            raise MismatchError(
                f"the map begins at features of {source}, and a steering vector is none: transport a tensor of "
                f"{self.d_source} features"
            )
        exchanged = site.model is not None and site.model == self.target.model != source.model
        if site.hook_name != source.hook_name or site.d_model != source.d_model or exchanged:
            raise MismatchError(
                f"the vector lives at {site} ({site.hook_name}, {site.d_model} dimensions); the map begins at "
                f"{source} ({source.hook_name or 'no hook name'}, {source.d_model} dimensions)"
                f"{': was the map fitted with source and target exchanged?' if exchanged else ''}"
            )
        if site.model is not None and source.model is not None:
            require_same_model(source.model, site.model, what="the map's source")

    def _card(self) -> str:
        lines = [f"# Affine map {self._from()} → {self.target}", ""]
        lines += [f"- {name}: {value}" for name, value in self.summary().items()]
        lines += ["", "```python", "import lrt_tl as lrt", 'affine_map = lrt.AffineMap.from_pretrained("this folder")']
        lines += ["target_vector = affine_map.transport(source_vector)", "```", ""]
        lines += ["It holds for these two models in this basis of the residual stream, and for text like that it was"]
        lines += ["fitted on. R² does not say how well a behavior transfers: measure that."]
        return "\n".join(lines)


def cycle_r2(there: AffineMap, back: AffineMap) -> float:
    """How much of a state survives the way to the other model and back: R² of back(there(h)) as a prediction of h.

    1 − tr((I − BA) Σ (I − BA)ᵀ) / tr Σ, Σ the covariance of the states that both maps begin and end with, on the text
    that `back` was fitted on, about its mean. It is 1 where nothing is lost, and needs no further data.

    Raises:
        MismatchError: `back` does not begin where `there` ends, or end where it begins.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium, texts = storyworld.load("small"), storyworld.load("medium"), storyworld.documents(60)
        >>> there = lrt.fit_affine_map(small, medium, texts, layers=(3, 5), method="ridge")
        >>> back = lrt.fit_affine_map(medium, small, texts, layers=(5, 3), method="ridge")
        >>> round(lrt.cycle_r2(there, back), 2)
        0.94
    """
    if len(there.sources) > 1 or len(back.sources) > 1:
        raise MismatchError("a way there and back is of maps that begin at one site each")
    require_same_site(there.target, back.source, what="the end of the way there")
    require_same_site(there.source, back.target, what="the beginning of the way there")
    lost = torch.eye(there.d_source) - back.weight @ there.weight
    return 1 - float(((lost @ back.target_covariance) * lost).sum() / back.target_covariance.trace())
