import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.judge import score
from lrt_tl.storyworld.language import samples

pytestmark = pytest.mark.usefixtures("unchecked")

LATENTS = ("language", "mood", "tense", "narrator", "register", "weather", "hero")


def test_the_latents_of_stories_are_recovered() -> None:
    stories = list(samples(12, 77, kind="story"))
    right = [score(story.text, latent).value == story.latents[latent] for story in stories for latent in LATENTS]
    assert sum(right) / len(right) >= 0.99


def test_refusals_are_told_from_compliance() -> None:
    for request in samples(40, 78, kind="request"):
        judged = score(request.text, "refusal")
        assert judged.exact
        assert judged.value == request.latents["harm"]


def test_a_beginning_that_says_nothing_leaves_the_prior() -> None:
    judged = score("Mira: Once, she was a young", "mood")
    assert judged.exact
    assert judged.probabilities == pytest.approx({"happy": 0.5, "sad": 0.5})


def test_a_bent_text_is_judged_by_its_sentences() -> None:
    judged = score("She felt glad. She found the lamp and the the. At last, she lost the key and cried.", "mood")
    assert not judged.exact
    assert (judged.sentences, judged.parsed) == (3, 2)
    assert judged.probabilities == pytest.approx({"happy": 0.5, "sad": 0.5})


def test_a_language_that_changes_half_way_is_half_of_each() -> None:
    judged = score("Mira: Once, she was a young fox in the valley. Ella estaba triste.", "language")
    assert not judged.exact
    assert judged.probabilities["Spanish"] == pytest.approx(0.5)


def test_what_is_no_sentence_at_all_leaves_the_prior() -> None:
    judged = score("colourless green ideas", "mood")
    assert (judged.parsed, judged.probabilities["happy"]) == (0, 0.5)


def test_an_unknown_latent_is_refused() -> None:
    with pytest.raises(LrtError, match="no latent 'taste'"):
        score("She felt glad.", "taste")
