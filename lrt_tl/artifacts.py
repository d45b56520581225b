"""The one reader and writer of files that outlive a run: a folder of JSON, safetensors and a card.

A folder or file appears whole or not at all: it is written beside its place and renamed into it. `config.json`
carries a checksum over itself and the tensors, verified on reading. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrt_tl.errors import ArtifactError, LrtError

FORMAT_VERSION = 2
"""2: a map keeps the covariance of its source, and there are probes. Folders of format 1 are read, too."""
CONFIG, TENSORS, CARD = FILES = ["config.json", "tensors.safetensors", "README.md"]
_Value = TypeVar("_Value")


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


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield an open scratch file that becomes `path` when the block succeeds, and vanishes when it does not.

    Raises:
        ArtifactError: `path` exists already.
    """
    path = refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        refuse_existing(path)
        os.chmod(scratch, 0o666 & ~_umask())
        os.rename(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a parser does on bytes that it did not expect into a refusal. Around parsers only: it would hide a
    fault of ours as well.

    Raises:
        ArtifactError: anything was raised inside the block but an `LrtError`, which passes.
    """
    try:
        yield
    except LrtError:
        raise
    except Exception as error:  # JSON nested too deep is a RecursionError, a wrong size a MemoryError, a key a KeyError
        raise ArtifactError(f"{path} cannot be read as {what}: {error or type(error).__name__}") from error


@contextmanager
def rebuilding(folder: str | Path, what: str) -> Iterator[None]:
    """Turn what a class does on entries that it did not expect into a refusal. Around the making of it only.

    Raises:
        ArtifactError: an entry is missing, of another type, or refused by the class.
    """
    try:
        yield
    except (LrtError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder} is not {what}: {error!r}") from error


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
    with reading(folder, f"an lrt_tl {kind}"):
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
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


def typed(value: _Value) -> _Value:
    """A dataclass that was read from JSON, if its fields hold what they declare to, and no number is NaN or infinite.
    What JSON has no word for, such as tensors, is not looked at.

    Raises:
        TypeError: names the field.
    """
    for name, kind in get_type_hints(type(value)).items():
        if not _is(getattr(value, name), kind):
            raise TypeError(f"{type(value).__name__}.{name} cannot be {getattr(value, name)!r:.60}")
    return value


def _is(value: Any, kind: Any) -> bool:
    of, parts = get_origin(kind), get_args(kind)
    if of in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if of is Literal:
        return value in parts
    if of is dict:
        return isinstance(value, dict) and all(_is(k, parts[0]) and _is(v, parts[1]) for k, v in value.items())
    if of is tuple:
        kinds = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is, value, kinds))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, kind) if kind in (str, bool, NoneType) or is_dataclass(kind) else True


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
