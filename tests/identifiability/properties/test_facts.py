"""Facts of a model: where they are read, and the mean Jacobian against finite differences."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.comparison import Contrast, compare_models, properties_of
from lrt_tl.identifiability.properties.facts import (
    facts_of,
    subject_end,
    subject_states,
    texts_of_facts,
    token_indices,
    with_texts,
)
from lrt_tl.identifiability.properties.jacobian import faithfulness, mean_jacobian
from lrt_tl.identifiability.properties.relations import linearity
from lrt_tl.identifiability.reading import read_predictor
from lrt_tl.models.attach import attached
from lrt_tl.steering.contrast import ContrastPair
from lrt_tl.text.batches import tokenize


@dataclass(frozen=True)
class Word:
    subject: str
    prompt: str
    answer: str


FACTS = [Word(f"word{i}", f"word1 word{i} word2", f" word{i + 20}") for i in range(5, 17)]


def test_a_fact_is_read_where_its_subject_and_its_prompt_end(bridges: tuple[Any, Any], texts: list[str]) -> None:
    model = bridges[0]
    plain = read_predictor(model, texts[:20], n_contexts=60)
    read = texts_of_facts(FACTS)
    assert read[:2] == ["word1 word5", "word1 word5 word2"]
    whole = with_texts(plain, model, read)
    assert torch.equal(whole.f[:60], plain.f)
    assert len(whole.documents.unique()) == len(plain.documents.unique()) + len(read)
    tokens = token_indices(plain, model.tokenizer, [fact.answer for fact in FACTS])
    found = facts_of(FACTS, read, 60, tokens)
    for number in (0, 7):
        for text, place in (("word1 word{}", found.after_subject), ("word1 word{} word2", found.after_prompt)):
            ids = tokenize(model.tokenizer, [text.format(5 + number)])
            with torch.no_grad():
                logits = model(torch.tensor(ids))[0, -1]
            place_of = int(place[number])
            torch.testing.assert_close(
                whole.logits(slice(place_of, place_of + 1))[0].float(), logits, atol=1e-3, rtol=1e-3
            )
    assert [whole.tokens[token] for token in found.replies.tolist()] == [fact.answer.strip() for fact in FACTS]


def test_answers_that_are_no_single_token_are_left_out(bridges: tuple[Any, Any], texts: list[str]) -> None:
    model = bridges[0]
    plain = read_predictor(model, texts[:20], n_contexts=30)
    words = [" word4", " word4 word5", " elsewhere"]
    assert [token is None for token in token_indices(plain, model.tokenizer, words)] == [False, True, True]
    facts = [*FACTS, Word("word3", "word3 word2", " elsewhere")]
    tokens = token_indices(plain, model.tokenizer, [fact.answer for fact in facts])
    assert len(facts_of(facts, texts_of_facts(facts), 30, tokens).subjects) == len(FACTS)


def test_the_subject_is_the_last_of_that_name() -> None:
    assert subject_end(Word("a", "a or a is", " b")) == 6
    with pytest.raises(LrtError, match="does not name its subject 'c'"):
        subject_end(Word("c", "a or a is", " b"))


def test_the_mean_jacobian_against_finite_differences(bridges: tuple[Any, Any]) -> None:
    model = bridges[1]
    found = mean_jacobian(model, FACTS[:3], layer=1)
    direction, step = torch.randn(24, generator=torch.Generator().manual_seed(0)), 1e-2

    def ends(scale: float) -> torch.Tensor:
        kept: dict[str, torch.Tensor] = {}

        def nudge(activation: torch.Tensor, hook: object) -> torch.Tensor:
            moved = activation.clone()
            moved[:, 2] += scale * direction
            return moved

        def keep(activation: torch.Tensor, hook: object) -> None:
            kept["f"] = activation[:, -1]

        ids = tokenize(model.tokenizer, [fact.prompt for fact in FACTS[:3]])
        with torch.no_grad(), attached(model, [("blocks.1.hook_resid_post", nudge), ("unembed.hook_in", keep)]):
            model(torch.tensor(ids))
        return kept["f"]

    slope = ((ends(step) - ends(-step)) / (2 * step)).mean(0)
    torch.testing.assert_close(found.weight @ direction, slope, atol=2e-2, rtol=2e-2)


def test_at_the_last_point_before_the_norm_one_fact_is_told_as_the_model_tells_it(bridges: tuple[Any, Any]) -> None:
    """Of one fact f = W s + b exactly, by the choice of b."""
    model = bridges[1]
    relation = mean_jacobian(model, FACTS[:1], layer=2)
    assert faithfulness(model, relation, FACTS[:1], n_null=1).estimate == 1.0
    assert repr(relation) == "JacobianRelation(blocks.2.hook_resid_post, mean of 1 facts)"


def test_relations_can_be_read_from_any_layer(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    found = subject_states(model, FACTS, layer=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor(tokenize(model.tokenizer, [FACTS[3].prompt])))
    torch.testing.assert_close(found[3], cache["blocks.1.hook_resid_post"][0, 2], atol=1e-5, rtol=1e-5)
    read = subject_states(model, FACTS, hook_name="blocks.3.hook_resid_post")
    subjects = torch.arange(len(FACTS))
    linear = (read @ torch.randn(24, 3, generator=torch.Generator().manual_seed(0))).double()
    assert linearity(read, linear, subjects).estimate > linearity(found.roll(1, 0), linear, subjects).estimate


def test_facts_that_no_jacobian_can_be_taken_of(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="no facts"):
        mean_jacobian(bridges[0], [], layer=1)
    with pytest.raises(LrtError, match="no token ends where the subject 'wor' does"):
        mean_jacobian(bridges[0], [Word("wor", "word1 word2", " word3")], layer=1)


def test_a_model_shares_all_with_itself(bridges: tuple[Any, Any], texts: list[str]) -> None:
    model = bridges[0]
    pairs = {"next": [(f" word{i}", f" word{i + 1}") for i in range(4, 12)]}
    found = compare_models(
        model, model, texts, epsilon=1e-3, relations={"next": FACTS}, pairs=pairs, n_contexts=900, least_r2=0.8
    )
    assert found.premise
    kinds = ("relational linearity", "linear subspaces", "parallelism", "parallelism beyond categories")
    assert list(found.properties) == [f"next: {kind}" for kind in kinds]
    for each in found.properties.values():
        assert each.answer in ("shared", "neither")
        assert each.scores[0].effective == each.scores[1].effective
    assert (len(found.distances.kl), found.missing) == (900, {})  # the facts' prompts are no documents
    plain = read_predictor(model, texts[:20], n_contexts=60)
    assert "next: linear probing" in properties_of(plain, model.tokenizer, {"next": FACTS}, {}, probing=True)
    lost = [Word(f"word{i}", f"word1 word{i} word2", " elsewhere") for i in range(5, 17)]
    unknown = Contrast([ContrastPair("word1", "word2")], [" elsewhere"], ["word3"])
    found = compare_models(
        model, model, texts, relations={"lost": lost}, contrasts={"side": unknown}, n_contexts=900, least_r2=0.8
    )
    assert found.properties == {}
    assert "0 of 12 answers (' elsewhere', …) are single tokens" in found.missing["lost: relational linearity"]
    assert "0 pairs of single tokens" in found.missing["lost: parallelism"]
    assert "0 of 1 positive answers" in found.missing["side: steering"]
    assert found.steering_mismatch["side"] == pytest.approx((0, 0), abs=1e-4)
    assert "lost: parallelism was not measured" in found._repr_html_()
    with pytest.raises(LrtError, match="contrast 'side' has no pair"):
        compare_models(model, model, texts, contrasts={"side": Contrast([], ["word1"], ["word2"])})
    with pytest.raises(LrtError, match="'elsewhere' is no single token that both models have"):
        compare_models(model, model, texts, epsilon=1e-3, pairs={"next": [("elsewhere", "word4")]}, n_contexts=200)


def test_a_vocabulary_too_small_for_the_dimensions_is_refused(bridges: tuple[Any, Any], texts: list[str]) -> None:
    with pytest.raises(LrtError, match="tokens to fit 24 dimensions on"):
        compare_models(*bridges, texts, epsilon=1e-3, relations={"next": FACTS}, n_contexts=300)
