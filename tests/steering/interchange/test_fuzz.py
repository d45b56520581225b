"""Damaged and hostile files of every format: refused, or read as finite vectors of the right width; nothing else."""

import json
import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment.activations import fit_activations
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.artifacts import _checksum
from lrt_tl.errors import LrtError
from lrt_tl.steering.autoencoder import Autoencoder, load_autoencoder
from lrt_tl.steering.interchange.gguf import load_gguf, save_gguf
from lrt_tl.steering.interchange.npz import load_npz, save_npz
from lrt_tl.steering.interchange.torch_file import load_pt
from lrt_tl.steering.vector import SteeringVector
from tests.steering.interchange.examples import vectors_of
from tests.unchecked import without_type_checks

D_MODEL = 24
MUTANTS = 120  # of each file


class HungError(BaseException):
    """Not an Exception, so that nobody takes it for a damaged file."""


@contextmanager
def bounded(seconds: int = 60, megabytes: int = 1000) -> Iterator[None]:
    """A guard against loaders that hang or fill the memory."""

    def stop(*_: object) -> None:
        raise HungError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * megabytes


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def garbled(content: bytes, chance: random.Random) -> bytes:
    """Random bytes put over the beginning, or anywhere."""
    start = chance.choice([0, chance.randrange(len(content))])
    garbage = chance.randbytes(chance.choice([1, 4, 16, 200]))
    return content[:start] + garbage + content[start + len(garbage) :]


def swollen(content: bytes, chance: random.Random) -> bytes:
    """A huge number where perhaps a size stands."""
    width = chance.choice([2, 4, 8])
    number = chance.choice([2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1, 2 ** (4 * width), 2 ** (8 * width - 2)])
    start = chance.choice([8, 16, chance.randrange(min(300, len(content))), chance.randrange(len(content))])
    return content[:start] + number.to_bytes(width, "little") + content[start + width :]


def moved(content: bytes, chance: random.Random) -> bytes:
    """A piece left out, or there twice."""
    start, length = chance.randrange(len(content)), chance.randrange(1, 40)
    piece = chance.choice([b"", 2 * content[start : start + length]])
    return content[:start] + piece + content[start + length :]


MUTATIONS = (flipped, truncated, garbled, swollen, moved)
STRANGE: list[Any] = [None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "blocks.0.hook_resid_post", [], {}, [[]]]


def retyped(value: Any, chance: random.Random) -> Any:
    """JSON in which one value, somewhere, is another, or gone."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place, copy = chance.choice(places), value.copy()
        if chance.random() < 0.15:
            del copy[place]
        else:
            copy[place] = retyped(value[place], chance)
        return copy
    return chance.choice(STRANGE)


def checked(tensors: list[Tensor]) -> None:
    assert tensors
    for tensor in tensors:
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


def check_vectors(vectors: list[SteeringVector]) -> None:
    checked([vector.direction for vector in vectors])
    for vector in vectors:
        assert vector.direction.shape == (vector.site.d_model,)
        assert vector.site.d_model == D_MODEL
        assert isinstance(vector.site.hook_name, str)
        assert "SteeringVector" in repr(vector)


def check_map(affine_map: AffineMap) -> None:
    checked([affine_map.weight, affine_map.bias])
    assert affine_map.weight.shape == (affine_map.target.d_model, affine_map.d_source)
    assert "AffineMap" in repr(affine_map)


def check_autoencoder(autoencoder: Autoencoder) -> None:
    checked([autoencoder.W_enc, autoencoder.b_enc, autoencoder.W_dec, autoencoder.b_dec])
    assert autoencoder.decode(autoencoder.encode(torch.randn(3, autoencoder.d_in))).shape == (3, autoencoder.d_in)


def fate(load: Callable[[], Any], check: Callable[[Any], None]) -> bool:
    """Whether it was read; and then it must be whole."""
    try:
        with warnings.catch_warnings(), without_type_checks():
            warnings.simplefilter("ignore")
            loaded = load()
    except LrtError:
        return False
    check(loaded)
    return True


Case = tuple[Path, Callable[[Path], Any], Callable[[Any], None]]


@pytest.fixture(scope="module")
def cases(bridges: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """A valid file or folder of each format, how it is read, and what holds then."""
    root, model, vectors = tmp_path_factory.mktemp("valid"), bridges[1], vectors_of(bridges[1], 1, 3)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 600, 6, generator=generator)
    affine_map = fit_activations(*states, torch.arange(600) // 10)
    torch.save({"direction": vectors[0].direction}, root / "one.pt")
    torch.save({1: vectors[0].direction, 3: vectors[1].direction.half()}, root / "layers.pt")
    rows = [torch.randn(shape, generator=generator) for shape in ((5, 11), (11,), (11, 5), (5,))]
    features = Autoencoder(*rows, k=3, hook_name="blocks.1.hook_resid_post", model_name="large")
    return {
        "gguf": (save_gguf(vectors, root / "v.gguf", model_type="x"), lambda p: load_gguf(p, model), check_vectors),
        "npz": (save_npz(vectors, root / "v.npz"), lambda p: load_npz(p, model), check_vectors),
        "pt, one": (root / "one.pt", lambda p: load_pt(p, model, layer=1), check_vectors),
        "pt, layers": (root / "layers.pt", lambda p: load_pt(p, model), check_vectors),
        "vector": (vectors[0].save(root / "vector"), lambda p: [SteeringVector.load(p)], check_vectors),
        "map": (affine_map.save(root / "map"), AffineMap.load, check_map),
        "autoencoder": (features.save(root / "sae"), load_autoencoder, check_autoencoder),
    }


@pytest.mark.parametrize("name", ["gguf", "npz", "pt, one", "pt, layers", "vector", "map", "autoencoder"])
def test_a_damaged_file_is_refused_or_whole(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    valid, load, check = cases[name]
    assert fate(lambda: load(valid), check)
    chance, read = random.Random(name), 0
    for number in range(MUTANTS):
        path = tmp_path / str(number)
        if valid.is_dir():
            shutil.copytree(valid, path)
            file = path / chance.choice([file.name for file in valid.iterdir() if file.name != "README.md"])
        else:
            file = path
        content = (valid / file.name if valid.is_dir() else valid).read_bytes()
        for _ in range(chance.choice([1, 1, 2])):
            content = chance.choice(MUTATIONS)(content or b"\0", chance)
        file.write_bytes(content)
        with bounded():
            read += fate(lambda path=path: load(path), check)  # type: ignore[misc]
    assert read < MUTANTS


@pytest.mark.parametrize("name", ["vector", "map", "autoencoder"])
def test_settings_of_other_types_are_refused_or_whole(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """As somebody writes them who knows the checksum."""
    valid, load, check = cases[name]
    settings = "cfg.json" if name == "autoencoder" else "config.json"
    chance, read = random.Random(name), 0
    for number in range(2 * MUTANTS):
        folder = tmp_path / str(number)
        shutil.copytree(valid, folder)
        body = json.loads((folder / settings).read_text())
        if "checksum" in body:
            body.pop("checksum")
        body = retyped(body, chance)
        if isinstance(body, dict) and name != "autoencoder":
            body["checksum"] = _checksum(body, folder / "tensors.safetensors")
        (folder / settings).write_text(json.dumps(body))
        with bounded():
            read += fate(lambda folder=folder: load(folder), check)  # type: ignore[misc]
    assert read < 2 * MUTANTS


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\ud800", '"\\ud800"', "nul"])
@pytest.mark.parametrize("name", ["vector", "autoencoder"])
def test_json_that_breaks_a_parser_is_refused(cases: dict[str, Case], tmp_path: Path, name: str, text: str) -> None:
    valid, load, _ = cases[name]
    shutil.copytree(valid, tmp_path / "copy")
    for settings in tmp_path.glob("copy/c*.json"):
        settings.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(LrtError):
        load(tmp_path / "copy")
