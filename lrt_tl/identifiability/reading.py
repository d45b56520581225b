"""Two language models, and text → their predictors at the same contexts and for the same tokens."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor, check_reproduces, soft_cap, unembedding
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import same_tokenizer, special_tokens
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import TokenBatch, TokenRows, token_batches, tokenize
from lrt_tl.text.documents import read_documents

N_CONTEXTS = 10_000
_READS, _CHECKED = "unembed.hook_in", 64


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
    tokens of both end. The tokens are then those that stand for the same text in both: log-ratios between them stay
    exact, though their effective dimension may fall. Special tokens are neither contexts nor tokens to predict, except
    where both models have one tokenizer.

    Args:
        documents: whatever `read_documents` takes.
        n_contexts: no more than these, from the first documents.

    Raises:
        LrtError: a model is being steered, its logits are not those of its unembedding, or nothing is shared.
    """
    models = {"a": model_a, "b": model_b}
    for model in models.values():
        require_at_rest(model)
    one = same_tokenizer(model_a.tokenizer, model_b.tokenizer)
    tokenizers = [model_a.tokenizer] if one else [model_a.tokenizer, model_b.tokenizer]
    context_length = min(model.cfg.n_ctx for model in models.values())
    batches = token_batches(
        tokenizers, read_documents(documents), batch_size=batch_size, context_length=context_length,
        prepend_bos=prepend_bos, sorted_together=1,
    )  # fmt: skip
    states: dict[str, list[Tensor]] = {"a": [], "b": []}
    names: list[str] = []
    for batch in _until(batches, n_contexts):
        for side, rows in (("a", batch.source), ("b", batch.target)):
            states[side].append(_states(models[side], rows, first=not names))
        names += [batch.names[row] for row in batch.source.content.nonzero()[:, 0].tolist()]
    if not names:
        raise LrtError("no context: no token of the documents is text in both models")
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    documents_of = torch.tensor([places[name] for name in names])[:n_contexts]
    shared = None if one else shared_tokens(*tokenizers)
    return tuple(  # type: ignore[return-value]
        _predictor(
            models[side], torch.cat(states[side])[:n_contexts], documents_of, None if shared is None else shared[k]
        )
        for k, side in enumerate(models)
    )


def read_predictor(model: HookedModel, documents: Any, **options: Any) -> Predictor:
    """One model's predictor: see `read_predictors`, whose options it takes."""
    return read_predictors(model, model, documents, **options)[0]


def shared_tokens(one: Any, other: Any) -> tuple[Int[Tensor, "token"], Int[Tensor, "token"]]:
    """The ids, in either tokenizer, of the tokens that stand for the same text in both.

    A token of the first is decoded, and is shared where the second makes a single token of that text, which it decodes
    to the same text again. Special tokens are not shared.

    Raises:
        LrtError: fewer than two are.
    """
    special = special_tokens(one).keys(), special_tokens(other).keys()
    ids = [token for token in range(len(one)) if token not in special[0]]
    texts = [one.decode([token]) for token in ids]
    kept = [(token, text) for token, text in zip(ids, texts, strict=True) if text and "\ufffd" not in text]
    rows = tokenize(other, [text for _, text in kept], prepend_bos=False)
    pairs: dict[int, int] = {}
    for (token, text), row in zip(kept, rows, strict=True):
        if len(row) == 1 and row[0] not in special[1] and other.decode(row) == text:
            pairs.setdefault(row[0], token)
    if len(pairs) < 2:
        raise LrtError(f"the tokenizers share {len(pairs)} tokens: the models' predictions cannot be compared")
    return torch.tensor([*pairs.values()]), torch.tensor([*pairs])


def _until(batches: Iterator[TokenBatch], n_contexts: int) -> Iterator[TokenBatch]:
    """The first batches, until they hold that many contexts."""
    read = 0
    with tqdm(total=n_contexts, desc="contexts", unit=" contexts", leave=False) as progress:
        for batch in batches:
            yield batch
            found = int(batch.source.content.sum())
            progress.update(found)
            read += found
            if read >= n_contexts:
                return


@torch.no_grad()
def _states(model: HookedModel, rows: TokenRows, *, first: bool) -> Float[Tensor, "context d_model"]:
    """What the unembedding reads at the text of a batch; the first batch is checked against the model's logits."""
    found = capture(model, rows.tokens, rows.mask, [_READS])[_READS].cpu()
    if first:
        device = model.cfg.device
        logits = model(rows.tokens.to(device), attention_mask=rows.mask.to(device).long()).cpu()
        some = rows.content.nonzero()[:_CHECKED].unbind(1)
        check_reproduces(found[some], model, logits[some], str(model.cfg.model_name))
    return found[rows.content]


def _predictor(model: HookedModel, f: Tensor, documents: Tensor, tokens: Tensor | None) -> Predictor:
    g, bias = (part if part is None else part.cpu() for part in unembedding(model))
    assert g is not None
    cap = soft_cap(model)
    note = "" if cap is None else f"its logits are softly capped at {cap:g}: compared before the cap"
    names = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    names = [*names, *(f"<{token}>" for token in range(len(names), len(g)))][: len(g)]
    whole = Predictor.from_arrays(
        f.to(g), g, bias, documents=documents, name=str(model.cfg.model_name), tokens=names, note=note
    )
    return whole if tokens is None else whole.among(tokens)
