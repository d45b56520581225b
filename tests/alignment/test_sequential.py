"""Two models of which one is in memory at a time."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.alignment import forward as module
from lrt_tl.alignment.fit import fit_affine_map, harvest_moments
from lrt_tl.alignment.learning_curve import learning_curve
from lrt_tl.errors import LrtError
from lrt_tl.models.loading import load_model
from tests.unchecked import without_type_checks

LAYERS = ((0, 1), (1, 2))


class Loaders:
    """Functions that load the two models, and note when, and how many are in memory then."""

    def __init__(self, folders: tuple[Path, Path]) -> None:
        self.loads: list[str] = []
        self.alive: list[int] = []
        self._models: list[weakref.ref[Any]] = []
        self.both: tuple[Callable[[], Any], Callable[[], Any]] = (
            lambda: self._load(folders[0]),
            lambda: self._load(folders[1]),
        )

    def _load(self, folder: Path) -> Any:
        self.alive.append(sum(model() is not None for model in self._models))
        model = load_model(folder)
        self.loads.append(folder.name)
        self._models.append(weakref.ref(model))
        return model


@pytest.fixture
def loaders(folders: tuple[Path, Path]) -> Iterator[Loaders]:
    """Before each model all memory is searched for the one before it; not for what other tests have left."""
    gc.collect()
    gc.freeze()
    yield Loaders(folders)
    gc.unfreeze()


def test_the_moments_are_the_same_bit_for_bit(
    loaders: Loaders, bridges: tuple[Any, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", 100_000)
    options: dict[str, Any] = {"layers": LAYERS, "batch_size": 8}
    found = harvest_moments(*loaders.both, texts[:100], sequential=True, **options)
    wanted = harvest_moments(*bridges, texts[:100], **options)
    assert torch.equal(found.moments.count, wanted.moments.count)
    for name, total in wanted.moments.sums.items():
        assert torch.equal(found.moments.sums[name], total)
    for pair, product in wanted.moments.products.items():
        assert torch.equal(found.moments.products[pair], product)
    assert (found.counts, found.sources, found.targets) == (wanted.counts, wanted.sources, wanted.targets)


def test_one_model_is_in_memory_at_a_time(loaders: Loaders, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at, then serves the calibration, then each group of batches in turn."""
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", 100_000)
    harvest_moments(*loaders.both, texts[:100], layers=LAYERS, sequential=True, batch_size=8)
    assert loaders.loads == ["small", "large"] * (len(loaders.loads) // 2)
    assert len(loaders.loads) // 2 >= 1 + 2 + 3
    assert loaders.alive == [0] * len(loaders.alive)


def test_nothing_is_left_on_disk(
    loaders: Loaders, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    learning_curve(*loaders.both, texts, layers=(1, 2), sequential=True)
    assert not list(tmp_path.iterdir())
    seen = []

    def failing(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(list(tmp_path.rglob("*.safetensors"))))
        return states / 0 if len(seen) == 7 else states  # two looks at it, the calibration, and the fourth batch

    with pytest.raises(LrtError, match="hold NaN or infinity"):
        harvest_moments(*loaders.both, texts, layers=(1, 2), sequential=True, batch_size=8, features=failing)
    assert seen[-1] > 0
    assert not list(tmp_path.iterdir())


def test_models_and_what_loads_them_are_not_mistaken(
    loaders: Loaders, bridges: tuple[Any, Any], some_texts: list[str]
) -> None:
    for models, sequential in ((bridges, True), (loaders.both, False), ((bridges[0], loaders.both[1]), True)):
        with pytest.raises(LrtError, match="with sequential=True, source and target are functions that load"):
            fit_affine_map(*models, some_texts, layers=(1, 2), sequential=sequential)
    names: Any = (lambda: "gpt2", loaders.both[1])
    with without_type_checks(), pytest.raises(LrtError, match="a TransformerLens model was to be loaded, not str"):
        fit_affine_map(*names, some_texts, layers=(1, 2), sequential=True)


@pytest.fixture(scope="module")
def some_texts(texts: list[str]) -> list[str]:
    return texts[:40]
