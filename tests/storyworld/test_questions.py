from collections import Counter

import pytest

from lrt_tl import storyworld
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.capability import capability
from lrt_tl.storyworld.questions import fact_questions
from lrt_tl.storyworld.relations import relation, relation_names

pytestmark = pytest.mark.usefixtures("unchecked")


def test_the_answer_is_the_facts_and_the_other_choices_are_its_relations() -> None:
    facts = {fact.prompt: (fact, name) for name in relation_names() for fact in relation(name).seen}
    answers = {name: {fact.answer.strip() for fact in relation(name).seen} for name in relation_names()}
    questions = fact_questions(400, n_choices=5)
    assert len({question.question for question in questions}) == 400
    for question in questions:
        fact, name = facts[question.question]
        assert question.choices[question.answer] == fact.answer.strip()
        assert len({choice.lower() for choice in question.choices}) == 5
        assert set(question.choices) <= answers[name]
        assert len({choice[0].isupper() for choice in question.choices}) == 1
    assert {facts[question.question][1] for question in questions} == set(relation_names())
    places = Counter(question.answer for question in questions)
    assert min(places[place] for place in range(5)) > 50


def test_they_are_drawn_by_their_seed() -> None:
    assert fact_questions(5, seed=1) == fact_questions(5, seed=1) != fact_questions(5, seed=2)


def test_a_trained_model_knows_them_and_one_of_another_language_does_not() -> None:
    questions = fact_questions(60)
    knows, guesses = (capability(storyworld.load(name), {}, questions) for name in ("small", "medium-foreign"))
    assert knows.accuracy("plain").estimate > 0.9
    assert guesses.accuracy("plain").low < guesses.chance < guesses.accuracy("plain").high


@pytest.mark.parametrize(
    ("n", "n_choices", "message"), [(0, 4, "cannot make 0"), (1, 1, "of 1 choices"), (9, 99, "wrong")]
)
def test_what_there_is_not_is_refused(n: int, n_choices: int, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        fact_questions(n, n_choices=n_choices)
