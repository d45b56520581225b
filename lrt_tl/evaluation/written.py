"""Scores of what the model writes: every vector's texts from the same random numbers, and a judge of them."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.samples import new_text
from lrt_tl.evaluation.steered import adding, deltas_at_once
from lrt_tl.models.attach import attached
from lrt_tl.models.decoding import next_logits
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.text.documents import hash_of

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts, and the text written after each → a score of each text."""


@dataclass(frozen=True)
class WrittenText:
    """The model writes after each prompt, and a judge scores the texts. A prompt's score is the mean over its texts.

    The random numbers belong to a prompt, not to a vector: what differs between two vectors' texts is the steering.

    Attributes:
        judge: gets prompts and what was written after each, without the prompt; gives a number for each text. A text
            that was written more than once is judged once.
        max_new_tokens: a text ends there, or with the tokenizer's end of sequence.
        temperature: 0 takes the likeliest token.
        n_samples: texts for each prompt.

    Raises:
        LrtError: the judge cannot be called, or another argument cannot be.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> def ends(prompts, texts):
        ...     return [float(text.count(".")) for text in texts]
        >>> behavior = lrt.Behavior("short sentences", ("She", "The sky"), lrt.WrittenText(ends, max_new_tokens=8))
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("register", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, behavior, native=vector, n_draws=1)
        >>> tuple(result.native.shape)  # coefficients and prompts
        (5, 2)
    """

    judge: Judge
    max_new_tokens: int = 40
    temperature: float = 0.8
    n_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.judge):
            raise LrtError(f"a judge is a function of prompts and texts, not {type(self.judge).__name__}")
        if self.max_new_tokens < 1 or self.n_samples < 1:
            raise LrtError(f"cannot write {self.n_samples} texts of {self.max_new_tokens} tokens: at least 1 of each")
        if not 0 <= self.temperature < math.inf:
            raise LrtError(f"temperature={self.temperature}: it must be 0 or more")
        if self.temperature == 0 and self.n_samples > 1:
            raise LrtError(f"at temperature 0 all {self.n_samples} texts are the same: set n_samples=1")


def written_texts(
    model: HookedModel,
    hook_name: str,
    prompts: Sequence[str],
    rows: Sequence[list[int]],
    deltas: Float[Tensor, "delta d_model"],
    how: WrittenText,
    *,
    batch_size: int,
) -> list[list[list[str]]]:
    """What the model writes after each prompt, with each delta added at all positions, as `[delta][prompt][sample]`.

    Prompts of one length share a batch, so that nothing is padded; so do the deltas.

    Args:
        rows: the tokens of the prompts.
    """
    jobs = defaultdict(list)
    for delta, prompt, sample in product(range(len(deltas)), range(len(rows)), range(how.n_samples)):
        jobs[len(rows[prompt])].append((delta, prompt, sample))
    batches = []
    for length, of_length in jobs.items():
        at_once = deltas_at_once(model, torch.zeros(1, length, dtype=torch.long), batch_size)
        batches += [of_length[start : start + at_once] for start in range(0, len(of_length), at_once)]
    texts = [[[""] * how.n_samples for _ in rows] for _ in deltas]
    for batch in tqdm(batches, desc="write", unit=" batches", **BAR):
        tokens = torch.tensor([rows[prompt] for _, prompt, _ in batch])
        added = deltas[[delta for delta, _, _ in batch]]
        choose = _choice(how, [(prompts[prompt], sample) for _, prompt, sample in batch])
        with attached(model, [(hook_name, adding(added.to(model.cfg.device)[:, None]))]):
            written = _written(model, tokens.to(model.cfg.device), how.max_new_tokens, choose)
        for (delta, prompt, sample), whole in zip(batch, written.tolist(), strict=True):
            texts[delta][prompt][sample] = new_text(model.tokenizer, rows[prompt], whole)
    return texts


def judged(
    name: str, prompts: Sequence[str], texts: Sequence[Sequence[Sequence[str]]], judge: Judge
) -> Float[Tensor, "delta prompt"]:
    """The mean score of each delta's texts after each prompt.

    Args:
        texts: as of `written_texts`.

    Raises:
        LrtError: the judge fails, or does not give one finite number a text. Names behavior and prompt.
    """
    scores = torch.empty(len(texts), len(prompts), dtype=torch.float64)
    for number, prompt in enumerate(prompts):
        of_prompt = [samples[number] for samples in texts]
        different = list(dict.fromkeys(text for samples in of_prompt for text in samples))
        found = dict(zip(different, _scores(name, prompt, different, judge), strict=True))
        scores[:, number] = torch.tensor(
            [[found[text] for text in samples] for samples in of_prompt], dtype=torch.float64
        ).mean(1)
    return scores


def _scores(name: str, prompt: str, texts: list[str], judge: Judge) -> list[float]:
    of = f"the judge of {name!r}, on what was written after {prompt[-60:]!r},"
    try:
        found = [float(score) for score in judge([prompt] * len(texts), texts)]
    except Exception as error:
        raise LrtError(f"{of} failed: {error or type(error).__name__}") from error
    if len(found) != len(texts):
        raise LrtError(f"{of} gave {len(found)} scores for {len(texts)} texts: one number each")
    if not all(map(math.isfinite, found)):
        raise LrtError(f"{of} gave NaN or infinity")
    return found


Choose = Callable[[Float[Tensor, "row d_vocab"]], Int[Tensor, "row"]]


def _choice(how: WrittenText, rows: Sequence[tuple[str, int]]) -> Choose:
    """The likeliest token of each row, or one drawn with the random numbers that belong to its prompt and sample.

    Gumbel noise added to logits over temperature makes their maximum a draw from the softmax; rows with the same noise
    and nearly the same logits nearly always draw the same token.
    """
    if how.temperature == 0:
        return lambda logits: logits.argmax(-1)
    different = list(dict.fromkeys(rows))
    generators = [
        torch.Generator().manual_seed(hash_of(f"{how.seed} {sample} {prompt}")) for prompt, sample in different
    ]
    place = [different.index(row) for row in rows]

    def choose(logits: Tensor) -> Tensor:
        drawn = [torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators]
        gumbel = -torch.stack(drawn).log()[place]
        return (logits / how.temperature + gumbel.to(logits)).argmax(-1)

    return choose


def _written(
    model: HookedModel, tokens: Int[Tensor, "row position"], max_new_tokens: int, choose: Choose
) -> Int[Tensor, "row column"]:
    """The tokens, and those that follow; a row that has ended is filled with the end of sequence."""
    end = model.tokenizer.eos_token_id
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    cache, n_new = None, tokens.shape[1]
    for _ in range(max_new_tokens):
        logits, cache = next_logits(model, tokens, n_new, cache)
        chosen, n_new = choose(logits).to(tokens), 1
        if end is not None:
            chosen = torch.where(ended, end, chosen)
            ended |= chosen == end
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        if ended.all():
            break
    return tokens
