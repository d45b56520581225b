"""Language models, and text → their predictors at the same contexts and for the same tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import READS, Predictor, check_reproduces, soft_cap, unembedding
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import same_tokenizer, special_tokens
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import TokenBatch, TokenRows, token_batches
from lrt_tl.text.documents import read_documents

N_CONTEXTS = 10_000
_CHECKED = 64
"""Positions whose logits are compared with the model's own."""


def read_predictors(
    model_a: HookedModel,
    model_b: HookedModel,
    documents: Any,
    *,
    n_contexts: int = N_CONTEXTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> tuple[Predictor, Predictor]:
    """Both models' predictors after the same texts, and of the tokens that both have.

    The contexts are the beginnings of the documents, up to each of their tokens; with two tokenizers, up to where
    tokens of both end. The tokens are then those that add the same text in both: log-ratios between them stay exact,
    though their effective dimension may fall (and what one tokenizer has as a whole word may, in the other, be the
    beginning of a longer one); `coverage` says how much probability they have. Special tokens are neither contexts nor
    tokens to predict, except where both models have one tokenizer.

    Args:
        documents: whatever `read_documents` takes.
        n_contexts: no more than these, from the first documents.

    Raises:
        LrtError: a model is being steered, its logits are not those of its unembedding, or nothing is shared.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> models = storyworld.load("small"), storyworld.load("large-alt")  # with another tokenizer
        >>> p, q = lrt.read_predictors(*models, storyworld.documents(20), n_contexts=500)
        >>> q
        Predictor(storyworld-large-alt, 500 contexts of 12 documents, 444 tokens, d 192)
        >>> round(float(p.coverage.mean()), 2)  # of the probability, on the tokens that both have
        0.73
    """
    one, other = _read([model_a, model_b], documents, n_contexts, batch_size, prepend_bos)
    return one, other


def read_predictor(
    model: HookedModel,
    documents: Any,
    *,
    n_contexts: int = N_CONTEXTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> Predictor:
    """One model's predictor: see `read_predictors`.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> lrt.read_predictor(storyworld.load("small"), storyworld.documents(20), n_contexts=500)
        Predictor(storyworld-small, 500 contexts of 12 documents, 2460 tokens, d 64)
    """
    return _read([model], documents, n_contexts, batch_size, prepend_bos)[0]


def shared_tokens(one: Any, other: Any) -> tuple[Int[Tensor, "token"], Int[Tensor, "token"]]:
    """The ids, in either tokenizer, of the tokens that add the same text to what stands before them.

    What a token adds is seen after another one: so the word-level token `cat`, which decodes to "the cat" after `the`,
    and the byte-level ` cat` are shared, and the byte-level `cat`, which goes on with a word, is another. Special
    tokens are not shared.

    Raises:
        LrtError: fewer than two are.
    """
    ours, theirs = (_added_texts(tokenizer) for tokenizer in (one, other))
    texts = [text for text in ours if text in theirs]
    if len(texts) < 2:
        raise LrtError(f"the tokenizers share {len(texts)} tokens: the models' predictions cannot be compared")
    return torch.tensor([ours[text] for text in texts]), torch.tensor([theirs[text] for text in texts])


def _added_texts(tokenizer: Any) -> dict[str, int]:
    """The token that adds each text; of several that add the same the last, since single bytes come first."""
    special = special_tokens(tokenizer).keys()
    ids = [token for token in range(len(tokenizer)) if token not in special]
    alone = _decoded(tokenizer, [[token] for token in ids])
    before = next((place for place, text in enumerate(alone) if text.strip().isalpha()), None)
    if before is None:
        return {}
    start = alone[before]
    after = _decoded(tokenizer, [[ids[before], token] for token in ids])
    added = {text[len(start) :]: token for token, text in zip(ids, after, strict=True) if text.startswith(start)}
    return {text: token for text, token in added.items() if text and "\ufffd" not in text}


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return texts


def _read(
    models: Sequence[HookedModel], documents: Any, n_contexts: int, batch_size: int, prepend_bos: bool
) -> list[Predictor]:
    if n_contexts < 1:
        raise LrtError(f"n_contexts={n_contexts}: it must be at least 1")
    for model in models:
        require_at_rest(model)
    tokenizers = [model.tokenizer for model in models]
    one = same_tokenizer(tokenizers[0], tokenizers[-1])
    batches = token_batches(
        tokenizers[:1] if one else tokenizers, read_documents(documents), batch_size=batch_size,
        context_length=min(model.cfg.n_ctx for model in models), prepend_bos=prepend_bos, sorted_together=1,
    )  # fmt: skip
    states: list[list[Tensor]] = [[] for _ in models]
    names: list[str] = []
    for batch in _until(batches, n_contexts):
        for model, rows, found in zip(models, (batch.source, batch.target), states, strict=False):
            if not found:
                _check(model, rows)
            found.append(capture(model, rows.tokens, rows.mask, [READS])[READS].cpu()[rows.content])
        names += [batch.names[row] for row in batch.source.content.nonzero()[:, 0].tolist()]
    if not names:
        raise LrtError("no context: no token of the documents is text in both models")
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    of_documents = torch.tensor([places[name] for name in names])[:n_contexts]
    tokens = _tokens_in_common(models) if one else shared_tokens(*tokenizers)
    whole = [
        _predictor(model, torch.cat(found)[:n_contexts], of_documents)
        for model, found in zip(models, states, strict=True)
    ]
    return [each if len(some) == len(each.g) else each.among(some) for each, some in zip(whole, tokens, strict=False)]


def _until(batches: Iterator[TokenBatch], n_contexts: int) -> Iterator[TokenBatch]:
    """The first batches, until they hold that many contexts."""
    read = 0
    with tqdm(total=n_contexts, desc="contexts", unit=" contexts", **BAR) as progress:
        for batch in batches:
            yield batch
            found = min(int(batch.source.content.sum()), n_contexts - read)
            progress.update(found)
            read += found
            if read >= n_contexts:
                return


@torch.no_grad()
def _check(model: HookedModel, rows: TokenRows) -> None:
    """Whether the logits at the beginning of the first row are those of the unembedding."""
    tokens, mask = rows.tokens[:1, :_CHECKED], rows.mask[:1, :_CHECKED]
    f = capture(model, tokens, mask, [READS])[READS]
    logits = model(tokens.to(f.device), attention_mask=mask.to(f.device).long())
    some = mask.to(f.device)
    check_reproduces(f[some], model, logits[some], str(model.cfg.model_name))


def _tokens_in_common(models: Sequence[HookedModel]) -> list[Int[Tensor, "token"]]:
    """All; where two models of one tokenizer pad their vocabulary to different sizes, those of the smaller."""
    n_tokens = min(unembedding(model)[0].shape[0] for model in models)
    return [torch.arange(n_tokens)] * len(models)


def _predictor(model: HookedModel, f: Float[Tensor, "context d_model"], documents: Tensor) -> Predictor:
    g, bias = unembedding(model)
    cap = soft_cap(model)
    note = "" if cap is None else f"its logits are softly capped at {cap:g}: compared before the cap"
    n_named = min(len(model.tokenizer), len(g))
    names = model.tokenizer.convert_ids_to_tokens(list(range(n_named)))
    names = [*names, *(f"<{token}>" for token in range(n_named, len(g)))]
    return Predictor.from_arrays(
        f.to(g.dtype), g.cpu(), None if bias is None else bias.cpu(), documents=documents,
        name=str(model.cfg.model_name), tokens=names, note=note,
    )  # fmt: skip
