"""What steering costs: how far it moves predictions on neutral text, and what it does to the text that is written."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.intervals import Interval, percentiles, resamples
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.steering import Steering
from lrt_tl.tables import html_columns
from lrt_tl.text.batches import pad, tokenize

_TOKENS_PER_TEXT = 256
_MEASURES = ("kl", "perplexity", "agreement")
_MOST_LOGITS = 2**27
"""How many logits of a batch may stand in memory at once: half a GiB of float32, for the plain model and a steering
each."""


@dataclass(frozen=True)
class SideEffect:
    """What one steering does to text that has nothing to do with it.

    Attributes:
        kl: KL(plain ‖ steered) of the next token, nats, mean over positions.
        perplexity: of the neutral text, exp of the mean loss; with `perplexity_plain` beside it.
        agreement: share of positions at which the likeliest next token is the plain model's.
        distinct_1: different words over words, of what is written after the prompts; None without prompts.
        distinct_2: the same of pairs of neighbouring words.
        repetition: share of words that stand in a run of one word, or of one pair, said again at once.
        kl_interval: 95 %, by a bootstrap over the neutral texts; None where there is but one. The same for the others.
    """

    kl: float
    perplexity: float
    perplexity_plain: float
    agreement: float
    distinct_1: float | None = None
    distinct_2: float | None = None
    repetition: float | None = None
    kl_interval: Interval | None = None
    perplexity_interval: Interval | None = None
    agreement_interval: Interval | None = None

    def row(self) -> dict[str, str]:
        """For a table."""
        shares = {"distinct words": self.distinct_1, "distinct pairs": self.distinct_2, "repetition": self.repetition}
        return {
            "KL to plain, nats": f"{self.kl:.4f}{_bounds(self.kl_interval, '.4f')}",
            "perplexity": f"{self.perplexity:.2f}{_bounds(self.perplexity_interval, '.2f')}",
            "same next token": f"{self.agreement:.1%}{_bounds(self.agreement_interval, '.1%')}",
            **{name: f"{share:.0%}" for name, share in shares.items() if share is not None},
        }


@dataclass(frozen=True)
class SideEffects:
    """By the name of the steering; `"plain"` is the model without any.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> steering = {"weak": vector.add(1.0), "strong": vector.add(4.0)}
        >>> found = lrt.side_effects(small, steering, storyworld.documents(8))
        >>> list(found.effects)
        ['plain', 'weak', 'strong']
        >>> found.effects["plain"].kl < found.effects["weak"].kl < found.effects["strong"].kl
        True
    """

    effects: Mapping[str, SideEffect]

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a steering."""
        return [{"steering": name, **effect.row()} for name, effect in self.effects.items()]

    def to_json(self) -> dict[str, dict[str, float | Sequence[float] | None]]:
        """Everything, ready for JSON."""
        return {name: dict(vars(effect)) for name, effect in self.effects.items()}

    def __repr__(self) -> str:
        return f"SideEffects({'; '.join(f'{name}: KL {each.kl:.3g}' for name, each in self.effects.items())})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def side_effects(
    model: HookedModel,
    steering: Mapping[str, Steering],
    texts: Sequence[str],
    *,
    prompts: Sequence[str] = (),
    max_new_tokens: int = 40,
    temperature: float = 0.8,
    batch_size: int = 16,
    prepend_bos: bool = True,
    seed: int = 0,
) -> SideEffects:
    """Measure what steering costs, for the plain model and each steering by name: give native and transferred alike, at
    the coefficients that are used.

    Args:
        texts: neutral documents, that no map was fitted on; their first 256 tokens are read.
        prompts: what texts are written after, all from the same random numbers; none is written without.
        batch_size: texts in a forward pass; fewer where their logits would take more than half a GiB.

    Raises:
        LrtError: no neutral text with two tokens or more; a steering is named "plain"; or the model is being steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> lrt.side_effects(small, {"refusal": vector.add(4.0)}, storyworld.documents(8))  # doctest: +ELLIPSIS
        SideEffects(plain: KL 0; refusal: KL 0.01...)
    """
    require_at_rest(model)
    if "plain" in steering:
        raise LrtError("a steering cannot be named 'plain': that is the model without any")
    batches = _batches(model, texts, batch_size, prepend_bos)
    arms: dict[str, Steering | None] = {"plain": None, **steering}
    sums: dict[str, list[Tensor]] = {name: [] for name in arms}
    for tokens, mask, content in tqdm(batches, desc="side effects", unit=" batches", **BAR):
        plain = _log_probabilities(model, None, tokens, mask)
        for name, each in arms.items():
            steered = plain if each is None else _log_probabilities(model, each, tokens, mask)
            sums[name].append(_sums(plain, steered, tokens, content))
    written = _written(model, arms, prompts, max_new_tokens, temperature, prepend_bos, seed)
    of_texts = {name: torch.cat(some) for name, some in sums.items()}
    _, loss, _, n = of_texts["plain"].sum(0)
    perplexity_plain = math.exp(loss / n)
    return SideEffects(
        {
            name: SideEffect(**_means(some, seed), perplexity_plain=perplexity_plain, **written.get(name, {}))
            for name, some in of_texts.items()
        }
    )


def repetition(words: Sequence[str]) -> float:
    """The share of words that repeat the word before them, or that belong to a pair that repeats the pair before it."""
    again = [False] * len(words)
    for size in (1, 2):
        for start in range(size, len(words) - size + 1):
            if words[start - size : start] == words[start : start + size]:
                again[start : start + size] = [True] * size
    return sum(again) / len(words) if words else 0.0


def distinct(words: Sequence[str], n: int) -> float:
    """Different runs of n words over all of them (Li et al. 2016, arXiv 1510.03055)."""
    runs = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return len(runs) / sum(runs.values()) if runs else 0.0


def _batches(
    model: HookedModel, texts: Sequence[str], batch_size: int, prepend_bos: bool
) -> list[tuple[Int[Tensor, "text position"], Bool[Tensor, "text position"], Bool[Tensor, "text position"]]]:
    if isinstance(texts, str) or not texts:
        raise LrtError(f"side effects are measured on a list of neutral texts, not {texts!r:.40}")
    longest = min(_TOKENS_PER_TEXT, model.cfg.n_ctx)
    rows = [row[:longest] for row in tokenize(model.tokenizer, texts, prepend_bos=prepend_bos)]
    batch_size = max(1, min(batch_size, _MOST_LOGITS // (longest * model.cfg.d_vocab)))
    batches = [pad(model.tokenizer, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    if not any(content[:, 1:].any() for _, _, content in batches):
        raise LrtError("no neutral text has a token to predict")
    return batches


@torch.no_grad()
def _log_probabilities(
    model: HookedModel,
    steering: Steering | None,
    tokens: Int[Tensor, "text position"],
    mask: Bool[Tensor, "text position"],
) -> Float[Tensor, "text position d_vocab"]:
    with nullcontext() if steering is None else steering.apply(model):
        logits = model(tokens.to(model.cfg.device), attention_mask=mask.to(model.cfg.device).long())
    found: Tensor = logits.float().log_softmax(-1)
    return found


def _sums(
    plain: Float[Tensor, "text position d_vocab"],
    steered: Float[Tensor, "text position d_vocab"],
    tokens: Int[Tensor, "text position"],
    content: Bool[Tensor, "text position"],
) -> Float[Tensor, "text 4"]:
    """KL, loss and agreements, summed over each text's positions whose next token is text; and their number."""
    predicted = content[:, 1:].to(plain.device)
    plain, steered = plain[:, :-1], steered[:, :-1]
    kl = (plain.exp() * (plain - steered)).sum(-1)
    loss = -steered.gather(-1, tokens[:, 1:, None].to(plain.device))[..., 0]
    same = plain.argmax(-1) == steered.argmax(-1)
    measured = torch.stack([kl.double(), loss.double(), same.double(), torch.ones_like(kl).double()], dim=-1)
    return torch.where(predicted[..., None], measured, 0).sum(1).cpu()


def _means(sums: Float[Tensor, "text 4"], seed: int) -> dict[str, Any]:
    """KL, perplexity and agreement over all texts, and their intervals."""
    found = dict(zip(_MEASURES, _per_position(sums.sum(0)).tolist(), strict=True))
    texts = sums[sums[:, 3] > 0]
    if len(texts) < 2:
        return found
    bounds = percentiles(_per_position(resamples(len(texts), seed=seed) @ texts)).T.tolist()
    return found | {f"{name}_interval": tuple(some) for name, some in zip(_MEASURES, bounds, strict=True)}


def _per_position(sums: Float[Tensor, "*resample 4"]) -> Float[Tensor, "*resample 3"]:
    kl, loss, same = (sums[..., :3] / sums[..., 3:]).unbind(-1)
    return torch.stack([kl, loss.exp(), same], dim=-1)


def _bounds(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _written(
    model: HookedModel,
    arms: Mapping[str, Steering | None],
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
    prepend_bos: bool,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Distinct words and pairs, and repetition, of what each arm writes, mean over the prompts."""
    if not prompts:
        return {}
    rows = sample_texts(
        model,
        prompts,
        arms,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    measures = {
        "distinct_1": lambda words: distinct(words, 1),
        "distinct_2": lambda words: distinct(words, 2),
        "repetition": repetition,
    }
    return {
        name: {key: sum(measure(row[name].split()) for row in rows) / len(rows) for key, measure in measures.items()}
        for name in arms
    }
