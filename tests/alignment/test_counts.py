"""The report of positions: every token is accounted for, and norms are those of Hugging Face's models."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrt_tl.alignment import forward as module
from lrt_tl.alignment.activations import fit_activations
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.counts import HarvestCounts, Norms
from lrt_tl.alignment.fit import fit_affine_map
from tests.checkpoints import WORDS

LAYERS = (1, 2)
KEYS = tuple(f"{side}:blocks.{layer}.hook_resid_post" for side, layer in zip(("source", "target"), LAYERS, strict=True))
SINK, FACTOR, ROOM = WORDS.index("word4"), 50.0, 15


@pytest.fixture(scope="module")
def known(texts: list[str]) -> list[str]:
    """Texts with a word that the tokenizer does not know, which is special."""
    return [text.replace("word7", "seven") for text in texts]


@pytest.fixture
def fitted(bridges: tuple[Any, Any], known: list[str], monkeypatch: pytest.MonkeyPatch) -> AffineMap:
    """With a planted sink in the source, and documents cut off after 15 tokens."""
    original = module.capture

    def with_sinks(model: Any, tokens: Tensor, mask: Tensor, names: list[str]) -> dict[str, Tensor]:
        factor = torch.where((tokens == SINK) & (model is bridges[0]), FACTOR, 1.0)[..., None]
        return {name: factor * states for name, states in original(model, tokens, mask, names).items()}

    monkeypatch.setattr(module, "capture", with_sinks)
    return fit_affine_map(*bridges, known, layers=LAYERS, context_length=ROOM + 1, layout="truncate")


@torch.no_grad()
def norms_by_hand(folders: tuple[Path, Path], rows: list[list[int]]) -> list[np.ndarray]:
    """Of each model: at all tokens of these rows, one after the other, the norm of the residual stream."""
    sides = []
    for folder, layer in zip(folders, LAYERS, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        states = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[layer + 1][0] for row in rows]
        sides.append(torch.cat(states).double().norm(dim=-1).numpy())
    return sides


def test_every_token_is_accounted_for_and_norms_are_hugging_faces(
    fitted: AffineMap, folders: tuple[Path, Path], known: list[str]
) -> None:
    whole = [[WORDS.index(word) if word in WORDS else 0 for word in text.split()] for text in known]
    rows = [[1, *ids[:ROOM]] for ids in whole]
    tokens = np.concatenate(rows)
    sink, special = tokens == SINK, tokens < 3
    counts = HarvestCounts.from_json(fitted.report.harvest)
    assert counts.tokens_truncated == sum(max(0, len(ids) - ROOM) for ids in whole) > 0
    assert counts.special_dropped == special.sum() > len(rows)
    assert counts.sinks_dropped == sink.sum() > 10
    assert counts.positions == (~sink & ~special).sum()
    n_tokens = sum(map(len, whole)) + len(whole)
    kept = counts.positions + counts.special_dropped + counts.sinks_dropped + counts.tokens_truncated
    assert (kept, counts.tokens_unpaired) == (n_tokens, 0)
    source, target = norms_by_hand(folders, rows)
    for key, norms in zip(KEYS, (np.where(sink, FACTOR, 1) * source, target), strict=True):
        for actual, expected in (
            (counts.norms_before[key], norms),
            (counts.norms_kept[key], norms[~sink & ~special]),
        ):
            assert actual.count == len(expected)
            assert actual.mean == pytest.approx(expected.mean(), rel=1e-5)
            assert actual.largest == pytest.approx(expected.max(), rel=1e-5)

    table = fitted.report.harvested()
    assert table["tokens of the source"] == f"{n_tokens:,}"
    share = f"{counts.sinks_dropped} ({counts.sinks_dropped / n_tokens:.1%})"
    assert table["sinks left out (norm over 10× the median)"] == share
    largest = FACTOR * source[sink].max()
    assert f"largest {largest:,.2f} → {source[~sink & ~special].max():,.2f}" in table[f"norm, {KEYS[0]}"]
    assert "tokens cut off" in counts._repr_html_()


def test_a_saved_map_keeps_its_report(fitted: AffineMap, tmp_path: Path) -> None:
    loaded = AffineMap.load(fitted.save(tmp_path / "map"))
    assert loaded.report.harvested() == fitted.report.harvested()


def test_counts_add_up_and_the_largest_norm_is_the_larger() -> None:
    norms = torch.tensor([3.0, 1.0, float("nan"), 8.0, float("inf"), 2.0])
    parts = []
    for number, part in enumerate((norms[:3], norms[3:])):
        counts = HarvestCounts(documents=number + 1, positions=10, median_norms={"source:a": number + 2.0})
        counts.add_norms("source:a", part, part[:1])
        parts.append(counts)
    before = [asdict(part) for part in parts]
    merged = parts[0].merge(parts[1])
    assert [asdict(part) for part in parts] == before, "the parts are left as they are"
    assert (merged.documents, merged.positions, merged.median_norms) == (3, 20, {"source:a": 2.0})
    assert merged.norms_before == {"source:a": Norms(4, 14.0, 8.0)}
    assert merged.norms_kept == {"source:a": Norms(2, 11.0, 8.0)}
    assert HarvestCounts.from_json(json.loads(json.dumps(asdict(merged)))) == merged


def test_reports_without_norms_can_still_be_read() -> None:
    old = {"documents": 3, "positions": 10, "special_dropped": 2, "median_norms": {"source:a": 1.5}}
    table = HarvestCounts.from_json(old).summary()
    assert table["positions kept"] == "10 (83.3%)"
    assert table["norm, source:a"] == "median 1.50"


def test_activations_in_hand_are_reported_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 3, generator=generator), torch.randn(400, 2, generator=generator)
    x[7] *= 1000
    counts = HarvestCounts.from_json(fit_activations(x, y, [str(number) for number in range(400)]).report.harvest)
    assert (counts.positions, counts.sinks_dropped) == (399, 1)
    assert counts.norms_before["source:"].largest == pytest.approx(float(x[7].norm()))
    kept = x.norm(dim=1)[torch.arange(400) != 7]
    assert counts.norms_kept["source:"].mean == pytest.approx(float(kept.mean()))
    assert counts.norms_kept["target:"].count == 399
