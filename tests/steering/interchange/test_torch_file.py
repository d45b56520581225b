"""Files of `torch.save`: tensors, and nothing that runs."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.errors import ArtifactError, LrtError
from lrt_tl.steering.interchange.torch_file import load_pt

ROW = torch.arange(24.0)


@pytest.mark.parametrize("content", [ROW, {"direction": ROW}, torch.nn.Parameter(ROW), ROW.double(), ROW.bfloat16()])
def test_one_tensor_is_read_at_the_place_that_is_given(bridges: Any, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "v.pt")
    for place in ({"layer": 2}, {"hook_name": "blocks.2.hook_out"}):
        (vector,) = load_pt(tmp_path / "v.pt", bridges[1], **place)
        assert vector.site.hook_name == "blocks.2.hook_resid_post"
        assert torch.equal(vector.direction, ROW)
        assert not vector.direction.requires_grad
        vector.check_model(bridges[1])
    for place in ({}, {"layer": 2, "hook_name": "blocks.2.hook_out"}):
        with pytest.raises(LrtError, match="give a layer or a hook name"):
            load_pt(tmp_path / "v.pt", bridges[1], **place)


@pytest.mark.parametrize("keys", [(3, 1), ("3", "1"), ("blocks.3.hook_resid_post", "blocks.1.hook_out")])
def test_a_dict_by_layers_says_itself_where_its_tensors_are(bridges: Any, tmp_path: Path, keys: Any) -> None:
    torch.save({keys[0]: ROW, keys[1]: 2 * ROW}, tmp_path / "v.pt")
    third, first = load_pt(tmp_path / "v.pt", bridges[1])
    assert (third.site.hook_name, first.site.hook_name) == ("blocks.3.hook_resid_post", "blocks.1.hook_resid_post")
    assert torch.equal(first.direction, 2 * ROW)
    with pytest.raises(LrtError, match="leave out layer"):
        load_pt(tmp_path / "v.pt", bridges[1], layer=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW[:-1], "has 23 dimensions"),
        (ROW[None], "the shape"),
        (ROW.long(), r"torch\.int64"),
        (ROW.to_sparse(), "no tensor of numbers"),
        (ROW / 0, "NaN or infinity"),
        ({"a": ROW, "b": ROW}, r"holds a dict with the keys \['a', 'b'\]"),
        ({}, "holds a dict"),
        ([ROW], "holds a list"),
        ({7: ROW}, "layer 7 is out of range"),
        ({-1: ROW}, "layer -1 is out of range"),
        ({"blocks.1.hook_mlp_out": ROW}, "is not a point of the residual stream"),
        (torch.ones(1).expand(2**40), "has 1099511627776 dimensions"),
    ],
)
def test_what_is_no_direction_is_refused(bridges: Any, tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    placed = isinstance(content, dict) and any(key not in ("a", "b") for key in content)
    with pytest.raises(LrtError, match=message):
        load_pt(tmp_path / "v.pt", bridges[1], **({} if placed else {"layer": 1}))


def test_nothing_in_a_file_is_run_and_no_bomb_is_opened(bridges: Any, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "executed").touch, ())

    torch.save(Malicious(), tmp_path / "malicious.pt")
    torch.save(Malicious(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(ROW, tmp_path / "stored.pt")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, bomb:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    for name, message in (
        ("malicious", "cannot be read"),
        ("old", "not of the zip format"),
        ("bomb", "members are compressed"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_pt(tmp_path / f"{name}.pt", bridges[1], layer=1)
    assert not (tmp_path / "executed").exists()
