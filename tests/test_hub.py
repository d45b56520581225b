"""Artifacts on the hub, against a repository kept in memory and a cache laid out on disk: never the network."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from lrt_tl.alignment.accumulation import HarvestedMoments
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.affine_maps import AffineMaps
from lrt_tl.errors import ArtifactError
from lrt_tl.hub import OnHub
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.vector import SteeringVector
from tests.fixtures.write import ARTIFACTS, steering_vector

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the hub switched off."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, repo_id: str, artifact: OnHub | None, *, revision: str = "main") -> Path:
    """Lay out a repository as the hub's client does."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    if artifact is None:
        snapshot.mkdir(parents=True)
    else:
        artifact.save(snapshot)
    (snapshot / "other.txt").write_text("no artifact is made of this")
    return snapshot


@pytest.mark.parametrize("name", list(ARTIFACTS))
def test_every_artifact_comes_back_from_the_cache(cache: Path, name: str) -> None:
    artifact = ARTIFACTS[name]()
    cached(cache, "me/thing", artifact)
    assert repr(type(artifact).from_pretrained("me/thing")) == repr(artifact)


def test_the_numbers_come_back_from_cache_and_folder_alike(cache: Path, tmp_path: Path) -> None:
    vector = steering_vector()
    cached(cache, "me/thing", vector, revision="v1")
    vector.save(tmp_path / "folder")
    for place, revision in (("me/thing", "v1"), ("me/thing", COMMIT), (tmp_path / "folder", None)):
        found = SteeringVector.from_pretrained(place, revision=revision)
        assert torch.equal(found.direction, vector.direction)
        assert (found.site, found.residual_norm) == (vector.site, vector.residual_norm)


def test_a_folder_is_a_folder_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steering_vector().save(tmp_path / "me" / "thing")
    assert SteeringVector.from_pretrained("me/thing").site == steering_vector().site
    with pytest.raises(ArtifactError, match="is a folder and has no revisions: leave out revision='v1'"):
        SteeringVector.from_pretrained("me/thing", revision="v1")


@pytest.mark.parametrize("name", ["thing", "me/thing/part", "/no/where", "../thing", Path("me/thing")], ids=str)
def test_what_is_neither_folder_nor_name_is_refused(cache: Path, name: Any) -> None:
    with pytest.raises(ArtifactError, match="neither a folder that exists nor a name on the hub, which is"):
        SteeringVector.from_pretrained(name)


def test_what_is_not_cached_is_not_found_offline(cache: Path) -> None:
    with pytest.raises(ArtifactError, match=r"me/thing: .*HF_HUB_OFFLINE.*: go online, or give a folder"):
        SteeringVector.from_pretrained("me/thing")
    cached(cache, "me/thing", steering_vector())
    with pytest.raises(ArtifactError, match=r"me/thing \(revision v2\): .*go online"):
        SteeringVector.from_pretrained("me/thing", revision="v2")


def test_other_repositories_are_refused(cache: Path) -> None:
    cached(cache, "me/model", None)
    with pytest.raises(ArtifactError, match=r"me/model on the Hugging Face hub holds no config.json: it is not an art"):
        SteeringVector.from_pretrained("me/model")
    snapshot = cached(cache, "me/thing", steering_vector())
    with pytest.raises(ArtifactError, match=r"me/thing, from the .* hub: .* is of kind steering_vector, not"):
        AffineMap.from_pretrained("me/thing")
    (snapshot / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ArtifactError, match=r"me/thing, from the .* hub: .* was not written by lrt_tl"):
        SteeringVector.from_pretrained("me/thing")


def http_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind("the client's own words", response=Mock())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.RepositoryNotFoundError), "no repository of that name .* log in with `hf auth login`"),
        (http_error(errors.RevisionNotFoundError), "me/thing is on the .* hub, but has no revision 'v1'"),
        (http_error(errors.HfHubHTTPError), r"\(revision v1\): the .* hub refuses: HfHubHTTPError: the client's"),
        (TimeoutError("slow"), "refuses: TimeoutError: slow"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_client_raises_is_explained(monkeypatch: pytest.MonkeyPatch, error: Any, message: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(ArtifactError, match=message) as caught:
        SteeringVector.from_pretrained("me/thing", revision="v1")
    assert caught.value.__cause__ is error


class FakeHub:
    """What `HfApi` does to repositories, on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[tuple[str, bool]] = []
        self.messages: list[str] = []

    def place(self, repo_id: str, revision: str | None) -> Path:
        return self.root / repo_id / (revision or "main")

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append((repo_id, private))
        self.place(repo_id, None).mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.place(repo_id, branch).mkdir(exist_ok=True)

    def file_exists(self, repo_id: str, name: str, *, revision: str | None) -> bool:
        return (self.place(repo_id, revision) / name).is_file()

    def hf_hub_download(self, repo_id: str, name: str, *, revision: str | None) -> str:
        return str(self.place(repo_id, revision) / name)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str, allow_patterns: Any
    ) -> Any:
        self.messages.append(commit_message)
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.place(repo_id, revision) / name)
        return SimpleNamespace(commit_url=f"https://hub.invalid/{repo_id}/commit/{len(self.messages)}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo_id, revision, **_: fake.place(repo_id, revision)
    )
    return fake


@pytest.mark.parametrize("kind", [SteeringVector, Probe, AffineMap, AffineMaps, HarvestedMoments])
def test_what_was_pushed_comes_back(hub: FakeHub, kind: Any) -> None:
    artifact = next(made for make in ARTIFACTS.values() if isinstance(made := make(), kind))
    assert artifact.push_to_hub("me/thing", private=True) == "https://hub.invalid/me/thing/commit/1"
    assert hub.made == [("me/thing", True)]
    assert hub.messages == [f"Upload {artifact!r}"]
    assert sorted(path.name for path in hub.place("me/thing", None).iterdir()) == [
        "README.md", "config.json", "tensors.safetensors",
    ]  # fmt: skip
    assert repr(kind.from_pretrained("me/thing")) == repr(artifact)


def test_the_card_names_the_repository(hub: FakeHub) -> None:
    steering_vector().push_to_hub("me/thing", revision="v2", commit_message="Try again")
    card = (hub.place("me/thing", "v2") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: lrt_tl\ntags:\n- steering_vector\n---\n")
    assert 'lrt.SteeringVector.from_pretrained("me/thing")' in card
    assert hub.messages == ["Try again"]
    assert not list(hub.place("me/thing", None).iterdir())
    assert SteeringVector.from_pretrained("me/thing", revision="v2").site == steering_vector().site


@pytest.mark.parametrize("config", ['{"model_type": "gpt2"}', "no JSON", "[]"])
def test_another_librarys_files_are_not_written_over(hub: FakeHub, config: str) -> None:
    place = hub.place("me/model", None)
    place.mkdir(parents=True)
    (place / "config.json").write_text(config)
    with pytest.raises(ArtifactError, match=r"holds a config\.json that is not of lrt_tl: push to a repository of its"):
        steering_vector().push_to_hub("me/model")
    assert [path.read_text() for path in place.iterdir()] == [config]


def test_our_own_are_written_over(hub: FakeHub) -> None:
    steering_vector().scaled_to(2.0).push_to_hub("me/thing")
    steering_vector().push_to_hub("me/thing")
    assert SteeringVector.from_pretrained("me/thing").norm == steering_vector().norm


@pytest.mark.parametrize("name", ["thing", "a/b/c", "me/th ing"])
def test_a_name_that_is_none_is_not_pushed_to(hub: FakeHub, name: str) -> None:
    with pytest.raises(ArtifactError, match="a name on the hub, which is 'owner/name'"):
        steering_vector().push_to_hub(name)


def test_a_push_without_leave_is_explained(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise http_error(errors.HfHubHTTPError)

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(ArtifactError, match="me/thing: the Hugging Face hub refuses: HfHubHTTPError"):
        steering_vector().push_to_hub("me/thing")
