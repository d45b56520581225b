"""What storyworld's models write, judged by the grammar."""

import math

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import WrittenText
from lrt_tl.evaluation.effects import dose_response
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.storyworld import contrast_pairs, load, neutral_prompts, written_behavior
from lrt_tl.storyworld.judge import score
from lrt_tl.storyworld.written import MOST_NATS, posterior_log_odds

PROMPT = "Mira: Once, she was a young fox in the valley."


def test_a_text_that_decides_is_worth_the_most_and_one_that_says_nothing_is_worth_nothing() -> None:
    texts = [" It rained. She felt glad.", " It rained. She felt sad.", " It rained.", " the the"]
    assert posterior_log_odds("mood", [PROMPT] * 4, texts) == pytest.approx([MOST_NATS, -MOST_NATS, 0.0, 0.0], abs=1e-9)


def test_a_text_is_judged_with_its_prompt() -> None:
    bent = " She felt glad. She felt glad. the. She felt sad."
    p = score(PROMPT + bent, "mood").probabilities
    assert 0 < p["sad"] < p["happy"]
    expected = math.log(p["happy"] / p["sad"])
    assert posterior_log_odds("mood", [PROMPT], [bent]) == pytest.approx([expected])


def test_options_are_those_of_written_text() -> None:
    behavior = written_behavior("tense", 5, max_new_tokens=7, temperature=0.5, n_samples=2, seed=3)
    assert behavior.prompts == tuple(neutral_prompts("tense", 5, seed=3))
    assert isinstance(behavior.score, WrittenText)
    how = behavior.score
    assert (how.max_new_tokens, how.temperature, how.n_samples, how.seed) == (7, 0.5, 2, 3)
    with pytest.raises(LrtError, match="no task 'taste'"):
        written_behavior("taste")


def test_a_models_own_vector_changes_what_it_writes() -> None:
    model = load("small")
    vector = mean_difference(model, contrast_pairs("register", 48), layer=2, position="last")
    behavior = written_behavior("register", 8, max_new_tokens=6)
    scores, in_small_batches = (
        dose_response(
            model, vector.site.hook_name, vector.direction[None], behavior, (-1.0, 0.0, 1.0), batch_size=batch_size
        )[0]
        for batch_size in (256, 3)
    )
    assert float(scores.abs().max()) <= MOST_NATS
    assert float((scores[2] - scores[0]).mean()) > 5.0
    assert torch.equal(scores, in_small_batches)
