"""Recipes: what one takes from another, what is refused, and how the learning rates rise and fall."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld import recipe as module
from lrt_tl.storyworld.recipe import Recipe, read_recipe, recipe_names

TINY = Recipe(
    "tiny", d_model=32, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=64, tokenizer="word", vocabulary="plain",
    seed=1, data_seed=1, tokens=1000, batch_tokens=10, muon_lr=0.03, adam_lr=0.02,
)  # fmt: skip
FILE = {
    "one": {key: value for key, value in TINY.as_dict().items() if key != "name"},
    "two": {"like": "one", "seed": 2},
    "three": {"like": "two", "d_model": 64},
    "odd": {"like": "one", "depth": 3},
    "bare": {"d_model": 32},
    "here": {"like": "there"},
    "there": {"like": "here"},
    "lost": {"like": "nowhere"},
}


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read_file", lambda: FILE)


@pytest.mark.usefixtures("file")
def test_a_recipe_is_like_another_but_for_what_it_states() -> None:
    assert read_recipe("one") == replace(TINY, name="one")
    assert read_recipe("two") == replace(TINY, name="two", seed=2)
    assert read_recipe("three") == replace(TINY, name="three", seed=2, d_model=64)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("four", "no recipe 'four': choose one of one, two, three"),
        ("odd", "odd has the unknown fields depth"),
        ("bare", "bare lacks n_layers, n_heads, .*adam_lr: state them, or take them with `like`"),
        ("here", "here is like there is like here: let one of them stand by itself"),
        ("lost", "no recipe 'nowhere'"),
    ],
)
def test_a_file_that_gives_no_recipe_is_refused(name: str, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        read_recipe(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "byte_pair", "vocabulary": "permuted"}, "only words can be permuted"),
        ({"n_layers": 0}, "n_layers is 0, and must be 1 or more"),
        ({"tokens": -1}, "tokens is -1"),
        ({"d_model": 30}, "2 heads of an even width must divide d_model=30"),
        ({"d_model": 34, "n_heads": 2}, "must divide d_model=34"),
        ({"n_heads": 4, "n_key_value_heads": 3}, "3 key-value heads the heads"),
        ({"sharpen": 0.0}, r"sharpen is 0\.0, and must be above 0"),
        ({"stop_at": 0.0}, r"stop_at=0\.0 must be above 0"),
        ({"stop_at": 1.1}, r"stop_at=1\.1"),
        ({"warmup_share": 0.5, "decay_share": 0.6}, r"warmup_share=0\.5 with decay_share=0\.6 at most 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(("warmup", "decay"), [(0.1, 0.5), (0.02, 0.98), (0.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_the_learning_rate_rises_stays_and_falls_in_straight_lines(warmup: float, decay: float) -> None:
    recipe = replace(TINY, warmup_share=warmup, decay_share=decay)
    middles = (np.arange(100) + 0.5) / 100
    corners = [-1e-12, warmup, 1 - decay, 1 + 1e-12]  # a share of 0 is a step up, or down
    expected = np.interp(middles, corners, [0.0, 1.0, 1.0, 0.0])
    assert recipe.total_steps == recipe.steps == 100
    np.testing.assert_allclose([recipe.learning_rate_factor(step) for step in range(100)], expected, atol=1e-9)


def test_a_recipe_of_less_than_a_batch_takes_one_step() -> None:
    assert replace(TINY, tokens=3).steps == replace(TINY, tokens=19, stop_at=0.1).steps == 1


# The shipped recipes


def test_all_shipped_recipes_can_be_read_and_have_names_of_their_own() -> None:
    assert {"small", "medium", "large", "large-b", "large-alt", "medium-early", "medium-foreign"} <= set(recipe_names())
    assert [read_recipe(name).name for name in recipe_names()] == recipe_names()


def test_medium_early_is_the_first_three_hundredths_of_medium() -> None:
    medium, early = read_recipe("medium"), read_recipe("medium-early")
    assert replace(early, name="medium", stop_at=1.0) == medium
    assert early.steps == round(0.03 * medium.steps) < medium.steps == medium.total_steps
    factors = [[recipe.learning_rate_factor(step) for step in range(early.steps)] for recipe in (medium, early)]
    assert factors[0] == factors[1]


@pytest.mark.parametrize(
    ("name", "like", "fields"),
    [
        ("large-b", "large", {"seed", "data_seed"}),
        ("large-alt", "large", {"tokenizer"}),
        ("medium-foreign", "medium", {"vocabulary"}),
    ],
)
def test_controls_differ_in_one_thing(name: str, like: str, fields: set[str]) -> None:
    one, other = read_recipe(name).as_dict(), read_recipe(like).as_dict()
    different = {key for key in one if one[key] != other[key]}
    assert different - {"batch_tokens"} == fields | {"name"}  # rows of byte pairs are longer than those of words
