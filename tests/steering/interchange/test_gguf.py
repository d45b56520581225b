"""Control vectors: against the format written by hand, and beside the `gguf` package and repeng."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import Site
from lrt_tl.steering.interchange.gguf import load_gguf, save_gguf
from lrt_tl.steering.vector import SteeringVector
from tests.steering.interchange.examples import directions, vectors_of

D_MODEL = 24


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key("general.architecture", 8, text("controlvector"))


def by_hand(
    path: Path,
    tensors: dict[str, list[float]],
    *,
    keys: tuple[bytes, ...] = (ARCHITECTURE,),
    kind: int = 0,
    n_dims: int = 1,
    version: int = 3,
    n_keys: int | None = None,
    alignment: int = 32,
) -> Path:
    """GGUF as its specification has it: header, keys, descriptions of tensors, and their aligned data."""
    infos, data = b"", b""
    for name, row in tensors.items():
        infos += text(name) + struct.pack(f"<I{n_dims}QIQ", n_dims, *[len(row)] * n_dims, kind, len(data))
        data += struct.pack(f"<{len(row)}f", *row)
        data += bytes(-len(data) % alignment)
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys) if n_keys is None else n_keys)
    header += b"".join(keys) + infos
    path.write_bytes(header + bytes(-len(header) % alignment) + data)
    return path


def row(seed: int = 0) -> list[float]:
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed)).tolist()


def test_direction_n_is_what_comes_out_of_block_n_counted_from_0(bridges: Any, tmp_path: Path) -> None:
    """llama.cpp keeps direction.N at row N − 1 of a table, and reads row il − 1 after block il of a loop from 0."""
    model, table = bridges[1], {1: row(1), 3: row(3)}
    path = by_hand(tmp_path / "v.gguf", {f"direction.{layer}": table[layer] for layer in (3, 1)})
    first, third = load_gguf(path, model)
    data = np.zeros(3 * D_MODEL, np.float32)
    for layer, numbers in table.items():
        data[D_MODEL * (layer - 1) :][:D_MODEL] += np.float32(numbers)
    for vector, il in ((first, 1), (third, 3)):
        assert vector.site.hook_name == f"blocks.{il}.hook_resid_post"
        np.testing.assert_array_equal(vector.direction, data[D_MODEL * (il - 1) :][:D_MODEL])
        vector.check_model(model)
    tokens = torch.tensor([[1, 7, 9]])
    _, before = model.run_with_cache(tokens)
    with third.apply(model):
        _, after = model.run_with_cache(tokens)
    last = "blocks.3.hook_resid_post"
    torch.testing.assert_close(after[last] - before[last], third.direction.expand(1, 3, -1), atol=1e-4, rtol=1e-4)


def test_what_is_written_is_read_back(bridges: Any, tmp_path: Path) -> None:
    vectors = vectors_of(bridges[1], 3, 1)
    path = save_gguf(vectors, tmp_path / "new" / "v.gguf", model_type="gpt2")
    found = load_gguf(path, bridges[1])
    assert [vector.site for vector in found] == [vectors[1].site, vectors[0].site]
    assert all(torch.equal(direction, directions(vectors)[name]) for name, direction in directions(found).items())
    assert found[0].provenance == {"method": "gguf", "model_hint": "gpt2"}
    assert [file.name for file in path.parent.iterdir()] == ["v.gguf"]
    with pytest.raises(ArtifactError, match="exists already"):
        save_gguf(vectors, path, model_type="gpt2")


def test_what_comes_before_a_block_is_what_came_out_of_the_one_before(bridges: Any, tmp_path: Path) -> None:
    site = Site("blocks.3.hook_resid_pre", D_MODEL)
    path = save_gguf([SteeringVector(torch.ones(D_MODEL), site)], tmp_path / "v.gguf", model_type="gpt2")
    assert load_gguf(path, bridges[1])[0].site.hook_name == "blocks.2.hook_resid_post"


def test_the_gguf_package_reads_it_and_writes_what_is_read(bridges: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    vectors = vectors_of(bridges[1], 1, 2)
    reader = gguf.GGUFReader(save_gguf(vectors, tmp_path / "ours.gguf", model_type="gpt2"))
    fields = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "gpt2",
        "controlvector.layer_count": 2,
    }
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    for tensor, vector in zip(reader.tensors, vectors, strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, vector.direction)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "gpt2")
    writer.add_array("some.words", ["one", "two"])
    writer.add_array("some.numbers", [1, 2, 3])
    for vector, layer in zip(vectors, (1, 2), strict=True):
        writer.add_tensor(f"direction.{layer}", vector.direction.numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    found = load_gguf(tmp_path / "theirs.gguf", bridges[1])
    assert all(torch.equal(direction, directions(vectors)[name]) for name, direction in directions(found).items())


def test_repeng_reads_it_and_steers_the_same(
    bridges: Any, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4 was written for numpy 1
    repeng = pytest.importorskip("repeng")
    from transformers import AutoModelForCausalLM

    vectors, tokens = vectors_of(bridges[1], 1, 2), torch.tensor([[1, 7, 9, 4]])
    theirs = repeng.ControlVector.import_gguf(save_gguf(vectors, tmp_path / "ours.gguf", model_type="gpt2"))
    model = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32).eval()
    controlled = repeng.ControlModel(model, [1, 2])
    controlled.set_control(theirs, 1.5)
    with torch.no_grad():
        expected = controlled(tokens).logits
    with vectors[0].apply(bridges[1], 1.5), vectors[1].apply(bridges[1], 1.5):
        torch.testing.assert_close(bridges[1](tokens), expected, atol=2e-4, rtol=1e-4)
    theirs.export_gguf(tmp_path / "theirs.gguf")
    found = load_gguf(tmp_path / "theirs.gguf", bridges[1])
    assert all(torch.equal(direction, directions(vectors)[name]) for name, direction in directions(found).items())


@pytest.mark.parametrize(
    ("tensors", "settings", "error", "message"),
    [
        ({"direction.0": row()}, {}, ArtifactError, r"tensor 'direction\.0'"),
        ({"direction.-1": row()}, {}, ArtifactError, "tensor 'direction.-1'"),
        ({"blk.0.weight": row()}, {}, ArtifactError, "is not a direction.N"),
        ({"direction.1": row()}, {"kind": 1}, ArtifactError, "GGML's type 1"),
        ({"direction.1": row()}, {"n_dims": 2}, ArtifactError, "of 2 axes"),
        ({"direction.1": row(), "direction.01": row()}, {}, ArtifactError, "'direction.01'"),
        ({"direction.1": row()[:-1]}, {}, MismatchError, "has 23 dimensions, and large L1 has 24"),
        ({"direction.4": row()}, {}, MismatchError, "layer 4 is out of range"),
        ({"direction.1": [0.0] * D_MODEL}, {}, ArtifactError, "is zero"),
        ({"direction.1": [float("nan"), *row()[1:]]}, {}, ArtifactError, "NaN or infinity"),
        ({}, {}, ArtifactError, "no direction"),
        ({"direction.1": row()}, {"version": 1}, ArtifactError, "version 1"),
        ({"direction.1": row()}, {"version": 3 << 24}, ArtifactError, "big-endian"),
        ({"direction.1": row()}, {"n_keys": 2**63}, ArtifactError, "cannot be read as a GGUF control vector"),
        ({"direction.1": row()}, {"keys": ()}, ArtifactError, "architecture None"),
        ({"direction.1": row()}, {"keys": (ARCHITECTURE, ARCHITECTURE)}, ArtifactError, "twice"),
        (
            {"direction.1": row()},
            {"keys": (key("general.architecture", 8, text("llama")),)},
            ArtifactError,
            "architecture 'llama'",
        ),
        (
            {"direction.1": row()},
            {"keys": (ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 0)))},
            ArtifactError,
            "aligns tensors to 0",
        ),
        (
            {"direction.1": row()},
            {"keys": (key("many", 9, struct.pack("<IQ", 0, 2**62)), ARCHITECTURE)},
            ArtifactError,
            "it ends before the 4611686018427387904 bytes",
        ),
    ],
)
def test_files_that_are_no_control_vector_of_the_model_are_refused(
    bridges: Any, tmp_path: Path, tensors: Any, settings: Any, error: type[LrtError], message: str
) -> None:
    path = by_hand(tmp_path / "v.gguf", tensors, **settings)
    with pytest.raises(error, match=message):
        load_gguf(path, bridges[1])


def test_other_keys_and_another_alignment_are_read(bridges: Any, tmp_path: Path) -> None:
    keys = (
        ARCHITECTURE,
        key("general.alignment", 4, struct.pack("<I", 64)),
        key("words", 9, struct.pack("<IQ", 8, 2) + text("one") + text("two")),
        key("numbers", 9, struct.pack("<IQ3H", 2, 3, 1, 2, 3)),
        key("yes", 7, b"\1"),
    )
    path = by_hand(tmp_path / "v.gguf", {"direction.2": row(2)}, keys=keys, alignment=64)
    (vector,) = load_gguf(path, bridges[1])
    assert torch.equal(vector.direction, torch.tensor(row(2)))


def test_vectors_that_the_format_cannot_say_are_refused(bridges: Any, tmp_path: Path) -> None:
    path, (first,) = tmp_path / "v.gguf", vectors_of(bridges[1], 1)
    middle = SteeringVector(torch.ones(D_MODEL), Site("blocks.2.hook_resid_mid", D_MODEL))
    for vectors, message in (
        ([], "there are no vectors"),
        (vectors_of(bridges[1], 0), "after block 0"),
        ([first, first], "two are at large L1"),
        ([middle], "at the output of a block"),
        ([SteeringVector(torch.ones(D_MODEL), Site("", D_MODEL))], "at the output of a block"),
        ([first, *vectors_of(bridges[0], 2)], "of two models"),
    ):
        with pytest.raises(LrtError, match=message):
            save_gguf(vectors, path, model_type="gpt2")
    assert not list(tmp_path.iterdir())
