import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.language import samples
from lrt_tl.storyworld.parse import Parser, split_words
from lrt_tl.storyworld.relations import relation, relation_names

pytestmark = pytest.mark.usefixtures("unchecked")


def test_there_are_eight_relations_of_thirty_subjects_and_some_held_out() -> None:
    assert len(relation_names()) >= 8
    for name in relation_names():
        found = relation(name)
        assert len({fact.subject for fact in found.seen}) >= 30
        assert len({fact.subject for fact in found.held_out}) >= 3
        assert not {fact.subject for fact in found.seen} & {fact.subject for fact in found.held_out}


@pytest.mark.parametrize("name", relation_names())
def test_a_prompt_and_its_answer_begin_a_document_if_the_fact_was_told(name: str) -> None:
    for facts, told in ((relation(name).seen, True), (relation(name).held_out, False)):
        for fact in facts:
            parser = Parser()
            probabilities = [parser.push(word) for word in split_words(fact.prompt + fact.answer) or []]
            assert (min(probabilities) > 0) == told, fact


def test_no_document_tells_a_held_out_fact() -> None:
    held_out = [(fact.prompt + fact.answer + ".") for name in relation_names() for fact in relation(name).held_out]
    text = "\n".join(sample.text for sample in samples(4000, 5, kind="facts"))
    assert "The capital of" in text
    assert not [fact for fact in held_out if fact in text]


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(LrtError, match="no relation 'taste-of'"):
        relation("taste-of")
