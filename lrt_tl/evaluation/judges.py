"""Judges of written texts: a classifier that is fitted on labelled ones, and AxBench's rating of three in one."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import harmonic_mean
from typing import Any

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.written import Judge

_LEAST, _FOLDS, _BEST_RATING = 10, 5, 2


@dataclass(frozen=True)
class TextClassifier:
    """A judge: the log-odds that a text is positive, nats, by its words and pairs of words. It does not see the prompt.

    Attributes:
        auc: probability that a held-out positive text scores above a held-out negative one.
        n: different texts that it was fitted on.
        chance: the AUC that one classifier in twenty reaches by chance, on as many texts.

    Examples:
        >>> import lrt_tl as lrt
        >>> animals = "cat dog cow hen fox pig owl bee ant elk".split()
        >>> sing, weep = ([f"The {each} {does}." for each in animals] for does in ("sings", "weeps"))
        >>> judge = lrt.text_classifier(sing, weep)
        >>> judge
        TextClassifier(held-out AUC 1.000 on 20 texts)
        >>> singing, weeping = judge(["In the park,"] * 2, ["a child sings.", "a child weeps."])
        >>> singing > 0 > weeping
        True
    """

    auc: float
    n: int
    chance: float
    _pipeline: Any = field(repr=False)

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [float(score) for score in self._pipeline.decision_function(list(texts))]

    def __repr__(self) -> str:
        doubt = "" if self.auc > self.chance else ", no better than chance"
        return f"TextClassifier(held-out AUC {self.auc:.3f} on {self.n} texts{doubt})"


def text_classifier(positive: Sequence[str], negative: Sequence[str], *, seed: int = 0) -> TextClassifier:
    """Fit a judge on labelled texts: logistic regression on tf-idf of words and pairs of neighbouring words.

    It is fitted on all texts; its AUC is that of five others, each fitted on four fifths and measured on the rest.
    A text that stands twice on a side counts once. Where both sides have as many texts they may be pairs, nearly alike:
    those at one place are held out together, or one would tell the opposite of the other.

    Raises:
        LrtError: fewer than 10 different texts on a side, an empty one, or one that stands on both sides.

    Warns:
        UserWarning: the AUC is no better than chance (above which one classifier in twenty comes by luck).

    Examples:
        >>> import lrt_tl as lrt
        >>> animals = "cat dog cow hen fox pig owl bee ant elk".split()
        >>> sing, weep = ([f"The {each} {does}." for each in animals] for does in ("sings", "weeps"))
        >>> judge = lrt.text_classifier(sing, weep)
        >>> round(judge.auc, 1), judge.n
        (1.0, 20)
        >>> behavior = lrt.Behavior("singing", ("In the park, the child",), lrt.WrittenText(judge, max_new_tokens=10))
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    sides = [_different(side, name) for side, name in ((positive, "positive"), (negative, "negative"))]
    if both := set(sides[0]) & set(sides[1]):
        raise LrtError(f"{len(both)} texts are both positive and negative, such as {min(both)[:60]!r}: remove them")
    texts, labels = [*sides[0], *sides[1]], [1] * len(sides[0]) + [0] * len(sides[1])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    pipeline = make_pipeline(words, LogisticRegression(max_iter=1000))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    together = {text: place for side in (positive, negative) for place, text in enumerate(side)}
    groups = [together[text] if len(positive) == len(negative) else place for place, text in enumerate(texts)]
    held_out = cross_val_predict(pipeline, texts, labels, groups=groups, cv=folds, method="decision_function")
    ones, others = map(len, sides)
    error = ((ones + others + 1) / (12 * ones * others)) ** 0.5  # of the AUC where the labels mean nothing
    found = TextClassifier(float(roc_auc_score(labels, held_out)), len(texts), 0.5 + 1.645 * error, pipeline)
    pipeline.fit(texts, labels)
    if found.auc <= found.chance:
        warnings.warn(f"{found!r}: it cannot judge what the model writes", UserWarning, stacklevel=2)
    return found


def steering_quality(concept: float, instruction: float, fluency: float) -> float:
    """How well a text was steered: the harmonic mean of three ratings from 0 to 2, of how much of the concept is in it,
    how well it follows the instruction, and how well it reads. 0 if any of them is 0.

    AxBench's overall score (Wu et al. 2025, arXiv 2501.17148).

    Raises:
        LrtError: a rating is not between 0 and 2.

    Examples:
        >>> import lrt_tl as lrt
        >>> lrt.steering_quality(concept=2.0, instruction=1.0, fluency=2.0)
        1.5
        >>> lrt.steering_quality(concept=2.0, instruction=2.0, fluency=0.0)  # the concept, in no readable text
        0.0
    """
    ratings = (concept, instruction, fluency)
    if not all(0 <= rating <= _BEST_RATING for rating in ratings):
        raise LrtError(f"ratings {ratings} must be between 0 and {_BEST_RATING}")
    return float(harmonic_mean(ratings))


def harmonic_judge(concept: Judge, instruction: Judge, fluency: Judge) -> Judge:
    """The judge whose score is the `steering_quality` of three judges' ratings, each from 0 to 2.

    Examples:
        >>> import lrt_tl as lrt
        >>> def always(rating):
        ...     return lambda prompts, texts: [rating] * len(texts)
        >>> judge = lrt.harmonic_judge(concept=always(2.0), instruction=always(1.0), fluency=always(2.0))
        >>> judge(["Tell me a story."], ["Once, there was a sea."])
        [1.5]
    """

    def judge(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        ratings = [rate(prompts, texts) for rate in (concept, instruction, fluency)]
        return [steering_quality(*map(float, of_text)) for of_text in zip(*ratings, strict=True)]

    return judge


def _different(texts: Sequence[str], name: str) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise LrtError(f"the {name} texts must be a list of strings, none of them empty")
    different = list(dict.fromkeys(text.strip() for text in texts))
    if len(different) < _LEAST:
        raise LrtError(f"{len(different)} different {name} texts are too few for a classifier: give {_LEAST} or more")
    return different
