"""An artifact comes back as it was saved, or not at all."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from lrt_tl import artifacts
from lrt_tl.artifacts import load_artifact, new_file, new_folder, refuse_existing, save_artifact, typed, write_json
from lrt_tl.errors import ArtifactError

CONFIG = {"number": 0.1 + 0.2, "list": [1, 2, 3], "nested": {"none": None, "text": "λ → Ω\n"}, "small": 5e-324}
TENSORS = {"weight": torch.randn(3, 4).T, "empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)}


def save(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"kind": "thing", "config": CONFIG, "tensors": TENSORS, "card": "# A thing"}
    return save_artifact(folder, **{**settings, **changes})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path / "new" / "thing")
    config, tensors = load_artifact(folder, kind="thing")
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert set(config) == {*CONFIG, "library", "format_version", "kind"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert (folder / "README.md").read_text().endswith("# A thing\n")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "tensors.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]


def test_tensors_may_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    shared = {"one": whole, "again": whole, "part": whole[2:], "turned": whole.reshape(2, 3).T}
    _, tensors = load_artifact(save(tmp_path / "thing", tensors=shared), kind="thing")
    for name, tensor in shared.items():
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"keys": {10: "a", 9: "b"}, "tuple": (1, 2)}, {"keys": {"10": "a", "9": "b"}, "tuple": [1, 2]}),
        ({"name": "lone \udc80 surrogate"}, {"name": "lone ? surrogate"}),
    ],
)
def test_what_json_changes_is_no_damage(tmp_path: Path, config: dict[str, Any], read: dict[str, Any]) -> None:
    found, _ = load_artifact(save(tmp_path / "thing", config=config), kind="thing")
    assert found.items() >= read.items()


def _edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def _truncated(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _flipped(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tensors": (_truncated, "cannot be read"),
    "a changed bit": (_flipped, "edited or damaged"),
    "a changed number": (_edited(lambda config: config.update(number=0.3)), "edited or damaged"),
    "a number that is none": (_edited(lambda config: config.update(number=math.nan)), "edited or damaged"),
    "an added key": (_edited(lambda config: config.update(extra=1)), "edited or damaged"),
    "no checksum": (_edited(lambda config: config.pop("checksum")), "edited or damaged"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "no tensors": (lambda folder: (folder / "tensors.safetensors").unlink(), "holds no tensors.safetensors"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xff"), "cannot be read"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "was not written by lrt_tl"),
    "another library": (_edited(lambda config: config.update(library="x")), "was not written by lrt_tl"),
    "another format": (_edited(lambda config: config.update(format_version=3)), "version 3; .* to 2: update"),
    "no format": (_edited(lambda config: config.pop("format_version")), "has format version None"),
    "another kind": (_edited(lambda config: config.update(kind="other")), "is of kind other, not thing"),
    "a pickle": (lambda folder: (folder / "tensors.safetensors").write_bytes(b"\x80\x04."), "cannot be read"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    folder = save(tmp_path / "thing")
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder, kind="thing")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no folder .*absent"):
        load_artifact(tmp_path / "absent", kind="thing")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = save(tmp_path / "thing")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match="exists already"):
        save(folder, config={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        save(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thing"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"), new_folder(tmp_path / "thing") as scratch:  # noqa: PT012
        (scratch / "mine").touch()
        (tmp_path / "thing").mkdir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "thing"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "thing") as scratch:  # noqa: PT012
        (scratch / "half").touch()
        assert not (tmp_path / "thing").exists()
        raise error
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_saving_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "write_text", interrupted)  # the card is written last
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "thing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    with pytest.raises(ArtifactError, match="thing's tensor 'bad' holds NaN or infinity"):
        save(tmp_path / "thing", tensors={"good": torch.ones(1), "bad": torch.tensor([0, value])})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path / "thing", config={"bad": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "bad.json", {"bad": value})
    assert not list(tmp_path.iterdir())


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "torch.load", "torch.save"):
        monkeypatch.setattr(name, refused)
    load_artifact(save(tmp_path / "thing"), kind="thing")


def test_a_place_where_nothing_can_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is not a folder that can be written to"):
        refuse_existing(tmp_path / "file" / "run")
    assert refuse_existing(tmp_path / "new" / "run") == tmp_path / "new" / "run"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "figures.json", {"slope": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "new" / "figures.json", {"slope": 1.5})
    assert json.loads((tmp_path / "new" / "figures.json").read_text()) == {"slope": 1.5}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figures.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_file(tmp_path / "new" / "file") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert not list((tmp_path / "new").iterdir())
    with new_file(tmp_path / "new" / "file") as file:
        file.write(b"whole")
    assert (tmp_path / "new" / "file").read_bytes() == b"whole"
    with pytest.raises(ArtifactError, match="exists already"), new_file(tmp_path / "new" / "file"):
        pytest.fail("it was opened")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@dataclass
class _Settings:
    number: float | None = None
    whole: int = 1
    names: dict[str, int] = field(default_factory=dict)
    pairs: tuple[tuple[str, float], ...] = ()
    choice: Literal["a", "b"] = "a"
    weight: torch.Tensor = field(default_factory=lambda: torch.ones(2))


@pytest.mark.parametrize(
    "good", [{"number": 1}, {"names": {"a": 2}}, {"pairs": (("a", 1), ("b", 0.5))}, {"choice": "b", "weight": None}]
)
def test_fields_of_their_own_types_are_taken(good: dict[str, Any]) -> None:
    settings = _Settings(**good)
    assert typed(settings) is settings


@pytest.mark.parametrize(
    "bad",
    [
        {"number": "1"},
        {"number": True},
        {"number": math.nan},
        {"number": -math.inf},
        {"whole": 1.0},
        {"whole": None},
        {"names": {"a": "2"}},
        {"names": []},
        {"pairs": [("a", 1.0)]},
        {"pairs": (("a",),)},
        {"choice": ["a"]},
    ],
)
def test_fields_of_other_types_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"_Settings.{next(iter(bad))} cannot be"):
        typed(_Settings(**bad))
