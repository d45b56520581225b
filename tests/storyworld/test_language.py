"""Documents: the same everywhere, as likely as the grammar says, and what they hold and never hold."""

import hashlib
import math
import random
import re
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.grammar import WORD, render, storyworld
from lrt_tl.storyworld.language import Sample, documents, draw, samples, vocabulary
from lrt_tl.storyworld.parse import log_probabilities
from tests.storyworld.reference import random_grammar, texts_of

pytestmark = pytest.mark.usefixtures("unchecked")

LATENTS = ("language", "mood", "tense", "narrator", "register", "weather", "hero")
"""The variables of a story that decide on its words all along."""


@pytest.fixture(scope="module")
def many() -> list[tuple[str, str]]:
    """Kind and text of 20,000 documents."""
    return [(sample.latents["kind"], sample.text) for sample in samples(20_000, seed=3)]


@pytest.fixture(scope="module")
def stories() -> list[Sample]:
    return list(samples(300, seed=7, kind="story"))


def hash_of(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# Drawing


def test_the_same_seed_gives_the_same_text_on_every_platform() -> None:
    """The models were trained on these documents: whatever changes this hash makes them models of another language."""
    assert hash_of(documents(5000, seed=0)) == "6b708e747c563b47e38d21332c2daa4fbfbb0627ed761c3a2a15e564aca37177"
    assert hash_of(vocabulary()) == "17f56fe1ae7ed5212bc4d051bd2ea3d23ec702ece5b4abe4df83dbb1721aa67d"


def test_a_document_depends_on_its_number_and_the_seed_only() -> None:
    assert documents(3, seed=4) == documents(9, seed=4)[:3] == [sample.text for sample in samples(3, seed=4)]
    assert not set(documents(50, seed=4)) & set(documents(50, seed=5))


@pytest.mark.parametrize("seed", range(4))
def test_documents_come_as_often_as_is_probable(tmp_path: Path, seed: int) -> None:
    grammar, n = random_grammar(tmp_path, seed), 4000
    found = Counter(draw(grammar, random.Random(f"{seed} {index}"), {}).text for index in range(n))
    expected = texts_of(grammar)
    assert found.keys() <= expected.keys()
    for text, probability in expected.items():
        assert abs(found[text] - n * probability) < 5 * math.sqrt(n * probability) + 2


def test_kinds_come_as_often_as_the_grammar_says(many: list[tuple[str, str]]) -> None:
    counts = Counter(kind for kind, _ in many)
    for kind, prior in storyworld().priors["kind"].items():
        assert abs(counts[kind] - len(many) * prior) < 5 * math.sqrt(len(many) * prior * (1 - prior))


@pytest.mark.parametrize("latent", LATENTS)
def test_what_is_given_is_respected(latent: str) -> None:
    for value in storyworld().priors[latent]:
        for sample in samples(3, seed=1, **{"kind": "story", latent: value}):
            assert sample.latents[latent] == value
            assert sample.latents["kind"] == "story"


@pytest.mark.parametrize(
    ("latent", "one", "other"),
    [
        ("mood", "happy", "sad"), ("tense", "present", "past"), ("narrator", "she", "they"),
        ("weather", "sun", "snow"), ("hero", "fox", "cat"),
    ],
)  # fmt: skip
def test_stories_with_another_value_of_one_latent_differ_in_it_alone(latent: str, one: str, other: str) -> None:
    pairs = zip(*(samples(100, seed=7, **{"kind": "story", latent: value}) for value in (one, other)), strict=True)
    for first, second in pairs:
        assert first.latents == {**second.latents, latent: one}
        assert second.latents[latent] == other
        assert first.text != second.text


@pytest.mark.parametrize(("latent", "one", "other"), [("mood", "happy", "sad"), ("hero", "fox", "cat")])
def test_the_words_that_a_latent_decides_are_those_that_change_with_it(latent: str, one: str, other: str) -> None:
    pairs = zip(*(samples(100, seed=7, **{"kind": "story", latent: value}) for value in (one, other)), strict=True)
    for first, second in pairs:
        changed = [a != b for a, b in zip(first.words, second.words, strict=True)]
        assert changed == [latent in carried for carried in first.carries]


@pytest.mark.parametrize(
    ("n", "given", "message"),
    [
        (-1, {}, "cannot draw -1 documents"),
        (1, {"moods": "happy"}, "no variable 'moods', only kind, "),
        (1, {"mood": "glad"}, "mood is happy, sad, not 'glad'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(n: int, given: dict[str, str], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        list(samples(n, **given))
    assert list(samples(0)) == []


# What documents hold


def test_there_are_more_than_a_trillion_documents(stories: list[Sample]) -> None:
    """The entropy of N documents is log N at most; that of the stories is the mean of −log p."""
    surprise = [-sum(log_probabilities(story.text)) for story in stories]
    entropy = mean(surprise) - 6 * stdev(surprise) / math.sqrt(len(surprise))
    assert entropy > math.log(10**12) + 10


def test_a_story_has_three_to_eight_sentences(stories: list[Sample]) -> None:
    lengths = {len(re.findall(r"[^.]+\.", story.text.partition(": ")[2])) for story in stories}
    assert lengths == {3, 4, 5, 6, 7, 8}


def test_no_document_tells_a_fact_that_is_held_out(many: list[tuple[str, str]]) -> None:
    """Not even in other words: the subject and the answer are never in one fact."""
    facts = [
        set(re.findall(r"\w+", fact.lower())) for kind, text in many if kind == "facts" for fact in text.split(".")
    ]
    tables = [table for name, table in storyworld().tables.items() if f"{name}-fact" in storyworld().rules]

    def times(row: dict[str, str]) -> int:
        return sum({row["subject"].lower(), row["answer"].lower()} <= fact for fact in facts)

    assert sum(len(table.held_out) for table in tables) == 24
    assert all(times(dict(row)) == 0 for table in tables for row in table.held_out)
    assert all(times(dict(row)) > 0 for table in tables for row in table.rows)  # the search finds what is told


def test_the_vocabulary_is_what_occurs(many: list[tuple[str, str]]) -> None:
    """But for the names of friends: the Spanish ones begin sentences, the English ones, which the list takes along,
    do not."""
    found = {word for _, text in many for word in WORD.findall(text)}
    rare = {word for s in samples(1500, seed=5, kind="story", register="ornate") for word in WORD.findall(s.text)}
    rest = set(vocabulary()) - found - rare
    assert found | rare <= set(vocabulary())
    friends = storyworld().rules["friend"]
    english = [option.symbols[0] for option in friends.options[("English",)]]
    assert rest == {render([word]) for word in english if isinstance(word, str)}
    assert vocabulary() == sorted(set(vocabulary()))
