"""What the harvest yields and counts. The fit's tests show that it is right; here is what they cannot see."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment import forward as module
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.errors import LrtError
from lrt_tl.text.documents import Exclusion, read_documents, split_of

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
