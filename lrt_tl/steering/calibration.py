"""How strong: the coefficient at which steering disturbs the model's predictions on neutral text by a given amount."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.batches import pad, tokenize

TOKENS_PER_TEXT = 16
_TOLERANCE = 0.02
_LOWEST, _HIGHEST = 2.0**-20, 2.0**20


def calibrate_coefficient(
    model: HookedModel,
    steering: Steering | SteeringVector,
    texts: Sequence[str],
    *,
    kl: float,
    prepend_bos: bool = True,
) -> float:
    """The coefficient at which steering reaches a KL on neutral text, to 2 % of it.

    The KL is KL(plain ‖ steered) of the next-token distributions, in nats, mean over the positions (of text that is not
    special) of the first 16 tokens of each text. It is found by doubling or halving until the budget lies between two
    coefficients, and bisection of the logarithm between them.

    Args:
        steering: of any operators; a vector is one that is added. Where and when it works is kept, so that what is
            steered must be in the prompt.
        texts: a few dozen that have nothing to do with the vector.
        kl: the budget, in nats a position; 0.1 is mild, 1 is strong.

    Returns:
        c > 0, so that `(c * steering).apply(model)`, or `vector.apply(model, c)`, has that KL. Of an ablation or a
        clamp it is the share of the way, and above 1 where that must be overshot.

    Raises:
        LrtError: a budget that is not positive, no text, a model that is being steered, or a steering whose KL never
            reaches the budget (an ablation has a largest one), says which it has.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = lrt.load_model("storyworld-small"), storyworld.documents(8, seed=1)
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> for kl in (0.1, 1.0):
        ...     print(f"KL {kl} at {lrt.calibrate_coefficient(model, vector, texts, kl=kl):.0f} times the vector")
        KL 0.1 at 7 times the vector
        KL 1.0 at 12 times the vector
    """
    if not (math.isfinite(kl) and kl > 0):
        raise LrtError(f"kl={kl}: the budget must be a positive number of nats")
    require_at_rest(model)
    steering = steering.add() if isinstance(steering, SteeringVector) else steering
    batch = neutral_batch(model, texts, prepend_bos=prepend_bos)
    plain = _log_probabilities(model, *batch)

    def kl_at(coefficient: float) -> float:
        with (coefficient * steering).apply(model):
            steered = _log_probabilities(model, *batch)
        found = float((plain.exp() * (plain - steered)).sum(-1).mean())
        bar.update()
        return found

    with tqdm(desc="calibrate", unit=" passes", **BAR) as bar:
        low, high = _bracket(kl_at, kl)
        return _bisect(kl_at, kl, low, high)


def neutral_batch(
    model: HookedModel, texts: Sequence[str], *, prepend_bos: bool = True
) -> tuple[Int[Tensor, "text position"], Bool[Tensor, "text position"], Bool[Tensor, "text position"]]:
    """The first tokens of each text, their mask, and which of them are text and not special.

    Raises:
        LrtError: there is no text, or none in it.
    """
    if not texts or isinstance(texts, str):
        raise LrtError(f"matching KL needs neutral text, as a list of texts, not {texts!r:.40}")
    rows = [row[:TOKENS_PER_TEXT] for row in tokenize(model.tokenizer, texts, prepend_bos=prepend_bos)]
    tokens, mask, content = pad(model.tokenizer, rows)
    if not content.any():
        raise LrtError("the neutral text holds special tokens only")
    return tokens, mask, content


@torch.no_grad()
def _log_probabilities(
    model: HookedModel,
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
    content: Bool[Tensor, "text position"],
) -> Float[Tensor, "token d_vocab"]:
    logits = model(tokens.to(model.cfg.device), attention_mask=mask.to(model.cfg.device).long())
    found: Tensor = logits[content.to(logits.device)].double().log_softmax(-1)
    return found


def _bracket(kl_at: Callable[[float], float], wanted: float) -> tuple[float, float]:
    """Coefficients below and above the budget, a factor of two apart."""
    coefficient, found = 1.0, kl_at(1.0)
    factor = 2.0 if found < wanted else 0.5
    while (found < wanted) == (factor > 1):
        if not _LOWEST <= coefficient <= _HIGHEST or not math.isfinite(found):
            raise LrtError(
                f"no coefficient gives a KL of {wanted:g} nats on this text: it is {found:.3g} at {coefficient:.3g}. "
                "Steer positions that the texts have, or choose another budget"
            )
        coefficient *= factor
        found = kl_at(coefficient)
    return (coefficient / 2, coefficient) if factor > 1 else (coefficient, 2 * coefficient)


def _bisect(kl_at: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    for _ in range(60):
        middle = math.sqrt(low * high)
        found = kl_at(middle)
        if abs(found - wanted) <= _TOLERANCE * wanted:
            return middle
        low, high = (middle, high) if found < wanted else (low, middle)
    raise LrtError(
        f"KL jumps over {wanted:g} nats between the coefficients {low:.6g} and {high:.6g}: choose another budget"
    )
