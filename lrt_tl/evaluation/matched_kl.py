"""Equal disturbance: scale vectors until all change the model's predictions on neutral text by as much."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.steered import deltas_at_once, steered_run
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.calibration import neutral_batch

_STEPS, _TOLERANCE, _ROWS = 16, 0.02, 128


def kl_of_steering(
    model: HookedModel,
    hook_name: str,
    deltas: Float[Tensor, "delta d_model"],
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
    content: Bool[Tensor, "text position"],
) -> Float[Tensor, "delta"]:
    """Mean KL(plain ‖ steered) of the next-token distributions at `content`, nats a position, for each delta."""
    return kl_on(model, hook_name, tokens, mask, content)(deltas)


def kl_on(
    model: HookedModel,
    hook_name: str,
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
    content: Bool[Tensor, "text position"],
) -> Callable[[Float[Tensor, "delta d_model"]], Float[Tensor, "delta"]]:
    """`kl_of_steering` of the same texts, for deltas that come one after another."""
    run, content = steered_run(model, hook_name, tokens, mask), content.to(model.cfg.device)
    log_probabilities = run(torch.zeros(1, model.cfg.d_model))[0, content].float().log_softmax(-1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(-1)
    at_once = deltas_at_once(model, tokens, _ROWS)

    def kl(deltas: Tensor) -> Tensor:
        found = []
        for some in torch.split(deltas, at_once):
            steered = run(some)[:, content].float()
            cross_entropy = steered.logsumexp(-1) - torch.einsum("pv,dpv->dp", probabilities, steered)
            found.append((cross_entropy - entropy).mean(1).cpu().double())
        return torch.cat(found)

    return kl


def scales_of_equal_kl(
    model: HookedModel,
    hook_name: str,
    directions: Float[Tensor, "arm d_model"],
    coefficient: float,
    texts: Sequence[str],
    *,
    prepend_bos: bool = True,
) -> Float[Tensor, "arm"]:
    """Factors that give every direction the KL of the first, at ± the coefficient on neutral text, to 2 %.

    KL grows about as the square of the coefficient, and more steeply where a prediction flips. So a secant on log–log
    axes finds each factor, halving the bracket where it would leave it; a direction that is there is not run again.

    Raises:
        LrtError: a factor was not found: the direction changes nothing, or its KL does not reach the first's.
    """
    kl = kl_on(model, hook_name, *neutral_batch(model, texts, prepend_bos=prepend_bos))

    def log_kl(log_scales: Tensor, some: Tensor) -> Tensor:
        deltas = (log_scales.exp()[:, None] * coefficient * some).float()
        both = kl(torch.cat([deltas, -deltas]))
        return both.reshape(2, -1).mean(0).clamp(min=1e-30).log()

    at = torch.zeros(len(directions), dtype=torch.float64)  # logarithms of the factors
    now = log_kl(at, directions)
    wanted, power = now[0].clone(), torch.full_like(now, 2.0)
    low, high = torch.full_like(now, -math.inf), torch.full_like(now, math.inf)
    for _ in tqdm(range(_STEPS), desc="match KL", unit=" passes", **BAR):
        left = ((now - wanted).abs() >= _TOLERANCE).nonzero()[:, 0]
        if not len(left):
            break
        here, off = at[left], now[left] - wanted
        low[left] = torch.where(off < 0, torch.maximum(low[left], here), low[left])
        high[left] = torch.where(off > 0, torch.minimum(high[left], here), high[left])
        there = here + (-off / power[left]).clamp(-1.5, 1.5)
        inside = (low[left] < there) & (there < high[left])
        there = torch.where(inside, there, (low[left] + high[left]) / 2)
        found = log_kl(there, directions[left])
        power[left] = ((found - now[left]) / (there - here)).clamp(0.5, 10)
        at[left], now[left] = there, found
    worst = int((now - wanted).abs().argmax())
    if (now - wanted).abs()[worst] < _TOLERANCE:
        return at.exp()
    nats, reached, length = (float(value.exp()) for value in (wanted, now[worst], at[worst]))
    raise LrtError(
        f"one of the vectors, number {worst} after the native one, was not brought to its KL, {nats:.3g} nats: it has "
        f"{reached:.3g} at {length:.3g} times the length"
    )
