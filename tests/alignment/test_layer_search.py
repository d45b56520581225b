"""All pairs at once, against fits of single pairs; and the null."""

from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.alignment.layer_search import LayerSearch, memory_needed, search_layers, shuffle_within
from lrt_tl.errors import LrtError


@pytest.fixture(scope="module")
def found(bridges: tuple[Any, Any], texts: list[str]) -> LayerSearch:
    return search_layers(*bridges, texts, n_nulls=5, context_length=64)


@pytest.mark.parametrize("pair", [(0, 0), (2, 3), (1, 2)])
def test_every_pair_is_as_if_it_were_fitted_alone(
    found: LayerSearch, bridges: tuple[Any, Any], texts: list[str], pair: tuple[int, int]
) -> None:
    alone = fit_affine_map(*bridges, texts, layers=pair, context_length=64, method="ridge").report
    assert float(found.cv_r2[pair]) == pytest.approx(alone.cv_r2, abs=1e-5)
    assert float(found.test_r2[pair]) == pytest.approx(alone.test_r2, abs=1e-5)
    assert found.positions == alone.harvest["positions"]


def test_the_best_pair_is_that_of_the_highest_r2_in_cross_validation(found: LayerSearch) -> None:
    source, target = found.best
    assert float(found.cv_r2[source, target]) == float(found.cv_r2.max())
    assert found.cv_r2.shape == found.test_r2.shape == found.cka.shape == (3, 4)
    assert f"small L{source} → large L{target}" in repr(found)
    assert [list(row) for row in found.rows()] == [["", "L0", "L1", "L2", "L3"]] * 3


def test_a_model_maps_to_itself_better_than_any_shuffle(bridges: tuple[Any, Any], texts: list[str]) -> None:
    found = search_layers(
        bridges[0], bridges[0], texts, source_layers=[0, 2], target_layers=[0, 1], n_nulls=4, context_length=64
    )
    assert found.best == (0, 0)
    assert float(found.test_r2[0, 0]) > 1 - 1e-4
    assert float(found.cka[0, 0]) == pytest.approx(1, abs=1e-6)
    assert found.sample_best > 0.99
    assert max(found.null_best) < 0.3
    assert "rank 1 of 5" in str(found.summary())


def test_a_sketch_sees_what_all_dimensions_see(bridges: tuple[Any, Any], texts: list[str]) -> None:
    """A random projection to as many dimensions as there are is a rotation, which changes no R²."""
    options: dict[str, Any] = {"source_layers": [1], "target_layers": [2], "n_nulls": 1, "context_length": 64}
    whole = search_layers(*bridges, texts, **options)
    rotated = search_layers(*bridges, texts, sketch=24, **options)
    torch.testing.assert_close(rotated.cv_r2, whole.cv_r2, atol=1e-4, rtol=0)
    torch.testing.assert_close(rotated.cka, whole.cka, atol=1e-4, rtol=0)
    narrow = search_layers(*bridges, texts, sketch=4, **options)
    assert "random projection to 4 dimensions" in str(narrow.summary())


def test_what_does_not_fit_is_refused_before_the_models_run(
    bridges: tuple[Any, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        available = 10_000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    monkeypatch.setattr("lrt_tl.alignment.forward.capture", lambda *_: pytest.fail("a model was run"))
    with pytest.raises(
        LrtError, match=r"3 × 4 pairs of layers, and of a null, take 0\.00086 GB, and 1e-05 are free.*sketch=512"
    ):
        search_layers(*bridges, texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_nulls": 0}, "needs a null to be compared with: n_nulls=0"),
        ({"source_layers": []}, "must be one or more different ones"),
        ({"target_layers": [1, 1]}, "must be one or more different ones"),
    ],
)
def test_a_search_without_layers_or_null_is_refused(
    bridges: tuple[Any, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LrtError, match=message):
        search_layers(*bridges, ["text"], **change)


def test_the_memory_of_gemmas_full_grid() -> None:
    assert memory_needed((26, 42), (2304, 3584)) / 7 > 72e9  # of one split


def test_shuffles_stay_within_their_texts() -> None:
    rows = torch.tensor([0, 0, 0, 2, 2, 5, 5, 5, 5, 5])
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([shuffle_within(rows, generator) for _ in range(200)])
    assert bool((rows[orders] == rows).all())
    assert bool((orders.sort(1).values == torch.arange(10)).all())
    assert {tuple(order[:3].tolist()) for order in orders} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip


def test_a_name_in_the_heat_map_is_text(found: LayerSearch) -> None:
    title = replace(found, target="<b>large</b>").figure().layout.title.text
    assert "&lt;b&gt;large" in title


def test_the_heat_map_shows_every_pair(found: LayerSearch) -> None:
    figure = found.figure("cka")
    torch.testing.assert_close(torch.tensor(figure.data[0].z), found.cka)
    assert "large" in figure.layout.title.text
    assert "<table" in found._repr_html_()
