"""Two models → what they share, as one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrt_tl.identifiability.all_or_none import EPSILON
from lrt_tl.identifiability.comparison import (
    Contrast,
    Relations,
    compare_models,
    texts_of_contrasts,
    texts_of_relations,
)
from lrt_tl.identifiability.reading import N_CONTEXTS
from lrt_tl.identifiability.relation_files import read_relations
from lrt_tl.models.identity import identify
from lrt_tl.models.protocol import HookedModel
from lrt_tl.runs.comparison import ComparisonRun
from lrt_tl.runs.provenance import digest
from lrt_tl.storyworld.named import default_contrasts, default_documents, default_relations, named_documents
from lrt_tl.text.documents import read_documents


def compare(
    model_a: HookedModel,
    model_b: HookedModel,
    documents: Any = None,
    *,
    relations: Any = None,
    contrasts: Mapping[str, Contrast] | None = None,
    epsilon: float = EPSILON,
    probing: bool = False,
    n_contexts: int = N_CONTEXTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> ComparisonRun:
    """Say how equal two models are, where they are linearly the same, and which linear properties they share.

    Args:
        documents: whatever `read_documents` takes, or "storyworld", which is the default where both models are of that
            family.
        relations: whatever `read_relations` takes, or facts by the relation's name. Models of storyworld have their
            own.
        contrasts: by name; models of storyworld have their own.
        epsilon: the largest mean KL divergence, in nats, that counts as equal.
        probing: linear probing of relations too, which takes far longer than all else.
        n_contexts: from the documents, the first.
        arguments: what to note down as the way to find this again; by default these options.

    Raises:
        LrtError: any input is refused. Files are read before the models run.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> options = {"relations": {}, "contrasts": {}, "n_contexts": 400}
        >>> lrt.compare(model, storyworld.widen(model, 80), texts, **options).answer().verdict
        'one distribution'
        >>> lrt.compare(model, lrt.reinitialized(model), texts, **options).answer().verdict
        'not shown to be one distribution'
    """
    facts: Relations
    if relations is None:
        facts = default_relations(model_a, model_b)
    elif isinstance(relations, Mapping):
        facts = relations
    else:
        facts = read_relations(relations)
    between = default_contrasts(model_a, model_b) if contrasts is None else contrasts
    read = read_documents(named_documents(default_documents(model_a, model_b) if documents is None else documents))
    options: dict[str, Any] = {"epsilon": epsilon, "probing": probing, "n_contexts": n_contexts}
    options |= {"batch_size": batch_size, "prepend_bos": prepend_bos}
    verdict = compare_models(model_a, model_b, read, relations=facts, contrasts=between, **options)
    texts = {
        "documents": (document.text for document in read),
        "relations": texts_of_relations(facts),
        "contrasts": texts_of_contrasts(between),
    }
    given = {name: str(each) for name, each in (("relations", relations),) if isinstance(each, (str, Path))} | options
    return ComparisonRun(
        verdict,
        (identify(model_a), identify(model_b)),
        given if arguments is None else arguments,
        {name: digest(each) for name, each in texts.items()},
    )
