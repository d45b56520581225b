"""The mean difference, against a loop over single texts in Hugging Face's own model."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.loading import load_model
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.states import text_states
from tests.checkpoints import CLASSES, PAIRS
from tests.steering.reference import residual_and_logits
from tests.unchecked import without_type_checks

LAYER = 1


@pytest.fixture(scope="module")
def pairs(texts: list[str]) -> list[tuple[str, str]]:
    # special tokens inside a text are no text either
    chosen = [(texts[2 * index], texts[2 * index + 1]) for index in range(9)]
    return [*chosen, (f"<s> {texts[30]}", f"{texts[31]} </s>")]


@pytest.fixture(params=[0, 1], ids=["neox", "gpt2"])
def model_and_folder(request: pytest.FixtureRequest, pair: Any, folders: Any) -> tuple[Any, Path]:
    return pair[request.param], folders[request.param]


cached = cache(residual_and_logits)


def state_of(folder: Path, model: Any, text: str, position: Any, *, layer: int, bos: bool) -> tuple[Tensor, Tensor]:
    """The state of one text, and all of its states."""
    row = (1,) * bos + tuple(model.tokenizer.convert_tokens_to_ids(text.split()))
    states, _ = cached(folder, row, layer)
    kept = torch.stack([state for token, state in zip(row, states, strict=True) if token > 2])
    if position == "mean":
        return kept.mean(0), kept
    return kept[-1 if position == "last" else position], kept


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("position", ["mean", "last", 2, -3])
def test_the_same_as_one_text_at_a_time(
    model_and_folder: tuple[Any, Path], pairs: list[tuple[str, str]], position: Any, batch_size: int, bos: bool
) -> None:
    model, folder = model_and_folder
    settings = {"position": position, "batch_size": batch_size, "prepend_bos": bos}
    vector = mean_difference(model, pairs, layer=LAYER, **settings)
    sides, kept = [], []
    for texts in zip(*pairs, strict=True):
        found = [state_of(folder, model, text, position, layer=LAYER, bos=bos) for text in texts]
        sides.append(torch.stack([state for state, _ in found]).mean(0))
        kept += [states for _, states in found]
    torch.testing.assert_close(vector.direction, sides[0] - sides[1], atol=1e-4, rtol=1e-4)
    assert vector.residual_norm == pytest.approx(float(torch.cat(kept).norm(dim=-1).median()), rel=1e-4)
    assert vector.site.hook_name == f"blocks.{LAYER}.hook_resid_post"
    wanted = {"method": "mean_difference", "position": position, "n_pairs": 10, "prepend_bos": bos}
    assert wanted.items() <= vector.provenance.items()


def test_by_hook_name(model_and_folder: tuple[Any, Path], pairs: list[tuple[str, str]]) -> None:
    """Before a block is after the one before it."""
    model, _ = model_and_folder
    before = mean_difference(model, pairs, hook_name="blocks.2.hook_in")
    assert before.site.hook_name == "blocks.2.hook_resid_pre"
    torch.testing.assert_close(before.direction, mean_difference(model, pairs, layer=1).direction)


def test_the_order_of_the_texts_is_kept(bridges: Any, texts: list[str]) -> None:
    """Batches are sorted by length within."""
    model, hook = bridges[0], "blocks.1.hook_resid_post"
    some = sorted(texts[:20], key=len, reverse=True)
    found = text_states(model, some, [hook], position="last", batch_size=3)[hook]
    for text, state in zip(some, found.states, strict=True):
        alone = text_states(model, [text], [hook], position="last", batch_size=1)[hook]
        torch.testing.assert_close(state, alone.states[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("position", ["mean", "last"])
def test_sides_that_do_not_differ_give_no_vector(pair: Any, texts: list[str], position: Any, batch_size: int) -> None:
    same = [(text, text) for text in texts[:20]]
    swapped = [*zip(texts[:10], texts[10:20], strict=True), *zip(texts[10:20], texts[:10], strict=True)]
    for pairs in (same, swapped):
        with pytest.raises(LrtError, match="give the same mean state"):
            mean_difference(pair[0], pairs, layer=2, position=position, batch_size=batch_size)


@pytest.mark.parametrize("model_class", CLASSES)
def test_equal_texts_have_equal_states_in_half_precision_too(folders: Any, texts: list[str], model_class: str) -> None:
    model = load_model(folders[1], model_class=model_class, dtype=torch.bfloat16)
    swapped = [*zip(texts[:10], texts[10:20], strict=True), *zip(texts[10:20], texts[:10], strict=True)]
    with pytest.raises(LrtError, match="give the same mean state"):
        mean_difference(model, swapped, layer=2, batch_size=3)


def test_states_that_are_equal_but_for_rounding_give_no_vector(pair: Any) -> None:
    pairs = [("word5 word6 word7", "word5 word8")]
    with pytest.raises(LrtError, match="give the same mean state"):
        mean_difference(pair[0], pairs, layer=2, position=0, batch_size=1)


@pytest.mark.parametrize(("position", "too_short"), [(3, "word7 word8 word9"), (-4, "word7 word8 word9")], ids=str)
def test_a_text_with_too_few_tokens_is_named(pair: Any, position: int, too_short: str) -> None:
    pairs = [("word1 word2 word3 word4", too_short)]
    with pytest.raises(LrtError, match=f"position={position}: the text '{too_short}' has too few tokens"):
        mean_difference(pair[0], pairs, layer=1, position=position)


def test_a_text_of_special_tokens_only_is_named(pair: Any) -> None:
    with pytest.raises(LrtError, match="'<s> </s>' has too few tokens that are not special"):
        mean_difference(pair[0], [("word1", "<s> </s>")], layer=1)


def test_a_text_that_is_too_long_is_named(pair: Any) -> None:
    fits, too_long = " ".join(["word3"] * 63), " ".join(["word4"] * 64)  # with <s>, 64 and 65
    mean_difference(pair[0], [(fits, "word1")], layer=0)
    with pytest.raises(LrtError, match="has 65 tokens, small reads 64: shorten 'word4"):
        mean_difference(pair[0], [("word1", too_long)], layer=0)


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_activation_that_is_not_finite_names_its_text(folders: Any, model_class: str) -> None:
    model = load_model(folders[0], model_class=model_class)
    with torch.no_grad():
        model.W_E[model.tokenizer.get_vocab()["word9"]] = float("nan")
    pairs = [("word1 word2", "word3"), ("word4", "word5 word9 word6")]
    with pytest.raises(LrtError, match=r"blocks\.1\.hook_resid_post: .* NaN .* on the text 'word5 word9 word6'"):
        mean_difference(model, pairs, layer=1)
    mean_difference(model, pairs[:1], layer=1)


def test_what_is_infinite_at_a_special_token_does_not_matter(
    bridges: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = mean_difference(bridges[0], PAIRS, layer=1)

    def overflowing(model: Any, tokens: Any, mask: Any, hook_names: Any) -> Any:
        found = capture(model, tokens, mask, hook_names)
        return {name: states.index_fill(1, torch.tensor([0]), float("inf")) for name, states in found.items()}

    monkeypatch.setattr("lrt_tl.steering.states.capture", overflowing)
    assert torch.equal(mean_difference(bridges[0], PAIRS, layer=1).direction, exact.direction)


def test_a_position_that_is_none_is_refused(bridges: tuple[Any, Any]) -> None:
    with (
        without_type_checks(),
        pytest.raises(LrtError, match="position='first': use 'mean', 'last', 'answer',"),
    ):
        mean_difference(bridges[0], PAIRS, layer=1, position="first")  # type: ignore[arg-type]
