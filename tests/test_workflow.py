"""A notebook of TransformerLens (cache, patch, generate), into which lrt_tl is added in three lines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lrt_tl as lrt
from tests.checkpoints import CLASSES

CLEAN, CORRUPTED = "word1 word2 word5", "word3 word2 word6"
HOOK = "blocks.2.hook_resid_post"
MINE = "blocks.1.hook_resid_post"


class Notebook:
    """What somebody had before: a model, a cache, a patch, a text, and a hook of their own that counts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: list[int] = []
        model.add_hook(MINE, lambda state, hook: self.seen.append(state.shape[1]))

    def cells(self) -> dict[str, Tensor]:
        model = self.model
        clean, corrupted = model.to_tokens(CLEAN), model.to_tokens(CORRUPTED)
        logits, cache = model.run_with_cache(clean)

        def patch(state: Tensor, hook: Any) -> Tensor:
            state[:, -1] = cache[MINE][:, -1]
            return state

        torch.manual_seed(0)
        return {
            "logits": logits,
            "states": cache[HOOK],
            "patched": model.run_with_hooks(corrupted, fwd_hooks=[(MINE, patch)]),
            "written": model.generate(clean, max_new_tokens=6, verbose=False, temperature=2.0),
            "drawn after": torch.rand(3),
        }


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    return [name for name, value in ours.items() if torch.equal(value, theirs[name])]


def surroundings(model: Any) -> dict[str, Any]:
    """All that a cell could notice."""
    return {
        "hooks": {name: len(point.fwd_hooks) + len(point.bwd_hooks) for name, point in model.hook_dict.items()},
        "training": model.training,
        "weights": [(weight.requires_grad, float(weight.detach().double().sum())) for weight in model.parameters()],
        "gradients": torch.is_grad_enabled(),
        "random": torch.random.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
    }


@pytest.fixture(params=CLASSES)
def models(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> tuple[Any, Any]:
    small, large = (lrt.load_model(folder, model_class=request.param) for folder in folders)
    return small, large


def test_three_lines_steer_and_disturb_nothing(models: tuple[Any, Any], files: dict[str, Path]) -> None:
    small, model = models
    notebook = Notebook(model)
    before, around = notebook.cells(), surroundings(model)
    lengths = list(notebook.seen)

    vector = lrt.mean_difference(small, files["contrast"], layer=2)
    vector = lrt.fit_affine_map(small, model, files["documents"], layers=(2, 2)).transport(vector)
    assert surroundings(model) == around, "finding and carrying a vector leaves the notebook as it was"

    notebook.seen.clear()
    handle = vector.attach(model, 40.0)
    steered = notebook.cells()
    assert equal(steered, before) == ["drawn after"]
    shift = (steered["states"] - before["states"])[0, 1:]  # the beginning of sequence is no text
    torch.testing.assert_close(shift, 40 * vector.direction.expand_as(shift), atol=1e-4, rtol=1e-4)
    assert notebook.seen == lengths, "their hook ran as often as before, on as much"

    handle.remove()
    assert surroundings(model)["hooks"] == around["hooks"]
    assert equal(notebook.cells(), before) == list(before), "to the last bit"


def test_it_stands_beside_their_own_hooks_and_gives_way_to_reset_hooks(models: tuple[Any, Any]) -> None:
    _, model = models
    tokens = model.to_tokens(CLEAN)
    vector = lrt.from_directions(model, torch.ones(1, model.cfg.d_model), layer=2)[0]
    scaled = (HOOK, lambda state, hook: 2 * state)
    plain = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    hooks = vector.hooks(1.0, tokens=tokens)
    states: dict[str, Tensor] = {}
    read = (HOOK, lambda state, hook: states.update(seen=state.clone()))
    with model.hooks(fwd_hooks=[*hooks, scaled, read]):
        model(tokens)
    torch.testing.assert_close(states["seen"][0, 1:], 2 * (plain[0, 1:] + vector.direction))
    vector.attach(model, 1.0)
    model.reset_hooks()
    assert torch.equal(model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK], plain)
