"""Tensors that others saved with `torch.save`."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrt_tl.artifacts import reading
from lrt_tl.errors import ArtifactError, LrtError
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.interchange.directions import sites_at, vector_at
from lrt_tl.steering.vector import SteeringVector

_HOOK_NAME = re.compile(r"blocks\.\d+\.hook_\w+")


def load_pt(
    path: str | Path, model: HookedModel, *, layer: int | None = None, hook_name: str | None = None
) -> list[SteeringVector]:
    """Read a file of `torch.save`: a tensor `[d_model]`, a dict of one such tensor, or a dict of them by layer.

    The one place where something is unpickled, and only by `torch.load(weights_only=True)`, which makes tensors and
    containers and calls nothing else. Everything else that the package reads is never unpickled. Prefer safetensors.

    Args:
        model: the model that the vectors are of; only the width and the number of layers can be checked.
        layer: where a single tensor belongs, the residual stream after this block; or `hook_name`. A dict by layers
            (keys such as 13, "13" or "blocks.13.hook_resid_post") says so itself.

    Raises:
        ArtifactError: it is no whole file of torch's zip format, holds anything but that, or a tensor that is no row of
            finite floating-point numbers.
        MismatchError: it has another width than the model, or the model lacks the layer.
        LrtError: `layer` or `hook_name` is missing where it is needed, or given where the file says it, or both are.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> import lrt_tl as lrt
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "directions.pt"
        ...     torch.save({1: torch.ones(64), 2: torch.ones(64)}, path)
        ...     for vector in lrt.load_pt(path, lrt.load_model("storyworld-small")):
        ...         print(vector)
        SteeringVector(storyworld-small L1, 64 dimensions, norm 8, torch.save)
        SteeringVector(storyworld-small L2, 64 dimensions, norm 8, torch.save)
    """
    _check_zip(path)
    with reading(path, "a file of torch.save (weights_only=True)"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    made: dict[str, Any] = {"method": "torch.save"}
    if places := _places(content):
        if layer is not None or hook_name is not None:
            raise LrtError(
                f"{path} says itself at which layers its {len(places)} tensors are: leave out layer, hook_name"
            )
        sites = sites_at(model, places, what=str(path))
        return [
            vector_at(site, tensor, made, what=f"{key!r} of {path}")
            for site, (key, tensor) in zip(sites, content.items(), strict=True)
        ]
    if (layer is None) == (hook_name is None):
        raise LrtError(f"{path} does not say where its tensor belongs: give a layer or a hook name, and not both")
    (site,) = sites_at(model, [hook_name if layer is None else layer], what=str(path))  # type: ignore[list-item]
    return [vector_at(site, _only(content, path), made, what=str(path))]


def _check_zip(path: str | Path) -> None:
    """Refuse what could make much of little: files of before torch 1.6, and compressed members, which torch never
    writes."""
    with reading(path, "a file of torch.save"):
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise ValueError(
                    "it is not of the zip format, torch's since 1.6: load it where it is trusted, save anew"
                )
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch.save never does")


def _places(content: object) -> list[int | str]:
    """The layers or hook names that a dict has as keys; none where one of them is neither."""
    places = list(map(_place, content)) if isinstance(content, Mapping) else []
    return [] if None in places else [place for place in places if place is not None]


def _place(key: object) -> int | str | None:
    if isinstance(key, str):
        return key if _HOOK_NAME.fullmatch(key) else int(key) if re.fullmatch(r"\d{1,6}", key) else None
    return key if isinstance(key, int) and not isinstance(key, bool) else None


def _only(content: object, path: str | Path) -> Tensor:
    if isinstance(content, Mapping) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, Tensor):
        keys = f" with the keys {list(content)[:5]}" if isinstance(content, Mapping) else ""
        raise ArtifactError(
            f"{path} holds a {type(content).__name__}{keys}: a tensor, a dict of one, or a dict by layers is read"
        )
    return content
