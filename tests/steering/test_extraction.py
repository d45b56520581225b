"""Vectors from texts, against a loop over single texts in Hugging Face's own model, and scikit-learn."""

import copy
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.extraction import EXTRACTIONS, from_directions, mean_activation, mean_difference
from lrt_tl.steering.separation import agreement
from lrt_tl.steering.states import text_states
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES, PAIRS, WORDS
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
        pytest.raises(LrtError, match="position='first': use 'mean', 'last', a number"),
    ):
        mean_difference(bridges[0], PAIRS, layer=1, position="first")  # type: ignore[arg-type]


EXPECTED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mean_difference": lambda positive, negative: positive.mean(0) - negative.mean(0),
    "pca_of_differences": lambda positive, negative: PCA(1).fit(both(positive - negative, negative - positive)),
    "pca_of_states": lambda positive, negative: PCA(1).fit(both(positive, negative)),
    "linear_discriminant": lambda positive, negative: LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=LedoitWolf()
    ).fit(both(positive, negative), [1] * len(positive) + [0] * len(negative)),
    "logistic_probe": lambda positive, negative: LogisticRegression(tol=1e-8, max_iter=1000).fit(
        both(positive, negative) / (both(positive, negative) - both(positive, negative).mean(0)).std(),
        [1] * len(positive) + [0] * len(negative),
    ),
}


def both(positive: Tensor, negative: Tensor) -> Any:
    return torch.cat([positive, negative]).double().numpy()


@pytest.mark.parametrize("position", ["mean", -1])
@pytest.mark.parametrize("method", EXTRACTIONS)
def test_each_method_on_states_captured_by_hand(
    model_and_folder: tuple[Any, Path], pairs: list[tuple[str, str]], method: str, position: Any
) -> None:
    model, folder = model_and_folder
    vector = EXTRACTIONS[method](model, pairs, layer=LAYER, position=position)
    positive, negative = (
        torch.stack([state_of(folder, model, text, position, layer=LAYER, bos=True)[0] for text in side])
        for side in zip(*pairs, strict=True)
    )
    found = EXPECTED[method](positive, negative)
    difference = (positive.mean(0) - negative.mean(0)).double()
    if method == "mean_difference":
        expected = found.double()
    else:
        axis = torch.from_numpy(found.components_[0] if method.startswith("pca") else found.coef_[0]).double()
        expected = axis / axis.norm() * (difference @ axis / axis.norm())
    torch.testing.assert_close(vector.direction.double(), expected, rtol=2e-2, atol=2e-3)
    assert vector.provenance["method"] == method
    assert vector.report is not None
    wanted = {"method": method, "n_pairs": 10, "position": position, "model": vector.site.model.name}  # type: ignore[union-attr]
    assert wanted.items() <= vector.report.to_json().items()
    assert vector.report.agreement == pytest.approx(agreement((positive - negative).double()), abs=1e-3)


@pytest.mark.parametrize("method", EXTRACTIONS)
def test_several_sites_from_one_pass_are_those_of_single_passes(
    pair: Any, pairs: list[tuple[str, str]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counting(model: Any, tokens: Any, mask: Any, hook_names: Any) -> Any:
        read.extend(row[kept].tolist() for row, kept in zip(tokens, mask, strict=True))
        return capture(model, tokens, mask, hook_names)

    model, extract = pair[1], EXTRACTIONS[method]
    names = ["blocks.3.hook_resid_post", "blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"]
    single = [extract(model, pairs, hook_name=name, batch_size=3) for name in names]
    monkeypatch.setattr("lrt_tl.steering.states.capture", counting)
    repeated = [*pairs, *pairs[:2]]
    extract(model, repeated, layer=[1], batch_size=3)
    assert len(read) == 20
    assert len({tuple(row) for row in read}) == 20
    read.clear()
    several = extract(model, pairs, hook_name=names, batch_size=3)
    assert len(read) == 20
    for one, other in zip(single, several, strict=True):
        assert torch.equal(one.direction, other.direction)
        assert (one.site, one.residual_norm, one.report) == (other.site, other.residual_norm, other.report)
        assert one.provenance == other.provenance


def test_layers_are_numbers_of_blocks_in_the_order_given(pair: Any, pairs: list[tuple[str, str]]) -> None:
    vectors = mean_difference(pair[0], pairs, layer=(2, 0))
    assert [vector.site.hook_name for vector in vectors] == ["blocks.2.hook_resid_post", "blocks.0.hook_resid_post"]
    assert isinstance(mean_difference(pair[0], pairs, layer=range(1)), list)
    for wrong in ({"layer": []}, {"layer": [0], "hook_name": ["blocks.0.hook_resid_post"]}, {}, {"layer": [0, 7]}):
        with pytest.raises(LrtError, match=r"give (a layer|layers) or .*, and not both|layer 7 is out of range"):
            mean_difference(pair[0], pairs, **wrong)


@pytest.mark.parametrize("method", EXTRACTIONS)
def test_sides_that_do_not_differ_are_refused_by_all(bridges: Any, texts: list[str], method: str) -> None:
    swapped = [*zip(texts[:10], texts[10:20], strict=True), *zip(texts[10:20], texts[:10], strict=True)]
    with pytest.raises(LrtError, match="give the same mean state"):
        EXTRACTIONS[method](bridges[0], swapped, layer=1)


def test_batches_make_no_difference_to_any_position(pair: Any, pairs: list[tuple[str, str]]) -> None:
    """Nor does the padding that comes with them."""
    for position in ("mean", "last", "answer", {"last": 2}, {"not": {"first": 3}}):
        one, many = (
            mean_difference(pair[0], pairs[:9], layer=1, position=position, batch_size=size) for size in (1, 20)
        )
        torch.testing.assert_close(one.direction, many.direction, atol=1e-5, rtol=1e-5)


QUESTION = "word5 word6 ( word1 ) word9"
ANSWERS = [
    (QUESTION, QUESTION.replace("word1", "word2"), "word1"),
    (QUESTION, "word5 word7 ( word1 ) word9", "word6"),  # the same text in another pair is read elsewhere
    ("word7 word8 ( word2 ) word9", QUESTION, "word2"),  # of another length, and different before that, too
    ("word3 word4", "word4 word4 word4", "word3"),
]


def spaced(text: str, split: bool) -> str:
    return text if split else text.replace("( ", "(").replace(" )", ")")


@pytest.mark.parametrize("split", [True, False], ids=["brackets apart", "one token with its brackets"])
def test_the_answer_is_where_the_texts_of_a_pair_differ_last(folders: Any, tmp_path: Path, split: bool) -> None:
    folder = shutil.copytree(folders[0], tmp_path / "model")
    words = [*WORDS[:40], "(", ")", "(word1)", "(word2)"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    model = load_model(folder)
    texts, partners = ([spaced(row[side], split) for row in ANSWERS] for side in (0, 1))
    hook = "blocks.1.hook_resid_post"
    found = text_states(model, [*texts, *partners], [hook], position="answer", partners=[*partners, *texts])
    for text, (_, _, word), state in zip(texts, ANSWERS, found[hook].states, strict=False):
        tokens = ["<s>", *text.split()]
        states, _ = cached(folder, tuple(words.index(token) for token in tokens), 1)
        (place,) = (number for number, token in enumerate(tokens) if word in token)
        torch.testing.assert_close(state, states[place], atol=1e-4, rtol=1e-4)


def test_an_answer_that_is_not_there_is_refused(bridges: Any) -> None:
    """Where all of a text is the end of the other, or it is special tokens that differ."""
    for pair in [("word1 word2", "word1 word2"), ("word2", "word1 word2"), ("word1 <s> word2", "word1 </s> word2")]:
        with pytest.raises(LrtError, match=r"position='answer': the text 'word.*' has no token where it differs from"):
            mean_difference(bridges[0], [pair], layer=1, position="answer")
    with pytest.raises(LrtError, match="compares the two texts of a pair, and these texts are in none"):
        mean_activation(bridges[0], ["word1"], layer=1, position="answer")


SELECTORS: list[tuple[Any, Callable[[int], list[int]]]] = [
    ({"last": 2}, lambda n: [n - 2, n - 1]),
    ({"first": 2}, lambda n: [0, 1]),
    ({"not": {"at": [0, 2]}}, lambda n: [i for i in range(n) if i not in (0, 2)]),
    ({"prompt": {"at": [1, 3]}}, lambda n: [1, 3]),
]


@pytest.mark.parametrize(("selector", "places"), SELECTORS, ids=lambda value: "" if callable(value) else str(value))
def test_a_selector_chooses_among_all_tokens_and_they_are_averaged(
    model_and_folder: tuple[Any, Path], texts: list[str], selector: Any, places: Callable[[int], list[int]]
) -> None:
    model, folder = model_and_folder
    some = texts[:6]
    hook = "blocks.1.hook_resid_post"
    found = text_states(model, some, [hook], position=selector, batch_size=4)[hook].states
    for text, state in zip(some, found, strict=True):
        row = (1, *model.tokenizer.convert_tokens_to_ids(text.split()))
        states, _ = cached(folder, row, 1)
        torch.testing.assert_close(state, states[places(len(row))].mean(0), atol=1e-4, rtol=1e-4)


def test_selectors_of_words_and_tokens(bridges: Any) -> None:
    pairs = [("word1 word2 word3 word4", "word2 word3 word9"), ("word7 word2 word3", "word8 word8 word2 word3")]
    hook = "blocks.1.hook_resid_post"
    within, tokens = (
        text_states(bridges[0], pairs[0] + pairs[1], [hook], position=position)[hook].states
        for position in ({"within": "word2 word3"}, {"tokens": [WORDS.index("word2"), WORDS.index("word3")]})
    )
    torch.testing.assert_close(within, tokens)
    vector = mean_difference(bridges[0], pairs, layer=1, position={"within": "word2 word3"})
    torch.testing.assert_close(vector.direction, (tokens[[0, 2]] - tokens[[1, 3]]).mean(0))
    assert vector.provenance["position"] == {"within": "word2 word3"}


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"tokens": [9]}, r"position=\{'tokens': \[9\]\} selects nothing in the text 'word4 word5 word1'"),
        ({"within": "word30"}, "does not contain 'word30'"),
        ({"generated": "all"}, "texts are given, and have no 'generated' to select"),
        ({"not": "generated"}, "texts are given, and have no 'generated' to select"),
        ({"not": {"mask": [[True]]}}, "texts are given, and have no 'mask' to select"),
        ({"wherever": 1}, "must have one key"),
    ],
    ids=str,
)
def test_a_selector_that_cannot_be_is_refused(bridges: Any, position: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        mean_difference(bridges[0], PAIRS, layer=1, position=position)


def test_the_mean_activation(model_and_folder: tuple[Any, Path], texts: list[str]) -> None:
    model, folder = model_and_folder
    some = [*texts[:7], texts[0]]  # a text that is there twice counts twice
    one, other = mean_activation(model, some, layer=[LAYER, 2], position="last")
    found = [state_of(folder, model, text, "last", layer=LAYER, bos=True) for text in some]
    torch.testing.assert_close(one.direction, torch.stack([state for state, _ in found]).mean(0), atol=1e-4, rtol=1e-4)
    assert one.residual_norm == pytest.approx(
        float(torch.cat([kept for _, kept in found[:7]]).norm(dim=-1).median()), rel=1e-4
    )
    assert (one.report, one.provenance["method"], one.provenance["n_texts"]) == (None, "mean_activation", 8)
    assert other.site.hook_name == "blocks.2.hook_resid_post"
    assert one.provenance["data"] != mean_activation(model, some[::-1], layer=1).provenance["data"]


def test_directions_from_elsewhere(pair: Any) -> None:
    model = pair[0]
    rows = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    vectors = from_directions(model, rows, layer=1, residual_norm=2.5, method="decoder")
    assert isinstance(vectors, list)
    for vector, row in zip(vectors, rows, strict=True):
        torch.testing.assert_close(vector.direction, row.detach().float())
        assert vector.site == site_of(model, layer=1)
        assert (vector.residual_norm, vector.provenance, vector.report) == (2.5, {"method": "decoder"}, None)
    alone = from_directions(model, rows[1], hook_name="blocks.1.hook_resid_post")
    assert isinstance(alone, SteeringVector)
    assert torch.equal(alone.direction, vectors[1].direction)
    vectors[0].direction.zero_()
    assert rows.all()


def test_directions_that_are_none_are_refused(bridges: Any) -> None:
    for wrong in (torch.ones(17), torch.ones(2, 17), torch.ones(1, 1, 16), torch.ones(0, 16)):
        with without_type_checks(), pytest.raises(LrtError, match=r"are not \[n, 16\] or \[16\], as small needs"):
            from_directions(bridges[0], wrong, layer=1)
    for bad in (0.0, float("nan")):
        with pytest.raises(LrtError, match="direction 1 is zero, or holds NaN or infinity"):
            from_directions(bridges[0], torch.stack([torch.ones(16), torch.full((16,), bad)]), layer=1)


def test_the_report_is_saved_with_the_vector(bridges: Any, tmp_path: Path) -> None:
    vector = mean_difference(bridges[0], PAIRS, layer=1, position={"not": {"first": 1}})
    assert vector.report is not None
    assert vector.report.auc is not None
    assert SteeringVector.load(vector.save(tmp_path / "vector")).report == vector.report
    bare = mean_activation(bridges[0], ["word1 word2"], layer=1)
    assert SteeringVector.load(bare.save(tmp_path / "bare")).report is None


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"


def test_pairs_are_read_through_a_chat_template(bridges: Any) -> None:
    """What the template writes, after one beginning of sequence, and with its markers left out as special tokens."""
    tokenizer = copy.deepcopy(bridges[0].tokenizer)
    tokenizer.chat_template = TEMPLATE
    chats = [{"prompt": "word1", "positive": "word2", "negative": "word3"}]
    written = [(f"user : word1 </s> assistant : {word} </s> ") for word in ("word2", "word3")]
    chat = mean_difference(bridges[0], chats, layer=1, position="answer", chat_template=tokenizer)
    plain = mean_difference(bridges[0], [written], layer=1, position="answer")
    assert torch.equal(chat.direction, plain.direction)
    assert chat.provenance == {**plain.provenance, "chat_template": True}
    activation = mean_activation(bridges[0], ["word1 word2"], layer=1, chat_template=tokenizer)
    assert torch.equal(
        activation.direction, mean_activation(bridges[0], ["user : word1 word2 </s> "], layer=1).direction
    )


def test_they_say_what_they_are() -> None:
    for name, extract in EXTRACTIONS.items():
        assert extract.__name__ == name  # type: ignore[attr-defined]
        assert "contrast_pairs: whatever" in (extract.__doc__ or "")
