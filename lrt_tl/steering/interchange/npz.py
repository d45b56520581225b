"""Vectors as numpy's `.npz`: ours, which say what they are, and plain ones of others.

Ours hold an array for each vector, named by number and place (`0 blocks.3.hook_resid_post`), and a string, `lrt_tl`:
JSON with the site, residual norm, provenance and report of each. `numpy.load(path, allow_pickle=False)` reads them.
"""

import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from lrt_tl.artifacts import new_file, reading, typed
from lrt_tl.errors import ArtifactError, LrtError
from lrt_tl.models.identity import Site
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.interchange.directions import sites_at, vector_at
from lrt_tl.steering.separation import ExtractionReport
from lrt_tl.steering.vector import SteeringVector

_ABOUT = "lrt_tl"
_LARGEST = 2**28  # bytes of all arrays of a file; a thousand vectors of 64k dimensions in float32


def save_npz(vectors: Sequence[SteeringVector], path: str | Path) -> Path:
    """Write vectors, with all that is known of them, to one `.npz` file.

    Raises:
        ArtifactError: `path` exists already.
        LrtError: there are no vectors.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> import torch
        >>> import lrt_tl as lrt
        >>> vector = lrt.from_directions(lrt.load_model("storyworld-small"), torch.ones(64), layer=2)
        >>> with TemporaryDirectory() as folder, np.load(lrt.save_npz([vector], Path(folder) / "ones.npz")) as arrays:
        ...     print(arrays.files)
        ['lrt_tl', '0 blocks.2.hook_resid_post']
    """
    if not vectors:
        raise LrtError("there are no vectors to save")
    about = [
        {
            "site": vector.site.to_json(),
            "residual_norm": vector.residual_norm,
            "provenance": vector.provenance,
            "report": None if vector.report is None else vector.report.to_json(),
        }
        for vector in vectors
    ]
    arrays = {_name(index, vector.site): vector.direction.numpy() for index, vector in enumerate(vectors)}
    text = np.array(json.dumps({"format_version": 1, "vectors": about}, allow_nan=False))
    with new_file(path) as file:
        np.savez(file, allow_pickle=False, **{_ABOUT: text}, **arrays)
    return Path(path)


def load_npz(
    path: str | Path, model: HookedModel | None = None, *, layer: int | None = None, hook_name: str | None = None
) -> list[SteeringVector]:
    """Read vectors from a `.npz` file. Nothing is unpickled, and no more room is made than the file's arrays need.

    Args:
        model: a file of `save_npz` knows its model, and need not be given one; if it is, they must agree. A file of
            others needs a model, and one place for all its arrays `[d_model]`, whose names go into the provenance.
        layer: the residual stream after this block; or `hook_name`.

    Raises:
        ArtifactError: it is no whole `.npz` file, or an array is no row of finite floating-point numbers.
        MismatchError: the vectors are of another model or width than the one given, or the model lacks the layer.
        LrtError: a model or a place is missing, or given where the file says it.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> import lrt_tl as lrt
        >>> vector = lrt.from_directions(lrt.load_model("storyworld-small"), torch.ones(64), layer=2)
        >>> with TemporaryDirectory() as folder:
        ...     path = lrt.save_npz([vector], Path(folder) / "ones.npz")
        ...     print(lrt.load_npz(path))
        [SteeringVector(storyworld-small L2, 64 dimensions, norm 8, given)]
    """
    with reading(path, "an .npz file"):
        arrays = _arrays(path)
    if _ABOUT in arrays:
        if layer is not None or hook_name is not None:
            raise LrtError(f"{path} says itself where its vectors are: leave out layer and hook_name")
        vectors = _ours(arrays, path)
        for vector in vectors if model is not None else []:
            vector.check_model(model)  # type: ignore[arg-type]
        return vectors
    if model is None or (layer is None) == (hook_name is None):
        raise LrtError(f"{path} does not say where its arrays belong: give a model, and a layer or a hook name")
    (site,) = sites_at(model, [hook_name if layer is None else layer], what=str(path))  # type: ignore[list-item]
    return [
        vector_at(site, _tensor(array, what), {"method": "npz", "name": name}, what=what)
        for name, array in arrays.items()
        for what in [f"{name} of {path}"]
    ]


def _ours(arrays: dict[str, Any], path: str | Path) -> list[SteeringVector]:
    with reading(path, "vectors that lrt_tl saved"):
        about = json.loads(str(arrays.pop(_ABOUT)))
        if about["format_version"] != 1:
            raise ValueError(f"its format version is {about['format_version']}; this lrt_tl reads 1")
        sites = [Site.from_json(each["site"]) for each in about["vectors"]]
        if list(arrays) != [_name(index, site) for index, site in enumerate(sites)]:
            raise ValueError("its arrays are not those that it names")
        bare = [
            vector_at(site, _tensor(array, name), each["provenance"], what=name)
            for (name, array), site, each in zip(arrays.items(), sites, about["vectors"], strict=True)
        ]
        return [typed(replace(vector, **_known(each))) for vector, each in zip(bare, about["vectors"], strict=True)]


def _known(about: dict[str, Any]) -> dict[str, Any]:
    report = None if about["report"] is None else ExtractionReport.from_json(about["report"])
    return {"residual_norm": about["residual_norm"], "report": report}


def _arrays(path: str | Path) -> dict[str, Any]:
    """The arrays by name."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if (size := sum(member.file_size for member in members)) > _LARGEST:
            raise ValueError(f"its arrays declare {size:,} bytes, and at most {_LARGEST:,} are read")
        arrays = {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    if not arrays or len(arrays) < len(members):
        raise ValueError("it holds no arrays" if not arrays else "it holds two arrays of one name")
    return arrays


def _array(content: bytes) -> Any:
    """The array of a `.npy` file. numpy's own reader makes room for what the header declares before it looks."""
    file = io.BytesIO(content)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    shape, _, dtype = read_header(file)
    if dtype.hasobject or len(content) - file.tell() != dtype.itemsize * math.prod(shape):
        raise ValueError(f"an array of {dtype} {shape} does not take {len(content) - file.tell()} bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def _tensor(array: Any, what: str) -> Tensor:
    """The numbers as a tensor, whichever order their bytes are in."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ArtifactError(f"{what} holds {array.dtype}, no floating-point numbers of 16 to 64 bits")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _name(index: int, site: Site) -> str:
    return f"{index} {site.hook_name}".strip()
