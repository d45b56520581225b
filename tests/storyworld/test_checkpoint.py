"""Checkpoints: back to the last bit, whole or not at all, and of this recipe only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrt_tl.errors import LrtError
from lrt_tl.storyworld import checkpoint
from lrt_tl.storyworld.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.storyworld.test_recipe import TINY

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch.optim.Muon")


class Run:
    """A linear layer with both optimizers, fitted to random targets."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(6, 4)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon([self.model.weight], lr=0.1),
            "adam": torch.optim.AdamW([self.model.bias], lr=0.1, fused=True),
        }

    def steps(self, n: int, first: int) -> None:
        for number in range(first, first + n):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
            self.model.zero_grad()
            torch.autograd.backward((self.model(x) - x[:, :4].roll(1, 1)).square().mean())
            for optimizer in self.optimizers.values():
                optimizer.step()

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def test_without_a_checkpoint_a_run_starts_from_scratch(tmp_path: Path) -> None:
    run = Run()
    before = run.weights()
    assert load_checkpoint(tmp_path / "none.safetensors", TINY, run.model, run.optimizers) == Progress()
    assert all(map(torch.equal, run.weights(), before))


@pytest.mark.parametrize("taken", [0, 3])
def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path: Path, taken: int) -> None:
    path, whole, stopped, other = tmp_path / "new" / "checkpoint.safetensors", Run(), Run(), Run(seed=1)
    progress = Progress(step=taken, chunk=2, batch=5, tokens=10**10, documents=7, loss=0.1, seconds=2.5)
    whole.steps(taken + 4, first=0)
    stopped.steps(taken, first=0)
    save_checkpoint(path, TINY, stopped.model, stopped.optimizers, progress)
    assert load_checkpoint(path, TINY, other.model, other.optimizers) == progress
    other.steps(4, first=taken)
    assert all(map(torch.equal, other.weights(), whole.weights()))
    assert not any(map(torch.equal, other.weights(), stopped.weights()))


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run, path = Run(), tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TINY, run.model, run.optimizers, Progress())
    with pytest.raises(LrtError, match="with other values of muon_lr, tokens: remove it"):
        load_checkpoint(path, replace(TINY, tokens=2000, muon_lr=0.1), run.model, run.optimizers)


def test_a_checkpoint_that_is_not_finished_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = Run(), tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TINY, run.model, run.optimizers, Progress(step=1))

    def killed(tensors: Any, file: Path, **options: Any) -> None:
        Path(file).write_bytes(b"half of i")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, TINY, run.model, run.optimizers, Progress(step=2))
    assert load_checkpoint(path, TINY, run.model, run.optimizers).step == 1
