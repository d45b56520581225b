"""Two models, documents, relations and pairs of words → what the models share."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.facts import Fact, facts_of, texts_of_facts, token_indices, with_texts
from lrt_tl.identifiability.properties.parallelism import parallelism
from lrt_tl.identifiability.properties.relations import linear_subspaces, relational_linearity
from lrt_tl.identifiability.properties.scores import Property
from lrt_tl.identifiability.reading import N_CONTEXTS, read_predictors
from lrt_tl.identifiability.verdict import Verdict, all_or_none
from lrt_tl.models.protocol import HookedModel

Relations = Mapping[str, Sequence[Fact]]
Words = Mapping[str, Sequence[tuple[str, str]]]


def compare_models(
    model_a: HookedModel,
    model_b: HookedModel,
    documents: Any,
    *,
    epsilon: float,
    relations: Relations | None = None,
    pairs: Words | None = None,
    n_contexts: int = N_CONTEXTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
    **options: Any,
) -> Verdict:
    """What two models share, of properties that are read from facts and from pairs of words.

    Of each relation: relational linearity, and linear subspaces. Of pairs of words: parallelism.

    Args:
        documents: whatever `read_documents` takes: the contexts that the distributions are compared at, beside those of
            the facts.
        epsilon: the largest mean KL, in nats, that counts as equal.
        relations: facts by the relation's name, such as `storyworld.relation(name).seen`; the answers of one relation
            in one spelling.
        pairs: pairs of words by name, with their spaces, such as `[(" tall", " taller")]`.
        n_contexts: from the documents.
        options: of `all_or_none`.

    Raises:
        LrtError: as of `read_predictors` and `all_or_none`; or a word of a pair is no token that both have.
    """
    predictors = read_predictors(
        model_a, model_b, documents, n_contexts=n_contexts, batch_size=batch_size, prepend_bos=prepend_bos
    )
    texts = texts_of_relations(relations or {})
    first, second = (
        with_texts(each, model, texts, prepend_bos=prepend_bos) if texts else each
        for each, model in zip(predictors, (model_a, model_b), strict=True)
    )
    found = properties_of(predictors[0], model_a.tokenizer, relations or {}, pairs or {})
    return all_or_none(first, second, found, epsilon=epsilon, **options)


def texts_of_relations(relations: Relations) -> list[str]:
    """The texts after which the relations' properties are read: `with_texts` adds them to a predictor."""
    return list(dict.fromkeys(text for facts in relations.values() for text in texts_of_facts(facts)))


def properties_of(predictor: Predictor, tokenizer: Any, relations: Relations, pairs: Words) -> dict[str, Property]:
    """The properties of relations and pairs, for a predictor to which `texts_of_relations` will be added.

    Raises:
        LrtError: a word of a pair is no token of the predictor, or a relation has fewer than two answers that are.
    """
    texts = texts_of_relations(relations)
    found: dict[str, Property] = {}
    for name, facts in relations.items():
        answers = token_indices(predictor, tokenizer, [fact.answer for fact in facts])
        indices = facts_of(facts, texts, len(predictor.f), answers)
        found[f"{name}: relational linearity"] = partial(relational_linearity, facts=indices)
        found[f"{name}: linear subspaces"] = partial(linear_subspaces, facts=indices)
    for name, words in pairs.items():
        indices_of_pairs = [token_indices(predictor, tokenizer, pair) for pair in words]
        for pair, place in zip(words, indices_of_pairs, strict=True):
            if None in place:
                raise LrtError(f"{name}: {pair[place.index(None)]!r} is no single token that both models have")
        found[f"{name}: parallelism"] = partial(parallelism, pairs=torch.tensor(indices_of_pairs))
    return found
