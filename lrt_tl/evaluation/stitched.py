"""Does the target work with states that were mapped from the source? Its own states are replaced by those, and its loss
compared with its own (model stitching: Lenc & Vedaldi 2015, arXiv 1411.5908; Bansal et al. 2021, arXiv 2106.07682)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.harvest import SINK_RATIO
from lrt_tl.errors import LrtError
from lrt_tl.models.attach import attached
from lrt_tl.models.capture import capture
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import TokenBatch, TokenRows


@dataclass(frozen=True, eq=False)
class MappedStates:
    """A batch of text, and the target's states at it, its own and those that the map makes of the source's."""

    rows: TokenRows
    """The target's."""
    at: Bool[Tensor, "row position"]
    """Where they are: at text that pairs and is no sink in either model, as when the map was fitted."""
    own: Float[Tensor, "state d_target"]
    """float32, on the CPU."""
    mapped: Float[Tensor, "state d_target"]


@dataclass(frozen=True)
class StitchedLoss:
    """Cross-entropy of the target's next token, nats, mean over the positions whose states were replaced."""

    plain: float
    """With its own states."""
    stitched: float
    """With the mapped ones in their place."""
    mean_ablated: float
    """With their mean."""

    @property
    def kept(self) -> float | None:
        """(mean-ablated − stitched) / (mean-ablated − plain): 1 where mapped states are as good as the target's own, 0
        where they are as good as their mean, below 0 where worse. None where the mean costs nothing."""
        cost = self.mean_ablated - self.plain
        return (self.mean_ablated - self.stitched) / cost if cost > 0 else None


def mapped_states(
    source: HookedModel, target: HookedModel, affine_map: AffineMap, batches: Sequence[TokenBatch]
) -> list[MappedStates]:
    """Run both models on test text, as far as the map's hook points.

    Args:
        batches: of `comparability.held_out_batches`.

    Raises:
        LrtError: a model is being steered, or all positions are sinks.
        MismatchError: the map begins at features.
    """
    for model in (source, target):
        require_at_rest(model)
    progress = tqdm(batches, desc="map", unit=" batches", **BAR)
    found = [_mapped(source, target, affine_map, batch) for batch in progress]
    if not any(len(each.own) for each in found):
        raise LrtError(f"every position of the test documents is a sink, {SINK_RATIO:g} times as long as the median")
    return found


def stitched_loss(target: HookedModel, hook_name: str, states: Sequence[MappedStates]) -> StitchedLoss:
    """The target's loss with its own states, with the mapped ones, and with the mean of its own. Special tokens, sinks,
    and tokens that do not pair keep their own states.

    Args:
        hook_name: where the states are.

    Raises:
        LrtError: no replaced position is followed by a token.
    """
    mean = torch.cat([each.own for each in states]).mean(0)
    ways: list[Callable[[MappedStates], Tensor]] = [
        lambda each: each.own,
        lambda each: each.mapped,
        lambda each: mean.expand_as(each.own),
    ]
    progress = tqdm(states, desc="stitch", unit=" batches", **BAR)
    losses = torch.cat(
        [torch.stack([_losses(target, hook_name, each, way(each)) for way in ways]) for each in progress], 1
    )
    if not losses.shape[1]:
        raise LrtError("no test document has a token to predict after one whose state was mapped")
    return StitchedLoss(*losses.mean(1).tolist())


def r2_along(states: Sequence[MappedStates], direction: Float[Tensor, "d_target"]) -> float:
    """R² of the mapped states along a direction of the target: 1 − Σ(p − y)²/Σ(y − ȳ)², y and p the components of its
    own states and of the mapped ones. At most 1.

    Raises:
        LrtError: the states do not vary along it.
    """
    own, mapped = _components(states, direction)
    return 1 - float((mapped - own).square().sum() / (own - own.mean()).square().sum())


def correlation_along(states: Sequence[MappedStates], direction: Float[Tensor, "d_target"]) -> float:
    """Pearson's correlation of the same components, −1 to 1: R² without what the map's length and bias do to it. 0
    where the mapped states do not vary.

    Raises:
        LrtError: the target's own states do not vary along it.
    """
    own, mapped = (each - each.mean() for each in _components(states, direction))
    length = float(mapped.norm())
    return float(own @ mapped / own.norm()) / length if length > 0 else 0.0


def token_share(states: Sequence[MappedStates], direction: Float[Tensor, "d_target"]) -> float:
    """The share of the variance of the target's own states along a direction that the token at hand explains, without
    its context: ε² = 1 − (SS_within/(n − groups)) / (SS/(n − 1)) (Kelley 1935), 0 or a little below where it explains
    nothing, 1 where it explains all. What can be read off a token, any model tells apart, even an untrained one.

    Raises:
        LrtError: the states do not vary along it, or each token is there but once.
    """
    own, _ = _components(states, direction)
    tokens = torch.cat([each.rows.tokens[each.at] for each in states])
    kinds, group = torch.unique(tokens, return_inverse=True)
    if len(kinds) == len(tokens):
        raise LrtError(f"{len(tokens)} tokens, each of them once, do not show what a token explains: give more text")
    counts, sums = torch.bincount(group), torch.zeros(len(kinds), dtype=torch.float64).index_add(0, group, own)
    within = (own - (sums / counts)[group]).square().sum() / (len(own) - len(kinds))
    return 1 - float(within / own.var())


def mean_cosine(states: Sequence[MappedStates], direction: Float[Tensor, "d_target"]) -> float:
    """Cosine of a direction with the target's mean state, −1 to 1: a carried vector that is mostly that works like
    noise."""
    mean = torch.cat([each.own for each in states]).double().mean(0)
    return float(torch.cosine_similarity(mean, direction.double(), dim=0))


def _components(
    states: Sequence[MappedStates], direction: Float[Tensor, "d_target"]
) -> tuple[Float[Tensor, "state"], Float[Tensor, "state"]]:
    unit = direction.double() / direction.double().norm()
    own, mapped = (torch.cat([getattr(each, name).double() @ unit for each in states]) for name in ("own", "mapped"))
    if len(own) < 2 or not float(own.var()) > 0:
        raise LrtError(f"the target's states at {len(own)} positions do not vary along the vector: give more text")
    return own, mapped


def _mapped(source: HookedModel, target: HookedModel, affine_map: AffineMap, batch: TokenBatch) -> MappedStates:
    medians = affine_map.report.harvest.get("median_norms", {})

    def states_of(side: str, model: HookedModel, rows: TokenRows, names: Sequence[str]) -> dict[str, Tensor]:
        seen = capture(model, rows.tokens, rows.mask, names)
        return {f"{side}:{name}": seen[name][rows.content.to(seen[name].device)].cpu() for name in names}

    at_sources = [site.hook_name for site in affine_map.sources]
    of_source = states_of("source", source, batch.source, at_sources)
    of_target = states_of("target", target, batch.target, [affine_map.target.hook_name])
    calm = torch.ones(int(batch.target.content.sum()), dtype=torch.bool)
    for key, states in (of_source | of_target).items():
        calm &= states.norm(dim=-1) <= SINK_RATIO * medians.get(key, torch.inf)
    mapped = affine_map({key.removeprefix("source:"): states for key, states in of_source.items()})
    at = batch.target.content.clone()
    at[batch.target.content] = calm
    (own,) = of_target.values()
    return MappedStates(batch.target, at, own[calm], mapped[calm])


@torch.no_grad()
def _losses(
    target: HookedModel, hook_name: str, states: MappedStates, put: Float[Tensor, "state d_target"]
) -> Float[Tensor, "token"]:
    """Of each token that follows a position at which a state was put, float64."""
    rows, device = states.rows, target.cfg.device
    at = states.at.to(device)

    def replace(activation: Tensor, hook: object) -> Tensor:
        changed = activation.clone()
        changed[at] = put.to(activation)
        return changed

    with attached(target, [(hook_name, replace)]):
        logits = target(rows.tokens.to(device), attention_mask=rows.mask.to(device).long())
    followed = states.at[:, :-1] & rows.mask[:, 1:]
    following = rows.tokens[:, 1:][followed]
    log_probabilities = logits[:, :-1][followed.to(device)].float().log_softmax(-1).cpu()
    losses: Tensor = -log_probabilities.gather(-1, following[:, None])[:, 0].double()
    return losses
