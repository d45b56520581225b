"""The one reader and writer of files that outlive a run: a folder of JSON, safetensors and a card.

A folder appears whole or not at all: it is written beside its place and renamed into it. `config.json` carries a
checksum over itself and the tensors, verified on reading. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrt_tl.errors import ArtifactError

FORMAT_VERSION = 2
"""2: a map keeps the covariance of its source, and there are probes. Folders of format 1 are read, too."""
CONFIG, TENSORS, CARD = FILES = ["config.json", "tensors.safetensors", "README.md"]


def refuse_existing(folder: str | Path) -> Path:
    """Return `folder` as a path, if something can be written there.

    Raises:
        ArtifactError: something is there already (nothing of the user's is ever overwritten), or nothing can be.
    """
    folder = Path(folder)
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: remove it, or choose another place")
    nearest = next(parent for parent in folder.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ArtifactError(f"{folder} cannot be made: {nearest} is not a folder that can be written to")
    return folder


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes `folder` when the block succeeds, and vanishes when it does not.

    Raises:
        ArtifactError: `folder` exists already.
    """
    folder = refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield scratch
        refuse_existing(folder)
        scratch.chmod(0o777 & ~_umask())
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; lone surrogates, which no encoding holds, become `?`."""
    path.write_bytes(_encoded(text))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON, whole or not at all.

    Raises:
        ValueError: a number in it is NaN or infinite.
    """
    content = _json(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_bytes(content)
    scratch.replace(path)


def save_artifact(
    folder: str | Path, *, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str
) -> Path:
    """Write one artifact: `config.json`, `tensors.safetensors` and `README.md` (a Hugging Face card).

    Raises:
        ArtifactError: `folder` exists already, or a tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"the {kind}'s tensor {name!r} holds NaN or infinity: it is not saved")
    header = {"library": "lrt_tl", "format_version": FORMAT_VERSION, "kind": kind}
    body = json.loads(_json({**header, **config}))  # as it will be read: keys are strings, there are no tuples
    with new_folder(folder) as scratch:
        save_file(_apart(tensors), scratch / TENSORS)
        write_json(scratch / CONFIG, {**body, "checksum": _checksum(body, scratch / TENSORS)})
        write_text(scratch / CARD, f"---\nlibrary_name: lrt_tl\ntags:\n- {kind}\n---\n\n{card}\n")
    return Path(folder)


def load_artifact(folder: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and verify one artifact of a kind.

    Returns:
        Its configuration and its tensors (on the CPU).

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, edited, or of another kind or version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}")
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} holds no {name}: it is not an lrt_tl {kind}, or it is incomplete")
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (ValueError, SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder} cannot be read as an lrt_tl {kind}: {error}") from error
    if not isinstance(body, dict) or body.get("library") != "lrt_tl":
        raise ArtifactError(f"{folder / CONFIG} was not written by lrt_tl")
    if body.get("format_version") not in range(1, FORMAT_VERSION + 1):
        found = body.get("format_version")
        raise ArtifactError(
            f"{folder} has format version {found}; this lrt_tl reads up to {FORMAT_VERSION}: update lrt_tl, with pip "
            "install -U lrt-tl"
        )
    if body.get("kind") != kind:
        raise ArtifactError(f"{folder} is of kind {body.get('kind')}, not {kind}")
    if body.pop("checksum", None) != _checksum(body, folder / TENSORS):
        raise ArtifactError(f"{folder} was edited or damaged after it was saved: its checksum does not fit")
    return body, tensors


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and none in the memory of another, which safetensors refuses."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        apart[name] = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(apart[name].untyped_storage().data_ptr())
    return apart


def _json(value: Mapping[str, Any]) -> bytes:
    return _encoded(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _checksum(body: Mapping[str, Any], tensors: Path) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    digest.update(tensors.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
