"""Control vectors of llama.cpp and repeng: GGUF files of the architecture `controlvector`.

A file holds a float32 tensor `direction.N` for each layer. N is the number of the block, counted from 0, to whose
output it is added: `blocks.N.hook_resid_post`. For llama.cpp (`llama_adapter_cvec::apply`, `build_cvec`) copies
`direction.N` to `tensors[N]`, and adds `tensors[il]` after the last addition of block `il`, which counts from 0; and
repeng (`ControlModel.set_control`) adds it to what `layers[N]` returns. Block 0 has none: llama.cpp refuses
`direction.0`. (Its own `cvector-generator` writes what it found after block N − 1 as `direction.N`, which is added
after block N, here as there.)

The format (version 3, little-endian) is read and written here, and no further than the file reaches: the `gguf` package
believes the lengths that a damaged file declares, and can run on without end.
"""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from lrt_tl.artifacts import new_file, reading
from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.interchange.directions import by_output_layer, sites_at, vector_at
from lrt_tl.steering.vector import SteeringVector

_ARCHITECTURE = "controlvector"
_ALIGNMENT = 32  # of tensors in the file, unless it says otherwise
_FLOAT32 = 0
_UINT32, _STRING, _ARRAY = 4, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NAME = re.compile(r"direction\.([1-9][0-9]{0,5})")


def save_gguf(vectors: Sequence[SteeringVector], path: str | Path, *, model_type: str) -> Path:
    """Write vectors as one control vector, for `llama-cli --control-vector` and repeng's `ControlVector.import_gguf`.

    Args:
        vectors: at outputs of blocks (`layer=L`), one for each layer that is steered. What llama.cpp adds is the
            vector itself times its own `--control-vector-scaled` strength.
        model_type: the model's architecture as its `config.json` calls it, such as `llama`; a hint for readers.

    Raises:
        ArtifactError: `path` exists already.
        LrtError: there are no vectors, two at one layer, or one after block 0, which the format cannot say, or
            elsewhere in a block.
        MismatchError: they are not of one model.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> pairs = storyworld.contrast_pairs("refusal", 8)
        >>> vectors = lrt.mean_difference(lrt.load_model("storyworld-small"), pairs, layer=[1, 2])
        >>> with TemporaryDirectory() as folder:
        ...     path = lrt.save_gguf(vectors, Path(folder) / "refusal.gguf", model_type="gpt_neox")
        ...     print(path.name, path.read_bytes()[:4])
        refusal.gguf b'GGUF'
    """
    directions = {layer: v.direction for layer, v in by_output_layer(vectors, what="a GGUF control vector").items()}
    if 0 in directions:
        raise LrtError(
            "a GGUF control vector cannot steer after block 0 (direction.0 is refused): choose a later layer"
        )
    keys = [_text("general.architecture") + _u32(_STRING) + _text(_ARCHITECTURE)]
    keys += [_text(f"{_ARCHITECTURE}.model_hint") + _u32(_STRING) + _text(model_type)]
    keys += [_text(f"{_ARCHITECTURE}.layer_count") + _u32(_UINT32) + _u32(len(directions))]
    infos, data = [], b""
    for layer, direction in directions.items():
        infos.append(_text(f"direction.{layer}") + _u32(1) + _u64(len(direction)) + _u32(_FLOAT32) + _u64(len(data)))
        data += _padded(direction.numpy().astype("<f4").tobytes())
    header = b"GGUF" + _u32(3) + _u64(len(infos)) + _u64(len(keys)) + b"".join([*keys, *infos])
    with new_file(path) as file:
        file.write(_padded(header) + data)
    return Path(path)


def load_gguf(path: str | Path, model: HookedModel) -> list[SteeringVector]:
    """Read a control vector of repeng or llama.cpp: a vector for each layer, in order.

    Args:
        model: the model that the vectors are of. The file does not say more than `model_hint`, so only the width and
            the number of layers can be checked.

    Raises:
        ArtifactError: it is not a whole GGUF file with a control vector in float32.
        MismatchError: it has another width than the model, or layers that the model lacks.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> import lrt_tl as lrt
        >>> model = lrt.load_model("storyworld-small")
        >>> vector = lrt.from_directions(model, torch.ones(64), layer=2)
        >>> with TemporaryDirectory() as folder:
        ...     path = lrt.save_gguf([vector], Path(folder) / "ones.gguf", model_type="gpt_neox")
        ...     print(lrt.load_gguf(path, model))
        [SteeringVector(storyworld-small L2, 64 dimensions, norm 8, gguf)]
    """
    with reading(path, "a GGUF control vector"), open(path, "rb") as file:
        hint, directions = _read(file)
    places = sorted(directions)
    sites = sites_at(model, places, what=str(path))
    made = {"method": "gguf", "model_hint": hint}
    return [
        vector_at(site, torch.from_numpy(directions[layer]), made, what=f"direction.{layer} of {path}")
        for layer, site in zip(places, sites, strict=True)
    ]


def _read(file: BinaryIO) -> tuple[str | None, dict[int, Any]]:
    """The hint, and directions by layer."""
    if _take(file, 4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := _number(file, "I")) not in (2, 3):
        raise ValueError(f"it is of version {version} (or big-endian); 2 and 3 are read here")
    n_tensors, n_keys = _number(file, "Q"), _number(file, "Q")
    found: dict[str, Any] = {}
    for _ in range(n_keys):  # a key that is not there ends the file, whatever number of them it declares
        key = _string(file)
        if key in found:
            raise ValueError(f"it holds {key!r} twice")
        found[key] = _value(file, _number(file, "I"))
    if found.get("general.architecture") != _ARCHITECTURE:
        raise ValueError(f"it is of the architecture {found.get('general.architecture')!r}, not {_ARCHITECTURE!r}")
    infos = dict(_tensor_info(file) for _ in range(n_tensors))
    if not infos or len(infos) < n_tensors:
        raise ValueError("it holds no direction" if not infos else "it holds two directions for one layer")
    alignment = found.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise ValueError(f"it aligns tensors to {alignment!r} bytes")
    start = -(-file.tell() // alignment) * alignment
    hint = found.get(f"{_ARCHITECTURE}.model_hint")
    directions = {layer: _direction(file, start + offset, width) for layer, (width, offset) in infos.items()}
    return hint if isinstance(hint, str) else None, directions


def _tensor_info(file: BinaryIO) -> tuple[int, tuple[int, int]]:
    """Layer, width and offset of a direction."""
    name, n_dims = _string(file), _number(file, "I")
    match = _NAME.fullmatch(name)
    if match is None or n_dims != 1:
        raise ValueError(f"its tensor {name!r} of {n_dims} axes is not a direction.N, N from 1, of one axis")
    width, kind, offset = _number(file, "Q"), _number(file, "I"), _number(file, "Q")
    if kind != _FLOAT32:
        raise ValueError(f"{name} is of GGML's type {kind}, and only float32 (0) is read here")
    return int(match[1]), (width, offset)


def _direction(file: BinaryIO, start: int, width: int) -> Any:
    file.seek(min(start, _size(file)))
    return np.frombuffer(_take(file, 4 * width), "<f4").astype(np.float32)


def _value(file: BinaryIO, kind: int) -> Any:
    """A value of the header; None for arrays, which are passed over."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _NUMBERS[kind])
    of, length = _number(file, "I"), _number(file, "Q")
    if of == _STRING:
        for _ in range(length):
            _string(file)
    else:
        _take(file, length * struct.calcsize(_NUMBERS[of]))
    return None


def _take(file: BinaryIO, n_bytes: int) -> bytes:
    """The next bytes; more than the file still has are never asked for, since room would be made for them."""
    if n_bytes > _size(file) - file.tell():
        raise ValueError(f"it ends before the {n_bytes} bytes that it declares at byte {file.tell()}")
    return file.read(n_bytes)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", _take(file, struct.calcsize(f"<{code}")))[0]


def _string(file: BinaryIO) -> str:
    return _take(file, _number(file, "Q")).decode()


def _u32(number: int) -> bytes:
    return struct.pack("<I", number)


def _u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _u64(len(encoded)) + encoded


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)
