"""Steering: what is done to a model, in order, and the ways to do it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lrt_tl.artifacts import load_artifact, rebuilding, save_artifact, typed
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.models.hook_names import check_writable, place_of, resolve_hook_name
from lrt_tl.models.identity import Site, identify, require_same_model
from lrt_tl.models.protocol import Hook, HookedModel
from lrt_tl.steering.handle import SteeringHandle, warn_of_repeated
from lrt_tl.steering.hooks import known_call, steering_hooks
from lrt_tl.steering.operators import Step, same_direction
from lrt_tl.steering.probe import Probe
from lrt_tl.tables import html_columns
from lrt_tl.text.positions import Positions, mentions, positions_to_json

KIND = "steering"


@dataclass(frozen=True, eq=False)
class Steering(OnHub):
    """Steps of steering, of one or several vectors on one or several layers.

    Order: at one hook point the steps are done as they are written, left to right; at different ones as the forward
    pass comes to them. `a + b` is a, then b; `2 * a` multiplies every coefficient.

    Raises:
        LrtError: there is no step. What is put together by `+`, `at`, `on` or `given` is refused if two steps
            contradict one another (see `check_agreement`).

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> refusal = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> mood = lrt.mean_difference(model, storyworld.contrast_pairs("mood", 8), layer=2)
        >>> steering = refusal.ablate() + mood.add(3.0, positions={"last": 1})
        >>> with steering.apply(model) as handle:
        ...     logits = model("The capital of Norvia is")  # six tokens, and the last of them again
        >>> [step.operator for step in steering.steps], handle.positions_touched
        (['ablate', 'add'], 7)
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise LrtError("there is nothing to steer with: a Steering needs a step")
        probes: list[Probe] = []
        object.__setattr__(self, "steps", tuple(_sharing(step, probes) for step in self.steps))

    def __add__(self, other: "Steering") -> "Steering":
        return _agreeing(self.steps + other.steps) if isinstance(other, Steering) else NotImplemented

    def __radd__(self, other: object) -> "Steering":
        return self if other == 0 else NotImplemented  # so that sum(…) begins

    def __mul__(self, factor: float) -> "Steering":
        return Steering(tuple(step.times(factor) for step in self.steps))

    __rmul__ = __mul__

    def at(self, positions: Positions) -> "Steering":
        """The same at other positions, in all steps."""
        return _agreeing([replace(step, positions=positions) for step in self.steps])

    def on(self, layers: Iterable[int]) -> "Steering":
        """Every step after each of these blocks: `vector.ablate().on(range(model.cfg.n_layers))` takes a direction out
        of the whole residual stream, as Arditi et al. 2024 (arXiv 2406.11717) do."""
        names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
        return _agreeing(
            [replace(step, site=replace(step.site, hook_name=name)) for step in self.steps for name in names]
        )

    def given(self, when: Probe | None) -> "Steering":
        """The same, only in rows whose prompt the probe says yes to."""
        return _agreeing([replace(step, when=when) for step in self.steps])

    @contextmanager
    def apply(self, model: HookedModel, *, log: bool = False) -> Iterator[SteeringHandle]:
        """Steer a model inside a `with` block.

        Args:
            log: keep a record of every call in `handle.log`: projections before and after, positions, and on a sample
                of the calls KL to the unsteered model, which is measured as the block ends.

        Raises:
            MismatchError: a vector or a condition belongs to another model, basis or hook point.
            LrtError: a position is beyond the model's context, a token beyond its vocabulary, or a condition is read
                after the layer that it is to decide about.
        """
        handle = self.attach(model, log=log)
        try:
            yield handle
            handle.finish()
        finally:
            handle.remove()

    def attach(self, model: HookedModel, *, log: bool = False) -> SteeringHandle:
        """Steer a model until the handle's `remove()`; or, with a log, its `finish()`, which measures the KL before it
        takes the steering off. Arguments and refusals are those of `apply`. What is at work on the model already is
        done twice, with a warning."""
        self.check_model(model)
        warn_of_repeated(self.steps, model)
        return SteeringHandle(model, self.steps, log=log)

    def hooks(
        self, *, tokens: Tensor | None = None, mask: Tensor | None = None, tokenizer: Any = None
    ) -> list[tuple[str, Hook]]:
        """`[(name, hook)]` for `model.hooks(fwd_hooks=…)` and `model.run_with_hooks(…)`, together with other hooks.

        Args:
            tokens: `[row, position]`, the batch that the model will be run on; not needed for `positions="all"`.
            mask: `[row, position]`, True or 1 at text.
            tokenizer: for substrings, and for conditions.

        Raises:
            LrtError: what is asked for cannot be decided from activations, `tokens` and `mask`. The model is not known
                here, so it is not checked.
        """
        for step in self.steps:
            positions = step.positions
            if mentions(positions, "generated"):
                raise LrtError(f"a bare hook cannot tell what is generated: use apply(model) for {positions=}")
            _check_order(step)
            if tokens is None and (step.when is not None or (positions != "all" and mask is None)):
                raise LrtError(f"positions={positions!r} needs tokens= or mask=, those that the model will be run on")
        return steering_hooks(self.steps, known_call(tokens, mask), tokenizer)

    def check_model(self, model: HookedModel) -> None:
        """Raises as `apply` says."""
        for step in self.steps:
            _check_site(step.site, model, what="the vector", carried="transported_through" in step.provenance)
            check_writable(model, step.site.hook_name)
            _check_positions_of(step.positions, model)
            for probe in (step.when, step.reads):
                if probe is not None:
                    _check_site(probe.site, model, what="the probe")
                    resolve_hook_name(model, hook_name=probe.site.hook_name)
            _check_order(step)

    def save(self, folder: str | Path) -> Path:
        """Write it to a new folder: `config.json`, `tensors.safetensors`, `README.md`.

        Raises:
            ArtifactError: the folder exists.
        """
        parts = [_step_parts(step, f"step_{number}") for number, step in enumerate(self.steps)]
        config = {"steps": [configuration for configuration, _ in parts]}
        tensors = {name: tensor for _, named in parts for name, tensor in named.items()}
        return save_artifact(folder, kind=KIND, config=config, tensors=tensors, card=self._card())

    @classmethod
    def load(cls, folder: str | Path) -> "Steering":
        """Read it back.

        Raises:
            ArtifactError: the folder is not a whole, unaltered steering.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        with rebuilding(folder, "a whole steering"):
            return cls(tuple(_step_from(each, f"step_{n}", tensors) for n, each in enumerate(config["steps"])))

    def __repr__(self) -> str:
        return f"Steering({'; '.join(map(repr, self.steps))})"

    def rows(self) -> list[Mapping[str, str]]:
        """The steps in their order, for a table."""
        return [
            {
                "operator": step.operator,
                "coefficient": f"{step.coefficient:g}",
                "value": "" if step.value is None else f"{step.value:g}",
                "at": str(step.site),
                "norm of the vector": f"{step.norm:.3g}",
                "positions": str(step.positions),
                "when": "" if step.when is None else repr(step.when),
            }
            for step in self.steps
        ]

    def _repr_html_(self) -> str:
        return html_columns(self.rows())

    def _card(self) -> str:
        lines = [f"# Steering of {self.steps[0].site}", "", *(f"1. {step!r}" for step in self.steps), "", "```python"]
        lines += [
            "import lrt_tl as lrt",
            'steering = lrt.Steering.from_pretrained("this folder")',
            "with steering.apply(model):",
        ]
        return "\n".join([*lines, '    model.generate("…")', "```"])


def _agreeing(steps: Sequence[Step]) -> Steering:
    steering = Steering(tuple(steps))
    check_agreement(steering.steps)
    return steering


def _sharing(step: Step, probes: list[Probe]) -> Step:
    """The step with the first of equal probes as its condition: one that was read from a file is read once a pass."""
    if step.when is None:
        return step
    first = next((probe for probe in probes if probe.equals(step.when)), step.when)
    probes.append(first)
    return step if first is step.when else replace(step, when=first)


def check_agreement(steps: Sequence[Step]) -> None:
    """Raises:
    LrtError: of two steps on one direction at one hook point, that could meet at a position, the second undoes the
        first: it fixes the component (clamp, or a whole ablation) that the first has just set or moved.
    """
    for number, second in enumerate(steps):
        fixes = second.operator == "clamp" or second.operator == "ablate"
        for first in steps[:number]:
            if fixes and second.coefficient == 1 and first.coefficient and _meet(first, second):
                raise LrtError(
                    f"{second!r} undoes {first!r}: both are of one direction. Leave one out, give them different "
                    "positions, or write the one that fixes the component first"
                )


def _meet(first: Step, second: Step) -> bool:
    """Whether two steps move one direction at one hook point, where nothing shows that their positions differ."""
    if first.site.hook_name != second.site.hook_name or first.when is not second.when:
        return False
    if len(first.direction) != len(second.direction) or second.reads is not None:
        return False
    apart = _apart(positions_to_json(first.positions), positions_to_json(second.positions))
    return same_direction(first, second) and not apart


def _apart(one: Any, other: Any) -> bool:
    """Whether two selectors, as JSON, can be seen to have no position in common."""
    if one == {"not": other} or other == {"not": one}:
        return True
    here, there = _numbered(one), _numbered(other)
    return not _parts(one) & _parts(other) or (here is not None and there is not None and here.isdisjoint(there))


def _parts(selector: Any) -> set[str]:
    """Of prompt and generation, those in which a selector selects."""
    both = {"prompt", "generated"}
    named = {selector} if isinstance(selector, str) else set(selector) if isinstance(selector, dict) else both
    return named if named <= both else both


def _numbered(selector: Any) -> set[int] | None:
    """The absolute positions that a selector names; None where it is of another kind."""
    places = selector.get("at") if isinstance(selector, dict) else selector
    if isinstance(places, list):
        return set(places)
    return {places} if isinstance(places, int) else None


def _check_site(site: Site, model: HookedModel, *, what: str, carried: bool = False) -> None:
    if site.d_model != model.cfg.d_model:
        to_do = "carry it over with affine_map.transport"
        if carried and site.model is not None:
            to_do = f"it belongs to {site.model.name}, to which it was carried: attach it there"
        raise MismatchError(
            f"{what} has {site.d_model} dimensions, {model.cfg.model_name} has {model.cfg.d_model}: {to_do}"
        )
    if site.model is not None:
        require_same_model(site.model, identify(model), what=what)


def _check_order(step: Step) -> None:
    if step.when is not None and place_of(step.when.site.hook_name) > place_of(step.site.hook_name):
        raise LrtError(
            f"the condition is read at {step.when.site}, after {step.site}, where it is to decide: read it at that "
            "layer or before it"
        )


def _check_positions_of(positions: Any, model: HookedModel) -> None:
    """What can never be: positions beyond the context, tokens beyond the vocabulary."""
    if isinstance(positions, str):
        return
    if not isinstance(positions, Mapping):
        positions = {"at": positions}
    for key, value in positions.items():
        limits = {"at": ("position", model.cfg.n_ctx), "tokens": ("token", model.cfg.d_vocab)}
        if key in limits:
            what, limit = limits[key]
            least = min(value) if isinstance(value, Sequence) else value
            if least >= limit:
                raise LrtError(
                    f"positions={positions!r}: {model.cfg.model_name} has no {what} {least}, only 0 to {limit - 1}: it "
                    "selects nothing"
                )
        elif key in ("prompt", "generated"):
            _check_positions_of(value, model)


def _step_parts(step: Step, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {
        "operator": step.operator,
        "site": step.site.to_json(),
        "coefficient": float(step.coefficient),
        "value": None if step.value is None else float(step.value),
        "positions": positions_to_json(step.positions),
        "provenance": step.provenance,
    }
    tensors = {f"{name}.direction": step.direction.clone()}  # a file refuses one tensor under two names
    for role in ("when", "reads"):
        probe: Probe | None = getattr(step, role)
        config[role] = None
        if probe is not None:
            config[role], weight = probe.parts()
            tensors[f"{name}.{role}"] = weight.clone()
    return config, tensors


def _step_from(config: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> Step:
    probes = {
        role: None if config[role] is None else Probe.from_parts(config[role], tensors[f"{name}.{role}"])
        for role in ("when", "reads")
    }
    return typed(
        Step(
            config["operator"],
            tensors[f"{name}.direction"],
            Site.from_json(config["site"]),
            config["coefficient"],
            config["value"],
            config["positions"],
            provenance=config["provenance"],
            **probes,
        )
    )
