"""Facts as contexts of predictors: the beginning of each that ends with its subject, and the whole of its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import READS, Predictor, unembedding
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.states import text_states
from lrt_tl.text.batches import tokenize


@runtime_checkable
class Fact(Protocol):
    """`lrt_tl.storyworld.Fact`, or whatever has these."""

    @property
    def subject(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Facts:
    """Where a relation stands in a predictor: by the index of contexts and tokens.

    Raises:
        LrtError: there are fewer than two different replies, or these are not as many subjects as facts.
    """

    after_subject: Int[Tensor, "fact"]
    """The context s, which ends with the subject."""
    after_prompt: Int[Tensor, "fact"]
    """The context s∘q, after which the answer is said."""
    subjects: Int[Tensor, "fact"]
    """Which subject each is about: facts of one are held out together."""
    replies: Int[Tensor, "reply"]
    """The tokens that can be the answer."""

    def __post_init__(self) -> None:
        if not len(self.after_subject) == len(self.after_prompt) == len(self.subjects):
            raise LrtError("every fact needs a context after its subject, one after its prompt, and a subject")
        if len(self.replies) < 2 or len(set(self.replies.tolist())) != len(self.replies):
            raise LrtError(f"replies {self.replies.tolist()[:9]}: two or more, all different, are needed to tell apart")


def log_ratios(predictor: Predictor, facts: Facts) -> Float64[Tensor, "fact reply"]:
    """log p(y|s∘q) less its mean over the replies."""
    g = predictor.g[facts.replies].double()
    return predictor.f[facts.after_prompt].double() @ (g - g.mean(0)).T


def subject_end(fact: Fact) -> int:
    """Where in the prompt its subject ends, the last time that it stands there.

    Raises:
        LrtError: it does not.
    """
    start = fact.prompt.rfind(fact.subject)
    if start < 0:
        raise LrtError(f"the prompt {fact.prompt!r} does not name its subject {fact.subject!r}")
    return start + len(fact.subject)


def texts_of_facts(facts: Sequence[Fact]) -> list[str]:
    """All texts after which `facts_of` wants a context: what `with_texts` adds to a predictor."""
    found = [text for fact in facts for text in (fact.prompt[: subject_end(fact)], fact.prompt)]
    return list(dict.fromkeys(found))


def facts_of(facts: Sequence[Fact], texts: Sequence[str], first: int, tokens: Sequence[int | None]) -> Facts:
    """Facts by index; those whose answer is no single token of the predictor are left out.

    Args:
        texts: what `with_texts` added to the predictor, as contexts from the `first` on.
        tokens: of each fact the index of its answer among the predictor's tokens, as `token_indices` gives it.

    Raises:
        LrtError: a text is missing, or fewer than two answers are left.
    """
    kept = [(fact, token) for fact, token in zip(facts, tokens, strict=True) if token is not None]
    places = {text: first + number for number, text in enumerate(texts)}
    subjects = {name: number for number, name in enumerate(dict.fromkeys(fact.subject for fact, _ in kept))}
    return Facts(
        torch.tensor([places[fact.prompt[: subject_end(fact)]] for fact, _ in kept], dtype=torch.long),
        torch.tensor([places[fact.prompt] for fact, _ in kept], dtype=torch.long),
        torch.tensor([subjects[fact.subject] for fact, _ in kept], dtype=torch.long),
        torch.tensor(list(dict.fromkeys(token for _, token in kept)), dtype=torch.long),
    )


def with_texts(
    predictor: Predictor, model: HookedModel, texts: Sequence[str], *, prepend_bos: bool = True
) -> Predictor:
    """The same predictor with one more context after each text, each a document of its own."""
    states = text_states(model, texts, [READS], position="last", prepend_bos=prepend_bos)[READS].states
    if predictor.d_model == states.shape[1] + 1:  # the unembedding has a bias
        states = functional.pad(states, (0, 1), value=1.0)
    new, states = int(predictor.documents.max()) + 1 + torch.arange(len(texts)), states.to(predictor.f)
    coverage = predictor.coverage
    if coverage is not None:
        coverage = torch.cat([coverage, _coverage(states, predictor, model)])
    return replace(
        predictor,
        f=torch.cat([predictor.f, states]),
        documents=torch.cat([predictor.documents, new]),
        coverage=coverage,
    )


def _coverage(
    states: Float[Tensor, "context d_model"], some: Predictor, model: HookedModel
) -> Float64[Tensor, "context"]:
    """The probability of the predictor's tokens among all that the model has."""
    g, bias = (None if part is None else part.cpu().double() for part in unembedding(model))
    assert g is not None
    f = states.double()
    whole = f[:, : g.shape[1]] @ g.T + (0 if bias is None else bias)
    found: Tensor = ((f @ some.g.double().T).logsumexp(1) - whole.logsumexp(1)).exp()
    return found


def subject_states(
    model: HookedModel,
    facts: Sequence[Fact],
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    prepend_bos: bool = True,
) -> Float[Tensor, "fact d_model"]:
    """The state of each subject's last token at a layer, from which `relations.linearity` and `probing.probe_scores`
    tell whether a relation is linear there already.

    Args:
        layer: the residual stream after this block, or `hook_name` another point of it.

    Raises:
        LrtError: a prompt does not name its subject, or the model is being steered.
    """
    name = resolve_hook_name(model, layer=layer, hook_name=hook_name)
    until = [fact.prompt[: subject_end(fact)] for fact in facts]
    return text_states(model, until, [name], position="last", prepend_bos=prepend_bos)[name].states


def token_indices(predictor: Predictor, tokenizer: Any, words: Sequence[str]) -> list[int | None]:
    """Which of the predictor's tokens each word is, by its name in the tokenizer; None for what is not one of them."""
    place = {name: number for number, name in enumerate(predictor.tokens)}
    rows = tokenize(tokenizer, words, prepend_bos=False)
    single = [row[0] if len(row) == 1 and row[0] != tokenizer.unk_token_id else None for row in rows]
    return [None if token is None else place.get(tokenizer.convert_ids_to_tokens(token)) for token in single]
