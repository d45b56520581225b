"""Facts as questions with choices: a capability that steering may cost."""

import random

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.capability import ChoiceQuestion
from lrt_tl.storyworld.relations import Fact, relation, relation_names


def fact_questions(n: int = 200, *, n_choices: int = 4, seed: int = 0) -> list[ChoiceQuestion]:
    """Questions about facts that documents tell, of all relations; wrong choices are answers to other subjects'.

    The choices of a question are spelt alike: all with a capital letter, or none.

    Args:
        n: at most so many; there are about 1,300.
        n_choices: of each, the right one among them.

    Raises:
        LrtError: n is not positive, or there are too few choices, or more than a relation has answers.

    Examples:
        >>> from lrt_tl import storyworld
        >>> questions = storyworld.fact_questions(20)
        >>> questions[0]
        ChoiceQuestion(question='The turkey makes the sound', choices=('buzz', 'neigh', 'roar', 'gobble'), answer=3)
    """
    if n < 1 or n_choices < 2:
        raise LrtError(f"cannot make {n} questions of {n_choices} choices: at least 1 question, of 2 choices")
    generator = random.Random(f"fact questions {seed}")
    facts = [(fact, name) for name in relation_names() for fact in relation(name).seen]
    chosen = generator.sample(facts, min(n, len(facts)))
    answers = {name: sorted({fact.answer.strip() for fact in relation(name).seen}) for name in relation_names()}
    return [_question(fact, answers[name], n_choices, generator) for fact, name in chosen]


def _question(fact: Fact, answers: list[str], n_choices: int, generator: random.Random) -> ChoiceQuestion:
    right = fact.answer.strip()
    others = [
        answer for answer in answers if answer.lower() != right.lower() and answer[0].isupper() == right[0].isupper()
    ]
    if len(others) < n_choices - 1:
        raise LrtError(f"{fact.prompt!r} has {len(others)} wrong answers, fewer than {n_choices - 1}")
    choices = [right, *generator.sample(others, n_choices - 1)]
    generator.shuffle(choices)
    return ChoiceQuestion(fact.prompt, tuple(choices), choices.index(right))
