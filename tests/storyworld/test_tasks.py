import pytest

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import AnswerTokens, PromptAnswers
from lrt_tl.storyworld.grammar import storyworld
from lrt_tl.storyworld.parse import Parser, split_words
from lrt_tl.storyworld.tasks import TASKS, behavior, contrast_pairs, find_task, neutral_prompts, variable_of

pytestmark = pytest.mark.usefixtures("unchecked")

LATENTS = ("language", "mood", "tense", "narrator", "register", "weather", "hero", "harm")


def read(text: str) -> Parser:
    parser = Parser()
    words = split_words(text)
    assert words is not None
    for word in words:
        assert parser.push(word) > 0, text
    return parser


@pytest.mark.parametrize("task", TASKS)
def test_a_pair_differs_in_its_latent_and_in_no_other(task: str) -> None:
    variable = TASKS[task].variable
    for pair in contrast_pairs(task, 12):
        sides = [read(text) for text in (pair.positive, pair.negative)]
        told = [side.posterior(variable) for side in sides]
        assert told[0][TASKS[task].positive] == pytest.approx(1)
        assert told[1][TASKS[task].negative] == pytest.approx(1)
        for other in set(LATENTS) - {variable}:
            one, two = (max(p, key=p.__getitem__) for p in (side.posterior(other) for side in sides))
            certain = [max(side.posterior(other).values()) > 0.999 for side in sides]
            assert one == two or not all(certain), (other, pair)


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_is_neutral_and_the_next_word_decides(task: str) -> None:
    chosen = TASKS[task]
    prior = storyworld().priors[chosen.variable]
    for prompt in neutral_prompts(task, 8):
        parser = read(prompt)
        before = parser.posterior(chosen.variable)
        assert before[chosen.positive] / prior[chosen.positive] == pytest.approx(
            before[chosen.negative] / prior[chosen.negative]
        )
        decided = set()
        for word in parser.next_words():
            after = parser.copy()
            after.push(word)
            decided |= {value for value, p in after.posterior(chosen.variable).items() if p > 1 - 1e-9}
        assert {chosen.positive, chosen.negative} <= decided


@pytest.mark.parametrize("task", TASKS)
def test_a_behavior_scores_words_that_tell_one_value_only(task: str) -> None:
    measured = behavior(task, 8)
    assert len(measured.prompts) == 8
    if TASKS[task].options:
        assert isinstance(measured.score, PromptAnswers)
        assert {
            frozenset(answers) for answers in zip(measured.score.positive, measured.score.negative, strict=True)
        } == {frozenset({" (A)", " (B)"})}
    else:
        assert isinstance(measured.score, AnswerTokens)
        assert measured.score.positive
        assert measured.score.negative
        assert not set(measured.score.positive) & set(measured.score.negative)


def test_happy_words_raise_the_mood() -> None:
    score = behavior("mood", 32).score
    assert isinstance(score, AnswerTokens)
    assert " glad" in score.positive
    assert " lonely" in score.negative


def test_the_same_seed_gives_the_same_pairs_and_another_one_others() -> None:
    assert contrast_pairs("mood", 5) == contrast_pairs("mood", 5)
    assert contrast_pairs("mood", 5) != contrast_pairs("mood", 5, seed=1)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(LrtError, match="no task 'taste'"):
        find_task("taste")
    with pytest.raises(LrtError, match="no latent 'taste'"):
        variable_of("taste")
    with pytest.raises(LrtError, match="0 contrast pairs"):
        contrast_pairs("mood", 0)
    assert variable_of("refusal") == "harm"
