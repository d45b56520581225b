"""The fit against scikit-learn on states taken one text at a time, and against planted maps."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrt_tl import storyworld
from lrt_tl.alignment.activations import fit_activations
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import RELATIVE_RIDGES, fit_affine_map, fit_affine_maps, fit_moments, harvest_moments
from lrt_tl.alignment.processes import bar
from lrt_tl.errors import LrtError
from lrt_tl.models.identity import identify
from lrt_tl.models.loading import load_model
from lrt_tl.progress import BAR
from lrt_tl.text.batches import pad
from lrt_tl.text.documents import split_of
from tests.alignment import reference
from tests.alignment.reference import Row, one_at_a_time, rows_of
from tests.checkpoints import D_VOCAB, WORDS, hooked_only, save_tokenizer
from tests.unchecked import without_type_checks

LAYERS = (1, 2)
NAMES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def fit_ridge(*args: Any, **options: Any) -> AffineMap:
    """The ridge map, for which there is an oracle."""
    return fit_affine_map(*args, method="ridge", **options)


@pytest.fixture(scope="module")
def some_texts(texts: list[str]) -> list[str]:
    """Enough for all splits, and for 20 positions a dimension."""
    return texts[:100]


@pytest.fixture(scope="module")
def huggingface(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    small, large = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    return small, large


@pytest.fixture(scope="module")
def fitted(pair: tuple[Any, Any], texts: list[str]) -> AffineMap:
    return fit_ridge(*pair, texts, layers=LAYERS)


def assert_is(actual: AffineMap, wanted: reference.Fit, tolerance: float = 1e-4) -> None:
    """The same ridge, map and figures."""
    report = actual.report
    assert report.relative_ridge == RELATIVE_RIDGES[wanted.best]
    np.testing.assert_allclose([r2 for _, r2 in report.curve], wanted.curve, atol=tolerance)
    assert report.cv_r2 == pytest.approx(wanted.curve[wanted.best], abs=tolerance)
    assert np.mean(report.fold_r2) == pytest.approx(report.cv_r2)
    assert report.test_r2 == pytest.approx(wanted.test_r2, abs=tolerance)
    assert report.validation_r2 == pytest.approx(wanted.validation_r2, abs=tolerance)
    np.testing.assert_allclose(actual.weight.numpy(), wanted.weight, atol=tolerance * np.abs(wanted.weight).max())
    np.testing.assert_allclose(actual.bias.numpy(), wanted.bias, atol=tolerance * np.abs(wanted.bias).max())


def assert_same_map(actual: AffineMap, wanted: AffineMap, tolerance: float = 1e-5) -> None:
    for name in ("weight", "bias", "source_covariance", "target_covariance"):
        ours, theirs = getattr(actual, name), getattr(wanted, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))
    assert actual.report.test_r2 == pytest.approx(wanted.report.test_r2, abs=tolerance)


def test_the_map_is_scikit_learns_from_texts_read_one_at_a_time(
    fitted: AffineMap, pair: tuple[Any, Any], huggingface: tuple[Any, Any], texts: list[str]
) -> None:
    positions = one_at_a_time(huggingface, rows_of(texts), LAYERS)
    assert_is(fitted, reference.fit(positions))
    report, harvest = fitted.report, fitted.report.harvest
    train = positions.target[positions.splits < 5]
    assert report.tokens == len(train)
    assert report.tokens_per_dimension == len(train) / 16
    assert harvest["positions"] == len(positions.tokens)
    assert harvest["documents"] == harvest["special_dropped"] == len(texts)  # one beginning of sequence each
    assert harvest["sinks_dropped"] == harvest["documents_excluded"] == harvest["tokens_truncated"] == 0
    for states, covariance in (
        (train, fitted.target_covariance),
        (positions.source[positions.splits < 5], fitted.source_covariance),
    ):
        assert covariance is not None
        np.testing.assert_allclose(covariance.numpy(), np.cov(states.T, bias=True), rtol=1e-4, atol=1e-5)
    assert fitted.target_norm == pytest.approx(np.median(np.linalg.norm(positions.target, axis=1)), rel=0.05)
    assert (fitted.source.model, fitted.target.model) == (identify(pair[0]), identify(pair[1]))
    assert (fitted.source.hook_name, fitted.target.hook_name) == NAMES


def test_a_covariance_that_is_too_large_is_not_kept(
    fitted: AffineMap, pair: tuple[Any, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitted.source_covariance is not None
    monkeypatch.setattr("lrt_tl.alignment.fit.LARGEST_COVARIANCE", 15)
    assert fit_affine_map(*pair, texts, layers=LAYERS, method="ridge").source_covariance is None


@pytest.mark.parametrize("batch_size", [7, 200])
def test_batches_and_the_order_of_documents_do_not_matter(
    fitted: AffineMap, pair: tuple[Any, Any], texts: list[str], batch_size: int
) -> None:
    assert_same_map(fit_ridge(*pair, texts[::-1], layers=LAYERS, batch_size=batch_size), fitted)


@hooked_only
def test_both_classes_give_the_same_map(folders: tuple[Path, Path], bridges: tuple[Any, Any], texts: list[str]) -> None:
    hooked = [load_model(folder, model_class="hooked") for folder in folders]
    maps = [fit_ridge(*models, texts, layers=LAYERS) for models in (hooked, bridges)]
    assert_same_map(maps[0], maps[1], 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision_differ_by_rounding(
    fitted: AffineMap, folders: tuple[Path, Path], texts: list[str], dtype: torch.dtype
) -> None:
    rounding = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    halves = [load_model(folder, dtype=dtype) for folder in folders]
    assert_same_map(fit_ridge(*halves, texts, layers=LAYERS), fitted, rounding)


def pieces(texts: Sequence[str], room: int) -> list[Row]:
    return [
        Row([reference.BOS, *row.ids[start : start + room]], row.split)
        for row in rows_of(texts, bos=False)
        for start in range(0, len(row.ids), room)
    ]


def packed(texts: Sequence[str], length: int) -> list[Row]:
    done: list[Row] = []
    waiting: dict[int, Row] = {}
    for row in rows_of(texts):
        before = waiting.get(row.split, Row([], row.split))
        if len(before.ids) + len(row.ids) > length:
            done.append(before)
            before = Row([], row.split)
        waiting[row.split] = Row(before.ids + row.ids, row.split)
    return done + list(waiting.values())


LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[list[str]], list[Row]]]] = {
    "split": ({"layout": "split", "context_length": 12}, lambda texts: pieces(texts, 11)),
    "truncate": (
        {"layout": "truncate", "context_length": 12},
        lambda texts: [Row(row.ids[:12], row.split) for row in rows_of(texts)],
    ),
    "pack": ({"layout": "pack", "context_length": 60}, lambda texts: packed(texts, 60)),
    "no bos": ({"prepend_bos": False}, lambda texts: rows_of(texts, bos=False)),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_layouts(bridges: tuple[Any, Any], huggingface: tuple[Any, Any], some_texts: list[str], name: str) -> None:
    options, rows = LAYOUTS[name]
    actual = fit_ridge(*bridges, some_texts, layers=LAYERS, **options)
    positions = one_at_a_time(huggingface, rows(some_texts), LAYERS)
    assert_is(actual, reference.fit(positions))
    assert actual.report.harvest["positions"] == len(positions.tokens)
    truncated = sum(max(0, len(text.split()) - 11) for text in some_texts) if name == "truncate" else 0
    assert actual.report.harvest["tokens_truncated"] == truncated


def test_excluded_documents_are_dropped_and_counted(bridges: tuple[Any, Any], some_texts: list[str]) -> None:
    long = [text for text in some_texts if len(text.split()) > 8]
    asked = [" ".join(text.split()[2:8]).upper() for text in long[:20]]
    actual = fit_ridge(*bridges, some_texts, layers=LAYERS, exclude=asked)
    assert actual.report.harvest["documents_excluded"] == 20
    assert actual.report.harvest["documents"] == 80
    assert_same_map(actual, fit_ridge(*bridges, [t for t in some_texts if t not in long[:20]], layers=LAYERS))


def test_special_tokens_in_the_text_are_dropped_and_counted(
    bridges: tuple[Any, Any], huggingface: tuple[Any, Any], some_texts: list[str]
) -> None:
    """Words that the tokenizer does not know become `<unk>`, which is special."""
    unknown = [text.replace("word7", "seven") for text in some_texts]
    actual = fit_ridge(*bridges, unknown, layers=LAYERS)
    known = [[word if word in WORDS else "<unk>" for word in text.split()] for text in unknown]
    rows = [Row([1, *map(WORDS.index, words)], split_of(text)) for words, text in zip(known, unknown, strict=True)]
    assert_is(actual, reference.fit(one_at_a_time(huggingface, rows, LAYERS)))
    assert actual.report.harvest["special_dropped"] == len(some_texts) + sum(words.count("<unk>") for words in known)


Change = Callable[[Tensor, Tensor, str], None]
"""Alter, in place, activations of tokens at a hook name."""


@pytest.fixture
def captured_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Let the harvest see altered activations."""
    from lrt_tl.alignment import forward

    original = forward.capture

    def patch(change: Change) -> None:
        def altered(model: Any, tokens: Tensor, mask: Tensor, hook_names: Sequence[str]) -> dict[str, Tensor]:
            found = {name: states.clone() for name, states in original(model, tokens, mask, hook_names).items()}
            for name, states in found.items():
                change(states, tokens, name)
            return found

        monkeypatch.setattr(forward, "capture", altered)

    return patch


def test_sinks_are_dropped_and_counted_and_do_no_harm(
    bridges: tuple[Any, Any],
    huggingface: tuple[Any, Any],
    some_texts: list[str],
    captured_with: Callable[[Change], None],
) -> None:
    sinks = {NAMES[0]: WORDS.index("word4"), NAMES[1]: WORDS.index("word9")}

    def plant(states: Tensor, tokens: Tensor, name: str) -> None:
        states[tokens == sinks[name]] *= 50

    captured_with(plant)
    actual = fit_ridge(*bridges, some_texts, layers=LAYERS)
    positions = one_at_a_time(huggingface, rows_of(some_texts), LAYERS)
    calm = ~np.isin(positions.tokens, list(sinks.values()))
    assert actual.report.harvest["sinks_dropped"] == (~calm).sum() > 30
    assert actual.report.harvest["positions"] == calm.sum()
    assert_is(actual, reference.fit(positions.where(calm)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("side", "name"), list(enumerate(NAMES)))
def test_an_activation_that_is_not_finite_is_named(
    bridges: tuple[Any, Any],
    some_texts: list[str],
    captured_with: Callable[[Change], None],
    bad: float,
    side: int,
    name: str,
) -> None:
    rare = WORDS.index("word39")
    documents = [text.replace("word39", "word1") for text in some_texts]
    documents[77] += " word39"

    def plant(states: Tensor, tokens: Tensor, where: str) -> None:
        if where == name:
            states[tokens == rare, 3] = bad

    captured_with(plant)
    message = rf"{('small', 'large')[side]}, {name}: an activation is NaN or infinite on document 77$"
    with pytest.raises(LrtError, match=message):
        fit_ridge(*bridges, documents, layers=LAYERS)


def test_hook_names_instead_of_layers(
    bridges: tuple[Any, Any], huggingface: tuple[Any, Any], some_texts: list[str]
) -> None:
    names = ("blocks.0.hook_resid_pre", "blocks.2.hook_out")
    actual = fit_ridge(*bridges, some_texts, hook_names=names)
    assert (actual.source.hook_name, actual.target.hook_name) == (names[0], NAMES[1])
    positions = one_at_a_time(huggingface, rows_of(some_texts), (-1, 2))
    assert_is(actual, reference.fit(positions))


def test_nothing_is_printed_and_progress_leaves_nothing_behind(
    bridges: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The map is returned, for a notebook to show once; what takes less than a second shows no progress."""
    fit_ridge(*bridges, texts[:150], layers=LAYERS)
    assert "disable" not in bar(), "or TQDM_DISABLE would not be heard"
    monkeypatch.setitem(BAR, "delay", 0)
    monkeypatch.setitem(BAR, "mininterval", 0)
    assert capsys.readouterr().out == ""
    fit_ridge(*bridges, texts, layers=LAYERS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "positions" in shown.err
    assert shown.err.rsplit("\r", 2)[-2].strip() == ""


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("layers or hook_names", {"layers": None}),
    ("layers or hook_names", {"hook_names": NAMES}),
    (r"layer 3 is out of range: small has layers 0 to 2", {"layers": (3, 1)}),
    (r"layer -1 is out of range: large has layers 0 to 3", {"layers": (1, -1)}),
    (r"context_length=65 is more than small reads \(64\)", {"context_length": 65}),
    ("context_length=0 leaves no room", {"context_length": 0}),
    ("batch_size=0", {"batch_size": 0}),
    ("above zero", {"relative_ridges": (0.0,)}),
]


@pytest.mark.parametrize(("message", "options"), REFUSED)
def test_options_that_cannot_be_are_refused(
    bridges: tuple[Any, Any], some_texts: list[str], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(LrtError, match=message):
        fit_ridge(*bridges, some_texts, **{"layers": LAYERS, **options})


def test_too_little_text_is_refused(bridges: tuple[Any, Any], some_texts: list[str]) -> None:
    with pytest.raises(LrtError, match=r"positions \(without the largest fold\) cannot determine a map of 16 source"):
        fit_ridge(*bridges, [text[:20] for text in some_texts[:8]], layers=LAYERS)
    without_test = [text for text in some_texts if split_of(text) != 6]
    with pytest.raises(LrtError, match=r"the test split has 0 positions"):
        fit_ridge(*bridges, without_test, layers=LAYERS)
    with pytest.raises(LrtError, match="every document contains"):
        fit_ridge(*bridges, some_texts[:5], layers=LAYERS, exclude=some_texts[:5])


def test_little_text_is_warned_of(bridges: tuple[Any, Any], texts: list[str]) -> None:
    short = [" ".join(text.split()[:4]) for text in texts[:60]]
    with pytest.warns(UserWarning, match=r"\d+\.\d tokens per source dimension; under 20"):
        actual = fit_ridge(*bridges, short, layers=LAYERS)
    assert 1 < actual.report.tokens_per_dimension < 20


def test_a_map_from_several_layers_is_that_of_their_states_side_by_side(
    bridges: tuple[Any, Any], huggingface: tuple[Any, Any], texts: list[str]
) -> None:
    one, other = (reference.one_at_a_time(huggingface, reference.rows_of(texts), (layer, 2)) for layer in (0, 1))
    stacked = reference.Positions(np.hstack([one.source, other.source]), one.target, one.splits, one.tokens)
    actual = fit_ridge(*bridges, texts, layers=((0, 1), 2))
    assert_is(actual, reference.fit(stacked))
    assert [site.hook_name for site in actual.sources] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert actual.report.test_r2 > fit_ridge(*bridges, texts, layers=(1, 2)).report.test_r2 - 0.05


def test_words_pair_with_the_byte_pairs_that_end_on_them() -> None:
    """Every word of storyworld ends a byte-level token."""
    actual = fit_ridge(
        storyworld.load("small"),
        storyworld.load("large-alt"),
        storyworld.documents(250, seed=3),
        layers=((0, 1, 2, 3), 4),
        batch_size=64,
    )
    assert actual.report.harvest["tokens_unpaired"] == 0
    assert actual.report.test_r2 > 0.6


@pytest.mark.parametrize("layers", [((), 2), ((1, 1), 2)])
def test_source_layers_must_differ(bridges: tuple[Any, Any], layers: Any) -> None:
    with pytest.raises(LrtError, match="one or more different ones"):
        fit_ridge(*bridges, ["text"], layers=layers)


def test_two_tokenizers_are_paired(
    bridges: tuple[Any, Any], folders: tuple[Path, Path], texts: list[str], tmp_path: Path
) -> None:
    """A target whose words have other numbers, and whose embedding is renumbered alike, is the same target."""
    other = shutil.copytree(folders[1], tmp_path / "other")
    order = [*range(len(WORDS) - 2), len(WORDS) - 1, len(WORDS) - 2]
    save_tokenizer(other, [WORDS[i] for i in order])
    tensors = load_file(other / "model.safetensors")
    for name, tensor in tensors.items():
        if len(tensor) == D_VOCAB:
            tensors[name] = tensor[[*order, *range(len(WORDS), D_VOCAB)]]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    same = fit_ridge(*bridges, texts, layers=LAYERS)
    actual = fit_ridge(bridges[0], load_model(other), texts, layers=LAYERS)
    torch.testing.assert_close(actual.weight, same.weight, rtol=1e-4, atol=1e-5)
    assert actual.report.harvest["tokens_unpaired"] == 0
    assert actual.report.test_r2 == pytest.approx(same.report.test_r2, abs=1e-5)


# Activations in hand


@pytest.fixture(scope="module")
def caches(pair: tuple[Any, Any], texts: list[str]) -> dict[str, Any]:
    """What a user of TransformerLens has: both caches of one padded batch."""
    tokens, mask, content = pad(pair[0].tokenizer, [row.ids for row in rows_of(texts)])
    with torch.no_grad():
        found = [model.run_with_cache(tokens, attention_mask=mask.long())[1] for model in pair]
    return {"source": found[0], "target": found[1], "document_ids": texts, "mask": content}


@pytest.mark.parametrize("as_mapping", [False, True])
def test_caches_give_the_map_of_the_models(
    fitted: AffineMap, pair: tuple[Any, Any], caches: dict[str, Any], as_mapping: bool
) -> None:
    if as_mapping:
        caches = caches | {
            side: {name: caches[side][name]} for side, name in zip(("source", "target"), NAMES, strict=True)
        }
    actual = fit_activations(**caches, hook_names=NAMES, models=pair, method="ridge")
    assert_same_map(actual, fitted)
    assert (actual.source, actual.target) == (fitted.source, fitted.target)
    assert actual.target_norm == pytest.approx(fitted.target_norm, rel=0.05)
    anonymous = fit_activations(**caches, hook_names=NAMES)
    assert (str(anonymous.source), anonymous.source.d_model) == ("unknown model L1", 16)


def test_a_bridges_names_are_resolved(bridges: tuple[Any, Any], texts: list[str]) -> None:
    tokens, _, content = pad(bridges[0].tokenizer, [row.ids for row in rows_of(texts)])
    with torch.no_grad():
        found = [model.run_with_cache(tokens)[1] for model in bridges]
    names = ("blocks.1.hook_out", "blocks.2.hook_out")
    actual = fit_activations(*found, texts, mask=content, hook_names=names, models=bridges)
    assert (actual.source.hook_name, actual.target.hook_name) == NAMES
    assert actual.target_norm is not None


def planted(
    *, noise: float, n: int = 2000, dtype: torch.dtype = torch.float64, d_source: int = 12, d_target: int = 20
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """A, b, states h_S (correlated, off the origin), h_T = A h_S + b + noise, and documents of ten positions."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b = normal(d_target, d_source), normal(d_target)
    x = normal(n, d_source) + normal(d_source)
    y = x @ a.T + b + noise * normal(n, d_target)
    return a, b, x.to(dtype), y.to(dtype), [position // 10 for position in range(n)]


def test_a_planted_map_is_found() -> None:
    a, b, x, y, documents = planted(noise=0.0)
    actual = fit_activations(x, y, torch.tensor(documents))
    torch.testing.assert_close(actual.weight.double(), a, rtol=0, atol=1e-6 * float(a.abs().max()))
    torch.testing.assert_close(actual.bias.double(), b, rtol=0, atol=1e-6 * float(b.abs().max()))
    assert 1 - 1e-9 < actual.report.test_r2 <= 1
    assert actual.report.harvest["documents"] == 200


def test_the_error_of_a_planted_map_falls_at_the_textbook_rate() -> None:
    for n in (1000, 4000, 16000):
        a, _, x, y, documents = planted(noise=2.0, n=n)
        actual = fit_activations(x, y, documents, method="ridge")
        expected = 4 * 20 * 12 / (actual.report.tokens - 12 - 2)  # σ² d_T d_S/(n − d_S − 2), x of unit covariance
        assert 0.7 < float((actual.weight.double() - a).square().sum()) / expected < 1.3
        assert actual.report.test_r2 == pytest.approx(12 / (12 + 4), abs=0.1)


@pytest.mark.parametrize("relative_ridges", [(1e-8,), RELATIVE_RIDGES])
def test_pure_noise_shows_as_no_skill(relative_ridges: Sequence[float]) -> None:
    _, _, x, _, documents = planted(noise=0.0, n=400, d_source=100)
    y = torch.randn(400, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with pytest.warns(UserWarning, match="under 20"):
        actual = fit_activations(x, y, documents, method="ridge", relative_ridges=relative_ridges)
    upper = 0.0 if relative_ridges == (1e-8,) else 0.02
    assert max(actual.report.test_r2, actual.report.cv_r2, actual.report.validation_r2) < upper
    assert "R² -0." in repr(actual)


def test_documents_are_on_one_side_of_every_split() -> None:
    """States that give away their document, and nothing else: a split by position would reach R² 1."""
    generator = torch.Generator().manual_seed(0)
    documents = [position // 20 for position in range(2000)]
    states = torch.randn(100, 30, generator=generator).repeat_interleave(20, dim=0)
    targets = torch.randn(100, 4, generator=generator).repeat_interleave(20, dim=0)
    actual = fit_activations(states, targets, documents)
    assert actual.report.cv_r2 < 0.05
    assert actual.report.test_r2 < 0.2
    assert actual.report.fold_r2 != (actual.report.cv_r2,) * 5


def test_masks_rows_and_sinks() -> None:
    a, _, x, y, documents = planted(noise=0.1, dtype=torch.float32)
    mask = torch.rand(2000, generator=torch.Generator().manual_seed(3)) < 0.8
    x[~mask], y[~mask] = float("nan"), float("inf")  # what is masked is never looked at
    flat = fit_activations(x, y, documents, mask=mask)
    in_rows = fit_activations(
        x.reshape(200, 10, 12), y.reshape(200, 10, 20), range(200), mask=mask.reshape(200, 10).int()
    )
    assert_same_map(in_rows, flat, 1e-7)
    chosen = fit_activations(x[mask], y[mask], np.array(documents)[mask.numpy()].tolist())
    assert_same_map(chosen, flat, 1e-7)
    sink = torch.zeros(2000, dtype=torch.bool)
    sink[[3, 500, 501]] = True
    mask |= sink
    x[sink], y[sink] = 500.0, 1.0
    dropped = fit_activations(x, y, documents, mask=mask)
    assert dropped.report.harvest["sinks_dropped"] == 3
    torch.testing.assert_close(dropped.weight.double(), a, rtol=0, atol=0.05)
    kept = fit_activations(x, y, documents, mask=mask, drop_sinks=False)
    assert kept.report.harvest["sinks_dropped"] == 0
    assert float((kept.weight.double() - a).abs().max()) > 0.5


def test_each_side_may_have_its_own_precision() -> None:
    a, _, x, y, documents = planted(noise=0.0)
    for sides in ((x.float(), y), (x, y.float()), (x.float(), y.bfloat16())):
        actual = fit_activations(*sides, documents)
        torch.testing.assert_close(actual.weight.double(), a, rtol=0, atol=1e-2)


ACTIVATIONS_REFUSED: list[tuple[str, Callable[[Tensor, Tensor, list[int]], dict[str, Any]]]] = [
    ("not of the same positions", lambda x, y, ids: {"source": x[1:], "target": y, "document_ids": ids}),
    ("1999 document ids do not fit", lambda x, y, ids: {"source": x, "target": y, "document_ids": ids[1:]}),
    (r"must be \[position, d_model\]", lambda x, y, ids: {"source": x[:, 0], "target": y, "document_ids": ids}),
    ("the source is a cache: say with hook_names", lambda x, y, ids: {"source": {}, "target": y, "document_ids": ids}),
    (
        r"target's cache holds no 'blocks.2.hook_resid_post'",
        lambda x, y, ids: {"source": x, "target": {"other": y}, "document_ids": ids, "hook_names": NAMES},
    ),
    (
        "is not a point of the residual stream",
        lambda x, y, ids: {"source": x, "target": y, "document_ids": ids, "hook_names": ("unembed", NAMES[1])},
    ),
    (
        r"mask \(1999,\) does not fit",
        lambda x, y, ids: {"source": x, "target": y, "document_ids": ids, "mask": torch.ones(1999)},
    ),
    (
        "the mask leaves none",
        lambda x, y, ids: {"source": x, "target": y, "document_ids": ids, "mask": torch.zeros(2000)},
    ),
    ("source.*NaN", lambda x, y, ids: {"source": x / torch.tensor(0.0), "target": y, "document_ids": ids}),
    ("target.*NaN", lambda x, y, ids: {"source": x, "target": y * float("nan"), "document_ids": ids}),
    ("cannot determine a map of 12", lambda x, y, ids: {"source": x[:14], "target": y[:14], "document_ids": ids[:14]}),
    ("activations of one side do not vary", lambda x, y, ids: {"source": x, "target": y * 0 + 1, "document_ids": ids}),
]


@pytest.mark.parametrize(("message", "arguments"), ACTIVATIONS_REFUSED)
def test_activations_that_cannot_be_fitted_are_refused(message: str, arguments: Callable[..., dict[str, Any]]) -> None:
    _, _, x, y, documents = planted(noise=0.1)
    with pytest.raises(LrtError, match=message):
        fit_activations(**arguments(x, y, documents))


def test_models_without_hook_names_are_refused(bridges: tuple[Any, Any]) -> None:
    _, _, x, y, documents = planted(noise=0.1, d_source=16, d_target=24)
    with pytest.raises(LrtError, match="say with hook_names where in the models"):
        fit_activations(x, y, documents, models=bridges)
    _, _, x, y, documents = planted(noise=0.1)
    with pytest.raises(LrtError, match=r"small L1 to large L2 has shape \(24, 16\), not \(20, 12\)"):
        fit_activations(x, y, documents, hook_names=NAMES, models=bridges)


def test_activations_with_gradients_build_no_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 4, generator=generator, requires_grad=True)
    fitted = fit_activations(x, 2 * x, range(800))
    assert not fitted.weight.requires_grad
    torch.testing.assert_close(fitted.weight, 2 * torch.eye(4), rtol=0, atol=1e-4)


def test_what_is_not_finite_in_hand_is_named_with_its_document() -> None:
    x = torch.randn(80, 10, 4, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[33, 7, 1] = float("nan")
    names = [f"doc{number}" for number in range(80)]
    mask = torch.ones(80, 10, dtype=torch.bool)
    with pytest.raises(LrtError, match=r"the target, .*NaN or infinite in document doc33"):
        fit_activations(x, y, names, mask=mask)
    mask[33] = False
    assert fit_activations(x, y, names, mask=mask).report.test_r2 > 0.999


@hooked_only
def test_one_class_on_either_side(folders: tuple[Path, Path], bridges: tuple[Any, Any], texts: list[str]) -> None:
    alike = fit_ridge(*bridges, texts, layers=(1, 2))
    hooked = [load_model(folder, model_class="hooked") for folder in folders]
    for source, target in ((hooked[0], bridges[1]), (bridges[0], hooked[1])):
        mixed = fit_ridge(source, target, texts, layers=(1, 2))
        torch.testing.assert_close(mixed.weight, alike.weight, rtol=0, atol=1e-4)
        assert mixed.report.test_r2 == pytest.approx(alike.report.test_r2, abs=1e-4)


def test_layers_are_selected_from_those_that_are_offered(bridges: tuple[Any, Any], texts: list[str]) -> None:
    moments = harvest_moments(*bridges, texts, layers=((0, 1, 2), 2))
    chosen = fit_moments(moments, method="ridge", select_layers=True)
    path = chosen.report.layers_tried
    assert {name for name, _ in path} == {"small L0", "small L1", "small L2"}
    singles = {layer: fit_ridge(*bridges, texts, layers=(layer, 2)).report.cv_r2 for layer in range(3)}
    best = max(singles, key=lambda layer: singles[layer])
    assert path[0] == (f"small L{best}", pytest.approx(singles[best], abs=1e-6))
    layers = [int(site.hook_name.split(".")[1]) for site in chosen.sources]
    plain = fit_ridge(*bridges, texts, layers=(layers, 2))
    assert_same_map(chosen, plain)
    assert "layers, in the order tried" in chosen.summary()
    assert "layers, in the order tried" not in plain.summary()


def test_several_target_layers_have_a_map_each(bridges: tuple[Any, Any], texts: list[str]) -> None:
    maps = fit_affine_maps(*bridges, texts, layers=((0, 1), (1, 3)), method="least_squares")
    for found, layer in zip(maps, (1, 3), strict=True):
        assert_same_map(found, fit_affine_map(*bridges, texts, layers=((0, 1), layer), method="least_squares"))
    with without_type_checks(), pytest.raises(LrtError, match="a map ends at one layer"):
        fit_ridge(*bridges, texts, layers=(1, (1, 3)))  # type: ignore[arg-type]
    with pytest.raises(LrtError, match="2 targets: say which"):
        fit_moments(harvest_moments(*bridges, texts, layers=(1, (1, 3))))


def squares(states: Tensor) -> Tensor:
    """Features: states, and the squares of three of them."""
    return torch.cat([states, states[:, :3].square()], 1)


def test_features_of_the_source_are_mapped(
    bridges: tuple[Any, Any], huggingface: tuple[Any, Any], texts: list[str]
) -> None:
    positions = one_at_a_time(huggingface, rows_of(texts), LAYERS)
    wanted = reference.Positions(
        np.hstack([positions.source, positions.source[:, :3] ** 2]),
        positions.target,
        positions.splits,
        positions.tokens,
    )
    actual = fit_ridge(*bridges, texts, layers=LAYERS, features=squares)
    assert_is(actual, reference.fit(wanted))
    assert str(actual.source).startswith("small L1 squares ")
    assert actual.source.d_model == 19


def test_features_with_weights_of_their_own_keep_no_gradients(bridges: tuple[Any, Any], texts: list[str]) -> None:
    layer = torch.nn.Linear(16, 8)
    moments = harvest_moments(*bridges, texts[:40], layers=LAYERS, features=layer).moments
    assert not any(tensor.requires_grad for tensor in (*moments.sums.values(), *moments.products.values()))


def first_row(states: Tensor) -> Tensor:
    return states[:1]


def nothing_finite(states: Tensor) -> Tensor:
    return states / 0


@pytest.mark.parametrize(
    ("layers", "features", "message"),
    [
        (((0, 1), 2), squares, "features= is of one source layer, and there are 2"),
        (LAYERS, first_row, r"must make \[position, d_features\] of \[position, d_model\], not \(1, 16\)"),
        (LAYERS, nothing_finite, "the features of source:blocks.1.hook_resid_post"),
    ],
)
def test_features_that_are_none_are_refused(
    bridges: tuple[Any, Any], some_texts: list[str], layers: Any, features: Any, message: str
) -> None:
    with pytest.raises(LrtError, match=message):
        fit_ridge(*bridges, some_texts, layers=layers, features=features)


def test_an_autoencoders_features_are_mapped() -> None:
    """The experiment of Bello et al. (2025, section 4.3): from a sparse autoencoder of the source to the target."""
    autoencoder = storyworld.load_autoencoder("small")
    layer = int(autoencoder.hook_name.split(".")[1])
    small, large = storyworld.load("small"), storyworld.load("large")
    actual = fit_ridge(
        small, large, storyworld.documents(300, seed=3), layers=(layer, 4), features=autoencoder.encode, batch_size=64
    )
    assert actual.d_source == autoencoder.d_sae
    assert actual.source.features.startswith("encode ")
    assert actual.report.test_r2 > 0.2


def test_a_map_from_some_of_the_sources_is_that_of_a_pass_over_them_alone(bridges: Any, texts: list[str]) -> None:
    harvested = harvest_moments(*bridges, texts, layers=((0, 1, 2), (1, 2)))
    some = fit_moments(harvested, sources=harvested.sources[1:2], target=harvested.targets[1], method="ridge")
    alone = fit_ridge(*bridges, texts, layers=(1, 2))
    torch.testing.assert_close(some.weight, alone.weight, rtol=1e-3, atol=1e-4)
    assert (some.sources, some.target) == (alone.sources, alone.target)
    for sources in ([], harvested.targets[:1]):
        with pytest.raises(LrtError, match="the moments are of small L0"):
            fit_moments(harvested, sources=sources, target=harvested.targets[1])
    with pytest.raises(LrtError, match="the moments are of small L0"):
        fit_moments(harvested, target=harvested.sources[0])
