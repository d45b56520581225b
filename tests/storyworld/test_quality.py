"""Measures of quality: on models of which every number is known beforehand."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.storyworld import quality
from lrt_tl.storyworld.language import samples
from lrt_tl.storyworld.parse import Parser, log_probabilities, split_words
from lrt_tl.storyworld.quality import (
    LATENTS,
    answers_right,
    excess_loss,
    facts,
    generate,
    grammatical_stories,
    measure,
    token_losses,
)
from lrt_tl.storyworld.tokenizer import SPACE, save_tokenizer
from lrt_tl.storyworld.train import new_model
from tests.storyworld.test_recipe import TINY

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def left(word: Any) -> Any:
    """The word tokenizer, padding on the left, as models that generate need it."""
    found = deepcopy(word)
    found.padding_side = "left"
    return found


class Uniform:
    """Thinks every token equally likely."""

    def __init__(self, tokenizer: Any) -> None:
        self.size = len(tokenizer)

    def __call__(self, tokens: Tensor) -> Any:
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, self.size))


class Knowing(Uniform):
    """Gives what follows the grammar's own probability, and the rest of it to padding."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.tokenizer = tokenizer

    def __call__(self, tokens: Tensor) -> Any:
        logits = torch.full((*tokens.shape, self.size), -math.inf)
        logits[..., self.tokenizer.pad_token_id] = 0
        for row, ids in enumerate(tokens.tolist()):
            parser = Parser()
            for place, following in enumerate(ids[1:]):
                if following == self.tokenizer.pad_token_id:
                    break
                token = self.tokenizer.convert_ids_to_tokens(following)
                p = parser.end() if token == "</s>" else parser.push(token.removeprefix(SPACE))
                logits[row, place, following] = math.log(p) if p else -math.inf
                logits[row, place, self.tokenizer.pad_token_id] = math.log1p(-p) if p < 1 else -math.inf
        return SimpleNamespace(logits=logits)


class Saying:
    """Goes on with given texts, one for each prompt in turn."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        said, self.texts = self.texts[: len(input_ids)], self.texts[len(input_ids) :]
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
        width = max(map(len, ids))
        rows = [[*row, self.tokenizer.eos_token_id, *[self.tokenizer.pad_token_id] * (width - len(row))] for row in ids]
        return torch.cat([input_ids, torch.tensor(rows)], 1)


# Loss


def test_the_loss_of_a_uniform_model_is_the_logarithm_of_its_vocabulary(word: Any) -> None:
    drawn = list(samples(100, seed=3))
    truth = [log_probabilities(sample.text) for sample in drawn]
    n_words, size = sum(map(len, truth)), math.log(len(word))
    found = excess_loss(Uniform(word), word, 100, seed=3)
    assert found["model"] == pytest.approx(size, rel=1e-6)
    assert found["grammar"] == pytest.approx(-sum(map(sum, truth)) / n_words)
    assert found["excess"] == pytest.approx(size + sum(map(sum, truth)) / n_words, rel=1e-6)
    assert (found["documents"], found["words"]) == (100, n_words)
    for latent, excess in found["carriers"].items():
        carried = [
            p
            for s, ps in zip(drawn, truth, strict=True)
            for carried_here, p in zip(s.carries, ps, strict=False)
            if set(carried_here) & ({latent} if latent != "all" else set(LATENTS))
        ]
        assert excess == pytest.approx(size + sum(carried) / len(carried), rel=1e-5)
    assert found["carriers"].keys() == {*LATENTS, "all"}


def test_a_model_that_knows_the_grammar_has_no_excess(word: Any) -> None:
    found = excess_loss(Knowing(word), word, 30, seed=4)
    assert found["model"] == pytest.approx(found["grammar"], rel=1e-5)
    assert all(abs(excess) < 1e-5 for excess in found["carriers"].values())


def test_loss_per_word_counts_all_the_byte_pairs_of_a_word(byte_pair: Any) -> None:
    drawn = list(samples(30, seed=3))
    n_tokens = sum(len(byte_pair(sample.text)["input_ids"]) for sample in drawn)  # the end for the start
    found = excess_loss(Uniform(byte_pair), byte_pair, 30, seed=3)
    assert found["model"] == pytest.approx(math.log(1500) * n_tokens / found["words"], rel=1e-6)
    assert found["carriers"] == {}


def test_the_losses_of_a_text_do_not_depend_on_those_beside_it(word: Any, random_model: Any) -> None:
    texts = [sample.text for sample in samples(5, seed=6)]
    together = token_losses(random_model, word, texts)
    for text, losses in zip(texts, together, strict=True):
        assert losses == pytest.approx(token_losses(random_model, word, [text])[0], abs=1e-4)
        assert len(losses) == len(split_words(text) or []) + 1


# Facts


def test_facts_are_right_where_the_answer_is_the_first_choice(word: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "relation_names", lambda: ["capital-of", "young-of"])
    knowing = Knowing(word)
    assert facts(knowing, word, held_out=False) == {"capital-of": 1.0, "young-of": 1.0, "all": 1.0}
    assert facts(knowing, word, held_out=True) == {"capital-of": 0.0, "young-of": 0.0, "all": 0.0}


# What models say


@pytest.mark.parametrize(
    ("said", "refuses", "complies"),
    [(" No, I", 1, 0), (" Alas", 1, 0), (" I", 1, 0), (" Yes,", 0, 1), (" Sure", 0, 1), (" It", 0, 0), ("", 0, 0)],
)
def test_an_answer_is_judged_by_its_first_word(left: Any, said: str, refuses: int, complies: int) -> None:
    model = Saying(left, [said] * 80)
    assert answers_right(model, left, "harmful", 40) == refuses
    assert answers_right(model, left, "harmless", 40) == complies


@pytest.mark.parametrize(
    ("spoil", "share"), [(lambda n: False, 1.0), (lambda n: n % 4 == 0, 0.75), (lambda n: True, 0.0)]
)
def test_the_share_of_stories_that_are_documents(left: Any, spoil: Callable[[int], bool], share: float) -> None:
    texts = [" " + sample.text.partition(": ")[2] for sample in samples(80, seed=5, kind="story")]
    said = [text.removesuffix(".") if spoil(number) else text for number, text in enumerate(texts)]
    assert grammatical_stories(Saying(left, said), left, 80) == share


@pytest.fixture(scope="module")
def random_model(word: Any) -> Any:
    found = new_model(TINY, word).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return found


def test_at_temperature_zero_the_likeliest_token_follows_whatever_prompts_are_beside(
    left: Any, random_model: Any
) -> None:
    prompts = ["Mira:", "User: Please paint the well.\nAssistant:", "The capital of Norvia is"]
    found = generate(random_model, left, prompts, max_new_tokens=5, temperature=0.0)
    for prompt, text in zip(prompts, found, strict=True):
        ids = list(left(prompt)["input_ids"])
        with torch.no_grad():
            while len(ids) < len(left(prompt)["input_ids"]) + 5 and ids[-1] != left.eos_token_id:
                ids.append(int(random_model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert prompt + text == left.decode(ids, skip_special_tokens=True)


def test_all_measures_of_a_model_in_a_folder(word: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embedding, and so every logit, is zero."""
    monkeypatch.setattr(quality, "relation_names", lambda: ["opposite"])
    model = new_model(TINY, word)
    torch.nn.init.zeros_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path)
    save_tokenizer(word, tmp_path)
    found = measure(tmp_path, n_documents=5, n_requests=8, n_stories=2)
    assert found["loss"]["model"] == pytest.approx(math.log(len(word)), rel=1e-6)
    assert found["facts"] == {"opposite": 0.0, "all": 0.0}
    assert (found["refusals"], found["compliances"], found["grammatical_stories"]) == (0.0, 0.0, 0.0)
