"""What an older version has written still loads, and holds the numbers that it was made with."""

import functools
import operator
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.artifacts import FORMAT_VERSION, load_artifact, save_artifact
from lrt_tl.errors import ArtifactError
from tests.fixtures.write import ARTIFACTS

FIXTURES = Path(__file__).parent / "fixtures"
KEPT = sorted(FIXTURES.glob("format-*/*"))


def assert_equal(found: Any, made: Any) -> None:
    """Field by field, tensors bit for bit."""
    assert type(found) is type(made)
    if isinstance(made, torch.Tensor):
        assert torch.equal(found, made)
    elif hasattr(made, "__dataclass_fields__"):
        for name in made.__dataclass_fields__:
            assert_equal(getattr(found, name), getattr(made, name))
    elif isinstance(made, dict):
        assert found.keys() == made.keys()
        for key in made:
            assert_equal(found[key], made[key])
    elif isinstance(made, tuple):
        assert len(found) == len(made)
        for one, other in zip(found, made, strict=True):
            assert_equal(one, other)
    else:
        assert found == made


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_every_format_gives_the_numbers_that_it_was_made_with(folder: Path) -> None:
    made = ARTIFACTS[folder.name]()
    assert_equal(type(made).load(folder), as_of(folder.parent.name, made))


def as_of(version: str, made: Any) -> Any:
    """What a format could hold."""
    if version == "format-1" and isinstance(made, AffineMap):
        return replace(made, source_covariance=None)
    if version == "format-1" and hasattr(made, "maps"):
        return replace(made, maps=tuple(as_of(version, each) for each in made.maps))
    return made


WRONG: list[Any] = [None, "x", 7, -1, True, [], {}, [1, "a"], {"a": 1}]


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every entry of JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places_of(inner, (*path, key))


@pytest.mark.filterwarnings("ignore:the map was fitted on:UserWarning")
@pytest.mark.parametrize("name", ["steering_vector", "probe", "steering", "affine_map", "affine_maps"])
def test_an_entry_of_another_type_is_refused_or_does_no_harm(name: str, tmp_path: Path) -> None:
    """Every entry of `config.json` in turn, under a checksum that fits, so that the class itself must look."""
    made = ARTIFACTS[name]()
    config, tensors = load_artifact(made.save(tmp_path / "whole"), kind=name)
    body = {key: value for key, value in config.items() if key not in ("library", "format_version", "kind")}
    refused = []
    for path, value in product(places_of(body), WRONG):
        changed = deepcopy(body)
        functools.reduce(operator.getitem, path[:-1], changed)[path[-1]] = value
        folder = save_artifact(tmp_path / "changed", kind=name, config=changed, tensors=tensors, card="")
        try:
            repr(type(made).load(folder))
        except ArtifactError:
            refused.append(path)
        shutil.rmtree(folder)
    assert {path[0] for path in refused} >= body.keys()


def test_every_artifact_of_every_format_is_kept() -> None:
    assert {folder.name for folder in FIXTURES.glob("format-*")} == {f"format-{n + 1}" for n in range(FORMAT_VERSION)}
    assert {path.name for path in (FIXTURES / f"format-{FORMAT_VERSION}").iterdir()} == set(ARTIFACTS)
