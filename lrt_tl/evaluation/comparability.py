"""How alike two models are, before anything is carried from one to the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import same_tokenizer
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import TokenBatch, TokenRows, token_batches
from lrt_tl.text.documents import TEST, read_documents, split_of

N_DOCUMENTS = 64
_TOKENS_PER_DOCUMENT = 256
_MOST_LOGITS = 2**27
"""How many logits of a batch may stand in memory at once: half a GiB of float32, for each model."""


@dataclass(frozen=True)
class Comparability:
    """What two models have in common, and how alike they predict."""

    same_architecture: bool | None
    """Whether their configurations name one architecture; None where either names none."""
    same_tokenizer: bool
    agreement: float | None
    """Share of positions of test documents at which both models' likeliest next token is the same, 0 to 1. None with
    two tokenizers, whose tokens are no answers to one question."""
    divergence: float | None
    """Jensen–Shannon divergence of their next-token distributions, nats, mean over the same positions: 0 where they are
    equal, ln 2 where they have no token in common (Lin 1991). None with two tokenizers."""


def comparability(source: HookedModel, target: HookedModel, batches: Sequence[TokenBatch]) -> Comparability:
    """Compare two models on test documents.

    Args:
        batches: of `held_out_batches`.

    Raises:
        LrtError: a model is being steered.
    """
    for model in (source, target):
        require_at_rest(model)
    architectures = [_architecture(model) for model in (source, target)]
    one_architecture = None if None in architectures else architectures[0] == architectures[1]
    if not same_tokenizer(source.tokenizer, target.tokenizer):
        return Comparability(one_architecture, False, None, None)
    same, divergence, n = torch.zeros(3, dtype=torch.float64)
    for batch in tqdm(batches, desc="compare", unit=" batches", **BAR):
        of_source, of_target = next_token_logits(source, batch.source), next_token_logits(target, batch.target)
        shared = min(of_source.shape[1], of_target.shape[1])  # one family pads its embeddings to different sizes
        one, other = (logits[:, :shared].log_softmax(-1) for logits in (of_source, of_target.to(of_source)))
        same += (one.argmax(-1) == other.argmax(-1)).sum().cpu()
        divergence += js_divergence(one, other).double().sum().cpu()
        n += len(one)
    return Comparability(one_architecture, True, float(same / n), float(divergence / n))


def held_out_batches(
    source: HookedModel,
    target: HookedModel,
    documents: Any,
    *,
    n_documents: int = N_DOCUMENTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> list[TokenBatch]:
    """The beginnings of the first few test documents, on which no map was fitted, for both models.

    Args:
        documents: whatever `read_documents` takes; about a tenth of them are test documents.
        batch_size: documents in a forward pass; fewer where their logits would take more than half a GiB.

    Raises:
        LrtError: no document is in the test split, or in those no position of both tokenizers pairs.
    """
    read = (document for document in read_documents(documents) if split_of(document.text) == TEST)
    found = list(islice(read, n_documents))
    if not found:
        raise LrtError("no document is in the test split, on which models are compared: give a hundred or more")
    tokenizers = [source.tokenizer, target.tokenizer]
    length = min(_TOKENS_PER_DOCUMENT, source.cfg.n_ctx, target.cfg.n_ctx)
    in_memory = _MOST_LOGITS // (length * max(source.cfg.d_vocab, target.cfg.d_vocab))
    batches = token_batches(
        tokenizers[:1] if same_tokenizer(*tokenizers) else tokenizers,
        found,
        batch_size=max(1, min(batch_size, in_memory)),
        context_length=length,
        layout="truncate",
        prepend_bos=prepend_bos,
    )
    with_text = [batch for batch in batches if batch.source.content.any()]
    if not with_text:
        raise LrtError("the test documents hold special tokens only, or none at which tokens of both tokenizers end")
    return with_text


@torch.no_grad()
def next_token_logits(model: HookedModel, rows: TokenRows) -> Float[Tensor, "position d_vocab"]:
    """The logits after each position of text, float32, on the model's device."""
    logits = model(rows.tokens.to(model.cfg.device), attention_mask=rows.mask.to(model.cfg.device).long())
    found: Tensor = logits[rows.content.to(logits.device)].float()
    return found


def js_divergence(
    one: Float[Tensor, "position d_vocab"], other: Float[Tensor, "position d_vocab"]
) -> Float[Tensor, "position"]:
    """Jensen–Shannon divergence ½KL(p ‖ m) + ½KL(q ‖ m), m = ½(p + q), nats, of two distributions a position, given as
    log-probabilities."""
    middle = torch.logaddexp(one, other) - torch.log(torch.tensor(2.0))
    halves = [(each.exp() * (each - middle)).sum(-1) for each in (one, other)]
    return (halves[0] + halves[1]).clamp(min=0) / 2


def effective_dimension(covariance: Float[Tensor, "d d"]) -> float:
    """Participation ratio (tr C)² / tr C² of a covariance: d where all directions vary alike, 1 where one alone does.

    Raises:
        LrtError: nothing varies.
    """
    wide = covariance.double()
    if not (total := float(wide.trace())) > 0:
        raise LrtError("states that do not vary have no effective dimension")
    return total**2 / float(wide.square().sum())


def _architecture(model: HookedModel) -> str | None:
    names = (getattr(model.cfg, name, None) for name in ("architecture", "original_architecture"))
    return next((str(name) for name in names if name), None)
