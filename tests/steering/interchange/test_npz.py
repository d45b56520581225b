"""`.npz`: what numpy reads of ours, what we read of numpy's, and what is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.steering.interchange.npz import load_npz, save_npz
from tests.steering.interchange.examples import vectors_of


def test_what_is_written_is_read_back_whole(bridges: Any, tmp_path: Path) -> None:
    vectors = vectors_of(bridges[1], 3, 1, 1)
    path = save_npz(vectors, tmp_path / "v.npz")
    for found in (load_npz(path), load_npz(path, bridges[1])):
        for ours, read in zip(vectors, found, strict=True):
            assert torch.equal(ours.direction, read.direction)
            assert (ours.site, ours.residual_norm, ours.provenance) == (read.site, read.residual_norm, read.provenance)
            assert ours.report == read.report
        assert found[0].report is not None
    with pytest.raises(MismatchError):
        load_npz(path, bridges[0])
    with pytest.raises(LrtError, match="says itself where"):
        load_npz(path, bridges[1], layer=1)
    with pytest.raises(ArtifactError, match="exists already"):
        save_npz(vectors, path)
    with pytest.raises(LrtError, match="no vectors"):
        save_npz([], tmp_path / "none.npz")
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_reads_ours(bridges: Any, tmp_path: Path) -> None:
    vectors = vectors_of(bridges[1], 3, 1)
    with np.load(save_npz(vectors, tmp_path / "v.npz"), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["0 blocks.3.hook_resid_post", "1 blocks.1.hook_resid_post", "lrt_tl"]
        np.testing.assert_array_equal(arrays["1 blocks.1.hook_resid_post"], vectors[1].direction)
        assert json.loads(str(arrays["lrt_tl"]))["vectors"][0]["provenance"] == {"n": 3}


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_own_arrays_are_read_at_one_place(bridges: Any, tmp_path: Path, dtype: str, save: Any) -> None:
    rows = {"happy": np.arange(24).astype(dtype), "sad": -np.arange(24).astype(dtype)}
    save(tmp_path / "v.npz", **rows)
    happy, sad = load_npz(tmp_path / "v.npz", bridges[1], hook_name="blocks.2.hook_in")
    assert happy.site.hook_name == sad.site.hook_name == "blocks.2.hook_resid_pre"
    assert (happy.provenance["name"], sad.provenance["name"]) == ("happy", "sad")
    assert torch.equal(happy.direction, torch.arange(24.0))
    assert torch.equal(sad.direction, -torch.arange(24.0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(23), "has 23 dimensions"),
        (np.ones((1, 24)), "the shape"),
        (np.ones(24, dtype=int), "no floating-point"),
        (np.ones(24, dtype=complex), "no floating-point"),
        (np.array(["a"] * 24), "no floating-point"),
        (np.ones(24, dtype=np.longdouble), "no floating-point"),
        (np.array("a"), "no floating-point"),
        (np.array(1.0), "the shape"),
        (np.full(24, np.inf), "NaN or infinity"),
        (np.zeros(24), "is zero"),
    ],
)
def test_arrays_that_are_no_direction_are_refused(bridges: Any, tmp_path: Path, array: Any, message: str) -> None:
    np.savez(tmp_path / "v.npz", array)
    with pytest.raises(LrtError, match=message):
        load_npz(tmp_path / "v.npz", bridges[1], layer=1)


def test_a_plain_file_needs_a_model_and_one_place(bridges: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", np.ones(24))
    for given in ({}, {"model": bridges[1]}, {"layer": 1}, {"model": bridges[1], "layer": 1, "hook_name": "x"}):
        with pytest.raises(LrtError, match="give a model, and a layer or a hook name"):
            load_npz(tmp_path / "v.npz", **given)
    with pytest.raises(MismatchError, match="layer 4 is out of range"):
        load_npz(tmp_path / "v.npz", bridges[1], layer=4)


def test_pickles_bombs_and_false_sizes_are_refused_unread(bridges: Any, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "executed").touch, ())

    np.savez(tmp_path / "pickled.npz", np.array([Malicious()] * 24, dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}.npy", bytes(2**23))
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "declared.npz", "w") as archive:
        archive.writestr("a.npy", header + bytes(192))
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    for name, message in (
        ("pickled", "does not take"),
        ("bomb", "declare 335,544,320 bytes"),
        ("declared", "does not take 192 bytes"),
        ("empty", "holds no arrays"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_npz(tmp_path / f"{name}.npz", bridges[1], layer=1)
    assert not (tmp_path / "executed").exists()
