"""Two models, documents, relations and pairs of words → what the models share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.all_or_none import EPSILON, Contrasts, all_or_none
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.facts import Fact, Facts, facts_of, texts_of_facts, token_indices, with_texts
from lrt_tl.identifiability.properties.parallelism import pairing, parallelism
from lrt_tl.identifiability.properties.probing import linear_probing
from lrt_tl.identifiability.properties.relations import linear_subspaces, relational_linearity
from lrt_tl.identifiability.properties.scores import Property, PropertyScores
from lrt_tl.identifiability.properties.steering import steering
from lrt_tl.identifiability.reading import N_CONTEXTS, read_predictors
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.contrast import ContrastPair
from lrt_tl.tables import few

Relations = Mapping[str, Sequence[Fact]]
Words = Mapping[str, Sequence[tuple[str, str]]]
_OF_FACTS: dict[str, Callable[..., PropertyScores]] = {
    "relational linearity": relational_linearity,
    "linear subspaces": linear_subspaces,
}
_FEWEST_PAIRS = 5
"""Of words: an interval over fewer means nothing."""
_OF_PAIRS: dict[str, Callable[..., PropertyScores]] = {
    "parallelism": parallelism,
    "parallelism beyond categories": pairing,
}


@dataclass(frozen=True)
class Contrast:
    """Texts that differ in one feature, after each of which it shows in the next token.

    Attributes:
        pairs: texts with the feature, and without it.
        positive: answers that tell it, single tokens with their spaces; those that a predictor lacks are left out.
        negative: answers that tell that it is not there.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> answers = storyworld.behavior("refusal").score
        >>> contrast = lrt.Contrast(storyworld.contrast_pairs("refusal", 16), answers.positive, answers.negative)
        >>> len(contrast.pairs), contrast.positive[:3], contrast.negative[:3]
        (16, (' Alas', ' I', ' Never'), (' Certainly', ' Gladly', ' Of'))
    """

    pairs: Sequence[ContrastPair]
    positive: Sequence[str]
    negative: Sequence[str]

    def __repr__(self) -> str:
        return f"Contrast({len(self.pairs)} pairs, {few(self.positive)}; against {few(self.negative)})"


def compare_models(
    model_a: HookedModel,
    model_b: HookedModel,
    documents: Any,
    *,
    epsilon: float = EPSILON,
    relations: Relations | None = None,
    pairs: Words | None = None,
    contrasts: Mapping[str, Contrast] | None = None,
    probing: bool = False,
    n_contexts: int = N_CONTEXTS,
    batch_size: int = 16,
    prepend_bos: bool = True,
    **options: Any,
) -> Verdict:
    """What two models share, of properties that are read from facts, pairs of words and contrasts.

    Of each relation: relational linearity, linear subspaces, and parallelism of the pairs of subject and answer that
    are single tokens. Of pairs of words: parallelism, and what of it is left beyond that of their two categories. Of
    contrasts: steering at the output, by the difference of means, and how well each model's vector is carried over.

    Args:
        documents: whatever `read_documents` takes: the contexts that the distributions are compared at. Those of the
            facts and contrasts are for the properties alone.
        epsilon: the largest mean KL, in nats, that counts as equal.
        relations: facts by the relation's name, such as `storyworld.relation(name).seen`, or `read_relations(file)`;
            the answers of one relation in one spelling.
        pairs: pairs of words by name, with their spaces, such as `[(" tall", " taller")]`.
        contrasts: by name.
        probing: linear probing of relations too, which takes far longer than all else: half a minute a relation.
        n_contexts: from the documents.
        options: of `all_or_none`.

    What cannot be measured, such as a relation whose answers are no single tokens of both, is named in the verdict.

    Raises:
        LrtError: as of `read_predictors` and `all_or_none`; a word of a pair is no token that both have; or a contrast
            has no pair.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium = storyworld.load("small"), storyworld.load("medium")
        >>> facts = {"capital-of": storyworld.relation("capital-of").seen[:40]}
        >>> verdict = lrt.compare_models(small, medium, storyworld.documents(20), n_contexts=500, relations=facts)
        >>> verdict.premise  # not one distribution, to ε
        False
        >>> verdict.properties["capital-of: linear subspaces"].answer
        'undetermined'
    """
    relations, pairs, contrasts = relations or {}, pairs or {}, contrasts or {}
    for name, contrast in contrasts.items():
        if not contrast.pairs:
            raise LrtError(f"contrast {name!r} has no pair of texts")
    predictors = read_predictors(
        model_a, model_b, documents, n_contexts=n_contexts, batch_size=batch_size, prepend_bos=prepend_bos
    )
    texts = list(dict.fromkeys([*texts_of_relations(relations), *texts_of_contrasts(contrasts)]))
    first, second = (
        with_texts(each, model, texts, prepend_bos=prepend_bos) if texts else each
        for each, model in zip(predictors, (model_a, model_b), strict=True)
    )
    places = {text: len(predictors[0].f) + number for number, text in enumerate(texts)}
    between = contexts_of_contrasts(contrasts, places)
    found = properties_of(predictors[0], model_a.tokenizer, relations, pairs, texts, probing=probing)
    for name, contrast in contrasts.items():
        tokens, (positive, negative) = _answer_pairs(predictors[0], model_a.tokenizer, contrast), between[name]
        found[f"{name}: steering"] = (
            _refused(tokens)
            if isinstance(tokens, str)
            else partial(steering, positive=positive, negative=negative, pairs=tokens)
        )
    return all_or_none(*predictors, found, contrasts=between, extended=(first, second), epsilon=epsilon, **options)


def texts_of_relations(relations: Relations) -> list[str]:
    """The texts after which the relations' properties are read: `with_texts` adds them to a predictor."""
    return list(dict.fromkeys(text for facts in relations.values() for text in texts_of_facts(facts)))


def texts_of_contrasts(contrasts: Mapping[str, Contrast]) -> list[str]:
    """The same of contrasts."""
    pairs = (pair for contrast in contrasts.values() for pair in contrast.pairs)
    return list(dict.fromkeys(text for pair in pairs for text in (pair.positive, pair.negative)))


def contexts_of_contrasts(contrasts: Mapping[str, Contrast], places: Mapping[str, int]) -> Contrasts:
    """The contexts of either side.

    Args:
        places: of each text the index of its context.
    """
    return {
        name: (
            torch.tensor([places[pair.positive] for pair in contrast.pairs]),
            torch.tensor([places[pair.negative] for pair in contrast.pairs]),
        )
        for name, contrast in contrasts.items()
    }


def properties_of(
    predictor: Predictor,
    tokenizer: Any,
    relations: Relations,
    pairs: Words,
    texts: Sequence[str] | None = None,
    *,
    probing: bool = False,
) -> dict[str, Property]:
    """The properties of relations and pairs, for a predictor to which texts will be added.

    Args:
        texts: those that will be, in order; by default `texts_of_relations(relations)`.
        probing: linear probing of relations too, which takes seconds each.

    Raises:
        LrtError: a word of a pair is no token of the predictor. (Of a relation whose answers are not, every property
            raises, so that `all_or_none` names it among what is missing.)
    """
    texts = texts_of_relations(relations) if texts is None else texts
    indices: dict[str, Facts | str] = {}
    of_words: dict[str, torch.Tensor] = {}
    for name, facts in relations.items():
        answers = token_indices(predictor, tokenizer, [fact.answer for fact in facts])
        subjects = token_indices(predictor, tokenizer, [f" {fact.subject}" for fact in facts])
        if len({answer for answer in answers if answer is not None}) < 2:
            known = sum(answer is not None for answer in answers)
            indices[name] = (
                f"{known} of {len(facts)} answers ({facts[0].answer!r}, …) are single tokens that both models have: "
                "two different ones are needed"
            )
        else:
            indices[name] = facts_of(facts, texts, len(predictor.f), answers)
        of_tokens = [(subject, answer) for subject, answer in zip(subjects, answers, strict=True) if subject != answer]
        both = [pair for pair in dict.fromkeys(of_tokens) if None not in pair]
        of_words[name] = torch.tensor(both).reshape(-1, 2).long()
    for name, given in pairs.items():
        of_words[name] = _pairs_of_words(predictor, tokenizer, name, given)
    measures = _OF_FACTS | ({"linear probing": linear_probing} if probing else {})
    found: dict[str, Property] = {
        f"{name}: {kind}": _refused(facts) if isinstance(facts, str) else partial(measure, facts=facts)
        for kind, measure in measures.items()
        for name, facts in indices.items()
    }
    for kind, of_pairs in _OF_PAIRS.items():
        for name, words in of_words.items():
            few = f"{len(words)} pairs of single tokens that both models have: {_FEWEST_PAIRS} or more are needed"
            enough = len(words) >= _FEWEST_PAIRS
            found[f"{name}: {kind}"] = partial(of_pairs, pairs=words) if enough else _refused(few)
    return found


def _refused(reason: str) -> Property:
    """A property that cannot be measured."""

    def measure(predictor: Predictor, found: Subspaces) -> PropertyScores:
        raise LrtError(reason)

    return measure


def _pairs_of_words(predictor: Predictor, tokenizer: Any, name: str, words: Sequence[tuple[str, str]]) -> torch.Tensor:
    indices = [token_indices(predictor, tokenizer, pair) for pair in words]
    for pair, place in zip(words, indices, strict=True):
        if None in place:
            raise LrtError(f"{name}: {pair[place.index(None)]!r} is no single token that both models have")
    return torch.tensor(indices)


def _answer_pairs(predictor: Predictor, tokenizer: Any, contrast: Contrast) -> torch.Tensor | str:
    """Every negative answer with every positive one; or why there is none."""
    sides = [
        [token for token in token_indices(predictor, tokenizer, words) if token is not None]
        for words in (contrast.negative, contrast.positive)
    ]
    if not all(sides):
        return (
            f"{len(sides[1])} of {len(contrast.positive)} positive answers and {len(sides[0])} of "
            f"{len(contrast.negative)} negative ones are single tokens that both models have: one of each is needed"
        )
    return torch.tensor(list(product(*sides)))
