"""What the harvest yields and counts. The fit's tests show that it is right; here is what they cannot see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment import forward as module
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import harvest_moments
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.deferred import DeferredModel
from lrt_tl.models.loading import load_model
from lrt_tl.text.documents import Exclusion, read_documents, split_of
from tests.checkpoints import WORDS

SOURCE, TARGET = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"), ("blocks.2.hook_resid_post",)


def harvest(bridges: tuple[Any, Any], texts: Sequence[str], **options: Any) -> Harvest:
    return Harvest(*bridges, SOURCE, TARGET, read_documents(list(texts)), **{"context_length": 64, **options})


def run(some: Harvest) -> tuple[dict[str, Tensor], Tensor, HarvestCounts]:
    """All activations of one pass, the splits of their positions, and the counts."""
    counts = HarvestCounts()
    parts = list(some.run(some.calibrate(), counts))
    states = {key.split(":")[1]: torch.cat([part.states[key] for part in parts]) for key in parts[0].states}
    return states, torch.cat([part.splits for part in parts]), counts


def test_one_pass_yields_all_hook_points_at_the_same_positions(bridges: tuple[Any, Any], texts: list[str]) -> None:
    states, splits, counts = run(harvest(bridges, texts[:30]))
    n = sum(len(text.split()) for text in texts[:30])
    assert {name: some.shape for name, some in states.items()} == {
        SOURCE[0]: (n, 16), SOURCE[1]: (n, 16), TARGET[0]: (n, 24)
    }  # fmt: skip
    assert {some.dtype for some in states.values()} == {torch.float32}
    for split in range(7):
        words = sum(len(text.split()) for text in texts[:30] if split_of(text) == split)
        assert int((splits == split).sum()) == words
    assert (counts.documents, counts.positions, counts.special_dropped) == (30, n, 30)


def test_calibration_depends_on_neither_order_nor_batches(bridges: tuple[Any, Any], texts: list[str]) -> None:
    one = harvest(bridges, texts).calibrate()
    other = harvest(bridges, texts[::-1], batch_size=3).calibrate()
    for key, mean in one.means.items():
        assert one.median_norms[key] == pytest.approx(other.median_norms[key], rel=1e-6)
        torch.testing.assert_close(mean, other.means[key], rtol=1e-5, atol=1e-6)


def test_calibration_is_near_the_median_and_mean_of_all(bridges: tuple[Any, Any], texts: list[str]) -> None:
    some = harvest(bridges, texts[:40])  # fewer than the sample, which is therefore all of them
    calibration, (states, _, counts) = some.calibrate(), run(some)
    for key, mean in calibration.means.items():
        at = states[key.split(":")[1]]
        assert calibration.median_norms[key] == pytest.approx(float(at.norm(dim=1).median()), rel=1e-6)
        torch.testing.assert_close(mean.double(), at.double().mean(0), rtol=1e-5, atol=1e-6)
    assert counts.median_norms == calibration.median_norms


def test_sinks_do_not_move_the_means(
    bridges: tuple[Any, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 products are only as good as the point about which they are taken."""
    calm = harvest(bridges, texts[:40]).calibrate()
    original = module.capture

    def with_sinks(model: Any, tokens: Tensor, mask: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {
            name: torch.where((tokens == 7)[..., None], 1000 * states, states)
            for name, states in original(model, tokens, mask, names).items()
        }

    monkeypatch.setattr(module, "capture", with_sinks)
    planted = harvest(bridges, texts[:40]).calibrate()
    for key, mean in planted.means.items():
        assert float((mean - calm.means[key]).norm()) < 0.1 * calm.median_norms[key]


def test_a_long_document_is_calibrated_by_its_beginning(
    bridges: tuple[Any, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = module.capture

    def counting(model: Any, tokens: Tensor, mask: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        seen.append(int(mask.sum()))
        return original(model, tokens, mask, names)

    monkeypatch.setattr(module, "capture", counting)
    harvest(bridges, [" ".join(texts[:50])]).calibrate()
    assert seen == [64, 64]  # one row of each model


def test_exclusion_holds_for_the_calibration_too(bridges: tuple[Any, Any], texts: list[str]) -> None:
    texts = texts[:20]
    without = harvest(bridges, texts[10:])
    excluding = harvest(bridges, texts, exclude=Exclusion(texts[:10]))
    ours, theirs = excluding.calibrate(), without.calibrate()
    assert ours.median_norms == pytest.approx(theirs.median_norms)
    assert run(excluding)[2].documents_excluded == 10


def test_documents_of_special_tokens_only_are_refused(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="special tokens only"):
        harvest(bridges, ["unknown words", "no others"]).calibrate()


def test_documents_come_in_their_order_if_nothing_is_sorted(bridges: tuple[Any, Any], texts: list[str]) -> None:
    some = harvest(bridges, texts[:50], sorted_together=1)
    positions = [len(part.splits) for part in some.run(some.calibrate(), HarvestCounts())]
    assert positions == [
        sum(len(text.split()) for text in texts[start : min(start + 16, 50)]) for start in (0, 16, 32, 48)
    ]


WANTED = [WORDS.index(word) for word in ("word3", "word11", "word20", "word21")]


POSITIONS: list[Any] = [{"tokens": WANTED}, {"not": {"first": 3}}, {"prompt": {"at": [2, 4, 5]}}]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("sequential", [False, True])
def test_selected_positions_are_those_of_all(
    bridges: tuple[Any, Any], folders: tuple[Path, Path], texts: list[str], positions: Any, sequential: bool
) -> None:
    some = sorted(texts[:40], key=lambda text: len(text.split()))  # as one batch has them
    in_order = {"batch_size": 40, "sorted_together": 1}
    everything, splits, of_all = run(harvest(bridges, some, **in_order))
    models: Any = bridges
    if sequential:
        loaders = [lambda folder=folder: load_model(folder) for folder in folders]
        models = [DeferredModel(load, model.cfg, model.tokenizer) for load, model in zip(loaders, bridges, strict=True)]
    states, kept_splits, counts = run(harvest(models, some, positions=positions, **in_order))
    words = [(n, word) for text in some for n, word in enumerate(text.split(), start=1)]
    chosen = torch.tensor([chooses(positions, n, word) for n, word in words])
    assert 0 < chosen.sum() < len(chosen)
    for name, of_selected in states.items():
        torch.testing.assert_close(of_selected, everything[name][chosen])
    assert torch.equal(kept_splits, splits[chosen])
    assert counts.tokens_not_selected == int((~chosen).sum())
    assert counts.positions + counts.tokens_not_selected == of_all.positions
    assert counts.special_dropped == of_all.special_dropped
    table, whole = counts.summary(), of_all.summary()
    assert table["tokens of the source"] == whole["tokens of the source"]
    assert table["tokens not selected"].startswith(f"{counts.tokens_not_selected:,} (")
    assert counts.norms_kept[f"source:{SOURCE[0]}"].count == counts.positions
    assert counts.settings["positions"] == positions
    assert "positions" not in of_all.settings


def chooses(positions: Any, n: int, word: str) -> bool:
    """The n-th token of a row, which begins with <s>."""
    if "tokens" in positions:
        return WORDS.index(word) in WANTED
    return n in (2, 4, 5) if "prompt" in positions else n > 2


def test_the_means_and_medians_are_of_the_selected(bridges: tuple[Any, Any], texts: list[str]) -> None:
    some = harvest(bridges, texts[:40], positions={"tokens": WANTED})
    calibration, (states, *_) = some.calibrate(), run(some)
    for key, mean in calibration.means.items():
        at = states[key.split(":")[1]]
        assert calibration.median_norms[key] == pytest.approx(float(at.norm(dim=1).median()), rel=1e-6)
        torch.testing.assert_close(mean.double(), at.double().mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "generated"}, "texts are given, and have no 'generated' to select"),
        ({"positions": {"prompt": "all", "generated": "all"}}, "have no 'generated' to select"),
        ({"positions": {"not": {"mask": [True]}}}, "have no 'mask' to select"),
        ({"positions": {"somewhere": 1}}, "must have one key"),
        ({"positions": {"last": 1}, "layout": "pack"}, "are of one document, and layout='pack' puts several in a row"),
    ],
    ids=str,
)
def test_positions_that_documents_have_not_are_refused(
    bridges: tuple[Any, Any], texts: list[str], options: Any, message: str
) -> None:
    with pytest.raises(LrtError, match=message):
        harvest(bridges, texts, **options)


def test_positions_that_select_nothing_are_refused(bridges: tuple[Any, Any], texts: list[str]) -> None:
    with pytest.raises(LrtError, match=r"or nothing that positions=\{'first': 1\} selects"):
        harvest(bridges, texts, positions={"first": 1}).calibrate()  # which is <s>


def test_moments_that_were_read_elsewhere_are_refused(
    bridges: tuple[Any, Any], texts: list[str], tmp_path: Path
) -> None:
    at = {"layers": (1, 2)}
    whole = harvest_moments(*bridges, texts, checkpoint=tmp_path, **at)
    selected = harvest_moments(*bridges, texts, positions={"tokens": WANTED}, **at)
    assert selected.counts.positions < whole.counts.positions
    with pytest.raises(MismatchError, match="read in different ways"):
        whole.merge(selected)
    with pytest.raises(LrtError, match=r"holds a pass with another positions: positions was all, and is \{'tokens'"):
        harvest_moments(*bridges, texts, checkpoint=tmp_path, positions={"tokens": WANTED}, **at)


def test_a_pass_over_selected_positions_goes_on(bridges: tuple[Any, Any], texts: list[str], tmp_path: Path) -> None:
    """Batches in which nothing is selected are no end of it."""
    options: dict[str, Any] = {"layers": (1, 2), "positions": {"tokens": [WORDS.index("word3")]}, "batch_size": 2}
    whole = harvest_moments(*bridges, texts[:60], **options)
    kept = harvest_moments(*bridges, texts[:60], checkpoint=tmp_path, **options)
    again = harvest_moments(*bridges, texts[:60], checkpoint=tmp_path, **options)
    for moments in (kept, again):
        assert moments.counts == whole.counts
        assert torch.equal(moments.moments.count, whole.moments.count)
        for pair, product in whole.moments.products.items():
            assert torch.equal(moments.moments.products[pair], product)
