"""Probabilities and posteriors: against the sum over all derivations, and of storyworld's own documents."""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev

import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld import parse
from lrt_tl.storyworld.grammar import Grammar, render, storyworld
from lrt_tl.storyworld.language import Sample, samples
from lrt_tl.storyworld.parse import Parser, is_grammatical, log_probabilities, split_words
from tests.storyworld.reference import derivations, random_grammar, texts_of, write_grammar
from tests.storyworld.test_language import LATENTS

pytestmark = pytest.mark.usefixtures("unchecked")

KINDS = ("story", "request", "facts", "questions")


def read(words: list[str] | tuple[str, ...], grammar: Grammar | None = None) -> Parser:
    parser = Parser(grammar=grammar)
    assert all(parser.push(word) > 0 for word in words)
    return parser


@pytest.fixture(scope="module")
def stories() -> list[Sample]:
    return list(samples(300, seed=11, kind="story"))


@pytest.fixture(scope="module")
def beginnings(stories: list[Sample]) -> list[Parser]:
    """What was read of each story: two words or more, but not all."""
    chance = random.Random(0)
    texts = [split_words(story.text) or [] for story in stories]
    return [read(words[: chance.randrange(2, len(words))]) for words in texts]


# Grammars small enough to spell out

GRAMMARS = [
    # Two ways to "a", a text that another one begins with, a variable that only some words tell.
    "variables: {mood: {happy: 3, sad: 1}}\n"
    "rules: {document: [<x>, <x> <y>, a], x: [(2) a, b], y: {happy: [a], sad: [a, b]}}",
    # Drawn, forgotten, and drawn again.
    "variables: {mood: {happy: 3, sad: 1}}\n"
    "rules: {document: ['<y>. <!mood><y>, <y>', <!mood><y><!mood>], y: {happy: [I], sad: [I, fox]}}",
]


@pytest.fixture(params=[*GRAMMARS, *range(20)])
def grammar(request: pytest.FixtureRequest, tmp_path: Path) -> Grammar:
    if isinstance(request.param, str):
        return write_grammar(tmp_path, request.param)
    return random_grammar(tmp_path, request.param)


def test_log_probabilities_sum_over_all_derivations(grammar: Grammar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "storyworld", lambda: grammar)
    expected = texts_of(grammar)
    found = {text: math.exp(sum(log_probabilities(text))) for text in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert sum(found.values()) == pytest.approx(1)
    assert not any(is_grammatical(text) for text in ("Owl", ""))


def test_words_and_posteriors_are_those_of_all_derivations_that_go_on_like_that(grammar: Grammar) -> None:
    every = [(derivation, derivation.standing()) for derivation in derivations(grammar)]
    prefixes = {words[:length] for _, words in every for length in range(len(words) + 1)}
    for prefix in random.Random(0).sample(sorted(prefixes), min(len(prefixes), 40)):
        going_on = [(derivation, words) for derivation, words in every if words[: len(prefix)] == prefix]
        total = sum(derivation.probability for derivation, _ in going_on)
        parser = read(prefix, grammar)
        nexts: dict[str, float] = {}
        for derivation, words in going_on:
            for word in words[len(prefix) :][:1] or ["the end"]:
                nexts[word] = nexts.get(word, 0) + derivation.probability / total
        assert {**parser.next_words(), "the end": parser.end()} == pytest.approx({"the end": 0.0, **nexts})
        for variable, prior in grammar.priors.items():
            known = [
                (derivation.probability / total, derivation.known[len(prefix) - 1].get(variable) if prefix else None)
                for derivation, _ in going_on
            ]
            expected = {
                value: sum(p * (share if seen is None else float(seen == value)) for p, seen in known)
                for value, share in prior.items()
            }
            assert parser.posterior(variable) == pytest.approx(expected)


def test_a_copy_reads_on_by_itself(tmp_path: Path) -> None:
    parser = read(["A"], write_grammar(tmp_path, GRAMMARS[0]))
    other, before = parser.copy(), parser.next_words()
    assert other.push("b") == before["b"]
    assert parser.next_words() == before != other.next_words()


# Storyworld


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_parses(kind: str) -> None:
    for sample in samples(300, seed=2, kind=kind):
        losses = log_probabilities(sample.text)
        assert len(losses) == len(sample.words) + 1
        assert all(loss < 1e-9 for loss in losses)


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_change_places_are_no_document(kind: str) -> None:
    chance = random.Random(0)
    for sample in samples(150, seed=3, kind=kind):
        words = list(sample.words)
        pairs = [i for i in range(len(words) - 1) if words[i] != words[i + 1] and words[i + 1].isalpha()]
        place = chance.choice(pairs)
        words[place : place + 2] = words[place + 1], words[place]
        assert not is_grammatical(render(words))


def words_of(rule: str, latents: Mapping[str, str]) -> list[str]:
    """All that a rule gives at these values, if it gives single words."""
    found = storyworld().rules[rule]
    symbols = [option.symbols[0] for option in found.options[tuple(latents[variable] for variable in found.variables)]]
    return [word for s in symbols for word in ([s] if isinstance(s, str) else words_of(s.rule, latents))]  # type: ignore[union-attr]


def another(variable: str, rule: str) -> Callable[[Sample], str | None]:
    """The story with a rule's first word as it would be at another value; None where that is the same, or nowhere."""

    def corrupt(sample: Sample) -> str | None:
        changed = {**sample.latents, variable: OTHERS[sample.latents[variable]]}
        change = dict(zip(words_of(rule, sample.latents), words_of(rule, changed), strict=True))
        place = next((place for place, word in enumerate(sample.words) if word in change), None)
        if place is None or change[sample.words[place]] == sample.words[place]:
            return None
        return render([*sample.words[:place], change[sample.words[place]], *sample.words[place + 1 :]])

    return corrupt


OTHERS = {
    "plain": "ornate", "ornate": "plain", "happy": "sad", "sad": "happy", "present": "past", "past": "present",
    "I": "she", "she": "they", "he": "I", "they": "he",
}  # fmt: skip


@pytest.mark.parametrize(
    ("corrupt", "at_least"),
    [
        (another("register", "mood-word"), 200),
        (another("mood", "mood-word"), 200),
        (another("tense", "want"), 300),
        (another("narrator", "want"), 100),
        (lambda sample: sample.text[0].lower() + sample.text[1:], 300),
        (lambda sample: sample.text.replace(". ", ".", 1), 300),
        (lambda sample: sample.text.replace(" ", "  ", 1), 300),
        (lambda sample: sample.text + " ", 300),
        (lambda sample: sample.text[:-1], 300),
        (lambda sample: sample.text.lower(), 300),
    ],
    ids=["register", "mood", "tense", "person", "capital", "space", "spaces", "end", "stop", "lower case"],
)
def test_a_story_with_one_thing_wrong_is_no_document(
    stories: list[Sample], corrupt: Callable[[Sample], str | None], at_least: int
) -> None:
    texts = [text for story in stories if (text := corrupt(story)) is not None]
    assert len(texts) >= at_least
    assert not any(map(is_grammatical, texts))


def test_a_whole_story_tells_all_its_latents(stories: list[Sample]) -> None:
    parsers = [read(split_words(story.text) or []) for story in stories]
    for latent in LATENTS:
        pairs = zip(parsers, stories, strict=True)
        assert mean(parser.posterior(latent)[story.latents[latent]] > 0.99 for parser, story in pairs) >= 0.99


@pytest.mark.parametrize(
    ("beginning", "untold"),
    [
        ("", ["kind", *LATENTS]),
        ("Mira:", LATENTS),
        ("Mira: I", ["mood", "tense", "register", "weather", "hero"]),
        ("Mira: Once, I was a kind fox in the valley.", ["mood", "weather"]),
        ("User: Please", ["mood", "harm"]),
        ("User: I have a secret task for you.\nAssistant:", ["harm", *LATENTS]),
        ("Question: A wolf waits at the bridge.", ["bravery", "generosity", "hero"]),
    ],
)
def test_what_a_text_does_not_tell_stays_at_its_prior(beginning: str, untold: list[str]) -> None:
    parser = read(split_words(beginning) or [])
    for variable in untold:
        assert parser.posterior(variable) == storyworld().priors[variable]


@pytest.mark.parametrize("latent", LATENTS)
def test_the_beginning_of_a_story_is_judged_right_as_often_as_the_posterior_says(
    stories: list[Sample], beginnings: list[Parser], latent: str
) -> None:
    """If a value's probability is p, it is the true one with probability p: p of the true one is Σp² on average."""
    excess = []
    for story, parser in zip(stories, beginnings, strict=True):
        posterior = parser.posterior(latent)
        excess.append(posterior[story.latents[latent]] - sum(p * p for p in posterior.values()))
    assert abs(mean(excess)) <= 4 * stdev(excess) / math.sqrt(len(excess)) + 1e-12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mira:  Once", "not spaced like a document of storyworld: 'Mira:  Once'"),
        ("Mira: Once, I were", "not a document of storyworld from word 6, 'were', on"),
        ("Mira: Once", "does not end after 'Once'"),
        ("The owl sings.", "from word 3, 'sings'"),
    ],
)
def test_a_refusal_says_how_far_a_text_is_a_document(text: str, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        log_probabilities(text)


def test_after_an_impossible_word_nothing_is_known() -> None:
    parser = read(["Mira", ":"])
    assert parser.push("Mira") == 0
    assert parser.push(":") == parser.end() == 0
    with pytest.raises(LrtError, match="says nothing about its variables"):
        parser.posterior("mood")
