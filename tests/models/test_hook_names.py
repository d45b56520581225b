"""Every spelling of a point of the residual stream, on both classes, and what is refused."""

from typing import Any

import pytest

from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import check_writable, hook_point, layer_of, resolve_hook_name


def is_bridge(model: Any) -> bool:
    return hasattr(model, "original_model")


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ({"layer": 0}, "blocks.0.hook_resid_post"),
        ({"layer": 2}, "blocks.2.hook_resid_post"),
        ({"hook_name": "blocks.2.hook_out"}, "blocks.2.hook_resid_post"),
        ({"hook_name": "blocks.2.hook_resid_post"}, "blocks.2.hook_resid_post"),
        ({"hook_name": "blocks.1.hook_in"}, "blocks.1.hook_resid_pre"),
        ({"hook_name": "blocks.1.hook_resid_pre"}, "blocks.1.hook_resid_pre"),
    ],
)
def test_all_spellings_give_one_name_that_both_classes_have(pair: Any, asked: Any, resolved: str) -> None:
    for model in pair:
        assert resolve_hook_name(model, **asked) == resolved
        assert hook_point(model, resolved) is model.hook_dict[resolved]
        assert layer_of(resolved) == int(resolved.split(".")[1])
        check_writable(model, resolved)


def test_the_two_names_of_a_bridge_are_one_hook_point(bridges: Any) -> None:
    for model in bridges:
        for alias, canonical in [("resid_pre", "in"), ("resid_post", "out")]:
            assert hook_point(model, f"blocks.1.hook_{alias}") is hook_point(model, f"blocks.1.hook_{canonical}")


def test_the_middle_of_a_block_exists_where_its_parts_are_sequential(pair: Any) -> None:
    parallel, sequential = pair
    name = "blocks.1.hook_resid_mid"
    with pytest.raises(LrtError, match=r"small .* has no hook point 'blocks\.1\.hook_resid_mid'"):
        resolve_hook_name(parallel, hook_name=name)
    assert resolve_hook_name(sequential, hook_name=name) == name
    if is_bridge(sequential):
        with pytest.raises(LrtError, match=r"read but not steered on large .*'blocks\.1\.ln2\.hook_in'"):
            check_writable(sequential, name)
    else:
        check_writable(sequential, name)


@pytest.mark.parametrize("layer", [-1, 3, 100])
def test_a_layer_that_is_out_of_range(pair: Any, layer: int) -> None:
    with pytest.raises(LrtError, match=f"layer {layer} is out of range: small has layers 0 to 2"):
        resolve_hook_name(pair[0], layer=layer)


def test_a_hook_name_that_is_out_of_range(pair: Any) -> None:
    with pytest.raises(LrtError, match=r"'blocks\.3\.hook_out' is out of range: small has layers 0 to 2"):
        resolve_hook_name(pair[0], hook_name="blocks.3.hook_out")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.-1.hook_out",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid",
        "blocks.1.hook_out ",
        "hook_embed",
        "",
    ],
)
def test_a_name_that_is_no_point_of_the_residual_stream(pair: Any, name: str) -> None:
    with pytest.raises(LrtError, match="not a point of the residual stream"):
        resolve_hook_name(pair[0], hook_name=name)


def test_a_point_that_the_model_lacks(pair: Any) -> None:
    for model in pair:
        for name in ("blocks.9.hook_resid_post", "blocks.01.hook_resid_post", "nowhere"):
            with pytest.raises(LrtError, match="has no hook point"):
                hook_point(model, name)
    with pytest.raises(LrtError, match="not a point"):
        layer_of("hook_embed")


def test_a_layer_and_a_name_exclude_each_other(pair: Any) -> None:
    for asked in ({}, {"layer": 1, "hook_name": "blocks.1.hook_out"}):
        with pytest.raises(LrtError, match="a layer or a hook name, and not both"):
            resolve_hook_name(pair[0], **asked)
