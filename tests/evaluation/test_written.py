"""What is written under many vectors at once, against one text at a time; and judges that fail."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, WrittenText
from lrt_tl.evaluation.effects import dose_response
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.evaluation.written import written_texts
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.batches import tokenize
from lrt_tl.text.documents import hash_of
from tests.checkpoints import D_VOCAB
from tests.steering.reference import steered_logits
from tests.unchecked import without_type_checks

PROMPTS = ("word1", "word2 word3 word4 word5", "word9", "word1 word1")
LAYER, HOOK = 1, "blocks.1.hook_resid_post"
DELTAS = torch.cat([torch.zeros(1, 24), torch.randn(3, 24, generator=torch.Generator().manual_seed(0))])


def how_long(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def write(model: Any, how: WrittenText, deltas: Tensor = DELTAS, batch_size: int = 256) -> list[list[list[str]]]:
    rows = tokenize(model.tokenizer, PROMPTS)
    return written_texts(model, HOOK, PROMPTS, rows, deltas, how, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_the_likeliest_tokens_are_those_of_generate(pair: tuple[Any, Any], batch_size: int) -> None:
    model = pair[1]
    found = write(model, WrittenText(how_long, max_new_tokens=9, temperature=0.0), batch_size=batch_size)
    vectors = [SteeringVector(delta, site_of(model, layer=LAYER)) for delta in DELTAS[1:]]
    steering = {"0": None, **{str(number): vector.add() for number, vector in enumerate(vectors, start=1)}}
    expected = sample_texts(model, PROMPTS, steering, max_new_tokens=9, temperature=0.0)
    for number, row in enumerate(expected):
        assert [samples[number] for samples in found] == [[row[str(delta)]] for delta in range(len(DELTAS))]
    assert len({str(samples) for samples in found}) == len(DELTAS), "the vectors' texts differ"


@pytest.mark.parametrize("batch_size", [3, 256])
def test_texts_are_drawn_with_the_noise_of_their_prompt(
    pair: tuple[Any, Any], folders: tuple[Path, Path], batch_size: int
) -> None:
    """By hand, without a cache: the maximum of Hugging Face's logits over temperature plus Gumbel noise."""
    how = WrittenText(how_long, max_new_tokens=6, temperature=1.5, n_samples=2, seed=7)
    found = write(pair[1], how, batch_size=batch_size)
    tokenizer = pair[1].tokenizer
    for number, prompt in enumerate(PROMPTS):
        for sample in range(2):
            for delta, texts in zip(DELTAS, found, strict=True):
                generator = torch.Generator().manual_seed(hash_of(f"7 {sample} {prompt}"))
                row = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
                for _ in range(6):
                    logits = steered_logits(folders[1], row, LAYER, delta, lambda position, n_prompt: True)[-1]
                    gumbel = -torch.empty(D_VOCAB).exponential_(generator=generator).log()
                    row.append(int((logits / 1.5 + gumbel).argmax()))
                    if row[-1] == tokenizer.eos_token_id:
                        break
                assert prompt + texts[number][sample] == tokenizer.decode(row, skip_special_tokens=True)


def test_the_noise_makes_draws_from_the_softmax() -> None:
    from lrt_tl.evaluation.written import _choice

    logits = torch.tensor([0.0, 1.0, 2.0])
    how = WrittenText(how_long, temperature=2.0)
    drawn = _choice(how, [("word1", sample) for sample in range(4000)])(logits.expand(4000, 3))
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, (logits / 2).softmax(0), rtol=0, atol=0.03)


def test_arms_share_their_random_numbers_and_the_callers_are_left_alone(bridges: tuple[Any, Any]) -> None:
    how = WrittenText(how_long, max_new_tokens=8, temperature=1.0, n_samples=3)
    before = torch.random.get_rng_state()
    same = write(bridges[1], how, torch.zeros(3, 24), batch_size=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same[0] == same[1] == same[2]
    assert len(set(same[0][0])) > 1, "samples differ"
    assert same[0] == write(bridges[1], how)[0], "whatever else is in the batch"
    other_seed = WrittenText(how_long, max_new_tokens=8, temperature=1.0, n_samples=3, seed=1)
    assert same[0] != write(bridges[1], other_seed)[0]


def test_the_end_of_sequence_ends_a_text(bridges: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    how = WrittenText(how_long, max_new_tokens=6, temperature=0.0)
    plain = write(bridges[1], how)[0][0][0]
    second = plain.split()[1]
    monkeypatch.setattr(bridges[1].tokenizer, "eos_token", second)
    assert second in plain.split()
    assert write(bridges[1], how)[0][0][0].split() == plain.split()[: plain.split().index(second)]


def test_the_score_is_the_mean_over_the_texts_of_a_prompt(bridges: tuple[Any, Any]) -> None:
    judged: list[str] = []

    def judge(prompts: Sequence[str], texts: Sequence[str]) -> Sequence[float]:
        judged.extend(texts)
        return [len(prompt) + 10 * len(text) for prompt, text in zip(prompts, texts, strict=True)]

    how = WrittenText(judge, max_new_tokens=5, n_samples=3)
    coefficients = (-1.0, 0.0, 1.0)
    scores = dose_response(bridges[1], HOOK, DELTAS[1:], Behavior("b", PROMPTS, how), coefficients, batch_size=8)
    for arm, direction in enumerate(DELTAS[1:]):
        for place, coefficient in enumerate(coefficients):
            texts = write(bridges[1], how, coefficient * direction[None])[0]
            expected = [len(prompt) + 10 * sum(map(len, of)) / 3 for prompt, of in zip(PROMPTS, texts, strict=True)]
            assert scores[arm, place].tolist() == pytest.approx(expected)
    assert len(judged) < 7 * 4 * 3, "a text that was written twice for a prompt is judged once"


def test_the_model_is_left_as_it_was(bridges: tuple[Any, Any]) -> None:
    def fail(prompts: Sequence[str], texts: Sequence[str]) -> Sequence[float]:
        raise ValueError("no")

    with pytest.raises(LrtError):
        dose_response(bridges[1], HOOK, DELTAS, Behavior("b", PROMPTS, WrittenText(fail, 3)), (-1.0, 0.0, 1.0))
    assert not any(point.fwd_hooks for point in bridges[1].hook_dict.values())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: [float("nan")] * len(texts), "gave NaN or infinity"),
        (lambda texts: [float("inf")] * len(texts), "gave NaN or infinity"),
        (lambda texts: [1.0], r"gave 1 scores for \d+ texts: one number each"),
        (lambda texts: None, "failed: 'NoneType' object is not iterable"),
        (lambda texts: ["good"] * len(texts), "failed: could not convert string to float: 'good'"),
        (lambda texts: texts[99], "failed: list index out of range"),
    ],
)
def test_a_judge_that_fails_is_named_with_its_prompt(bridges: tuple[Any, Any], answer: Any, message: str) -> None:
    behavior = Behavior("mood", PROMPTS[1:], WrittenText(lambda prompts, texts: answer(texts), 3))
    where = "the judge of 'mood', on what was written after 'word2 word3 word4 word5', "
    with without_type_checks(), pytest.raises(LrtError, match=where + message) as raised:
        dose_response(bridges[1], HOOK, DELTAS, behavior, (-1.0, 0.0, 1.0))
    assert (raised.value.__cause__ is not None) == ("failed" in message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "helpful"}, "a judge is a function of prompts and texts, not str"),
        ({"judge": None}, "a judge is a function of prompts and texts, not NoneType"),
        ({"max_new_tokens": 0}, "cannot write 1 texts of 0 tokens"),
        ({"n_samples": 0}, "cannot write 0 texts"),
        ({"temperature": -0.1}, "temperature=-0.1: it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 0.0, "n_samples": 2}, "at temperature 0 all 2 texts are the same"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        WrittenText(**{"judge": how_long, **options})


def test_texts_for_which_there_is_no_room_are_refused(bridges: tuple[Any, Any]) -> None:
    behavior = Behavior("b", PROMPTS, WrittenText(how_long, max_new_tokens=60))
    with pytest.raises(LrtError, match=r"a text of 'b', with 60 new tokens, is longer than large reads \(64\)"):
        dose_response(bridges[1], HOOK, DELTAS, behavior, (-1.0, 0.0, 1.0))
