"""A classifier of planted words, and the harmonic mean of three ratings."""

import numpy as np
import pytest

from lrt_tl import storyworld
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.judges import harmonic_judge, steering_quality, text_classifier

NEUTRAL = [f"word{i}" for i in range(40)]


def texts(n: int, planted: str, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join([*generator.choice(NEUTRAL, size=8), planted]) for _ in range(n)]


def test_a_planted_word_is_found_and_gives_the_score() -> None:
    judge = text_classifier(texts(60, "glad", 0), texts(40, "sad", 1))
    assert judge.n == 100
    assert judge.auc > 0.98
    scores = judge(["", "", ""], ["word1 glad word2", "word1 word2", "word1 sad word2"])
    assert scores[0] > scores[1] > scores[2]
    assert scores[0] > 0 > scores[2]
    assert repr(judge) == f"TextClassifier(held-out AUC {judge.auc:.3f} on 100 texts)"


def test_pairs_of_words_count() -> None:
    positive = [text.replace("§", "not good") for text in texts(40, "§ and bad is", 0)]
    negative = [text.replace("§", "good") for text in texts(40, "§ and not bad is", 0)]
    assert text_classifier(positive, negative).auc > 0.9, "the same words on both sides"


def test_pairs_are_held_out_together() -> None:
    """Apart, each would be judged by its twin, of the other label."""
    pairs = storyworld.contrast_pairs("mood", 40)
    judge = text_classifier([pair.positive for pair in pairs], [pair.negative for pair in pairs])
    assert judge.auc > 0.9


def test_the_scores_are_log_odds_of_the_classifier() -> None:
    judge = text_classifier(texts(30, "glad", 0), texts(20, "sad", 1))
    probability = judge._pipeline.predict_proba(["word1 glad"])[0, 1]
    assert judge([""], ["word1 glad"])[0] == pytest.approx(np.log(probability / (1 - probability)))


def test_the_auc_is_of_texts_that_were_held_out() -> None:
    """Texts that differ in nothing but noise can be learnt by heart, and no more."""
    with pytest.warns(UserWarning, match="no better than chance.*cannot judge"):
        judge = text_classifier(texts(40, "it", 0), texts(40, "it", 1))
    assert 0.2 < judge.auc < judge.chance < 0.62
    assert "no better than chance" in repr(judge)


def test_chance_is_the_95th_percentile_of_a_meaningless_auc() -> None:
    generator = np.random.default_rng(0)
    by_chance = (generator.normal(size=(4000, 12, 1)) > generator.normal(size=(4000, 1, 20))).mean((1, 2))
    judge = text_classifier(texts(12, "glad", 0), texts(20, "sad", 1))
    assert judge.chance == pytest.approx(np.quantile(by_chance, 0.95), abs=0.015)


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (texts(9, "glad", 0), texts(20, "sad", 1), "9 different positive texts are too few"),
        (texts(20, "glad", 0), ["sad"] * 20, "1 different negative texts are too few"),
        (texts(20, "glad", 0), [*texts(20, "sad", 1), "both", " "], "the negative texts must be a list of strings"),
        ([*texts(20, "glad", 0), "both"], [*texts(20, "sad", 1), " both"], "1 texts are both .* such as 'both'"),
        ("glad", texts(20, "sad", 1), "the positive texts must be a list of strings"),
    ],
)
def test_texts_that_teach_nothing_are_refused(positive: list[str], negative: list[str], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        text_classifier(positive, negative)


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [((2.0, 2.0, 2.0), 2.0), ((1.0, 2.0, 2.0), 1.5), ((1.0, 0.5, 0.5), 0.6), ((0.0, 2.0, 2.0), 0.0)],
)
def test_the_quality_is_the_harmonic_mean(ratings: tuple[float, float, float], expected: float) -> None:
    assert steering_quality(*ratings) == pytest.approx(expected)


@pytest.mark.parametrize("ratings", [(-1.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, float("nan"))])
def test_ratings_off_the_scale_are_refused(ratings: tuple[float, float, float]) -> None:
    with pytest.raises(LrtError, match="must be between 0 and 2"):
        steering_quality(*ratings)


def test_three_judges_are_one() -> None:
    judge = harmonic_judge(
        lambda prompts, texts: [1.0, 2.0], lambda prompts, texts: [2, 2], lambda prompts, texts: [2.0, 0.0]
    )
    assert list(judge(["a", "b"], ["c", "d"])) == pytest.approx([1.5, 0.0])
