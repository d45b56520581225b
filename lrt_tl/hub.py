"""Artifacts on the Hugging Face hub: a repository of the three files of a saved folder."""

import json
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from lrt_tl.artifacts import CARD, CONFIG, FILES
from lrt_tl.errors import ArtifactError

_Artifact = TypeVar("_Artifact", bound="OnHub")


class OnHub(ABC):
    """What can be saved and loaded can be pushed and pulled."""

    @abstractmethod
    def save(self, folder: str | Path) -> Path:
        """Write it to a new folder."""

    @classmethod
    @abstractmethod
    def load(cls: type[_Artifact], folder: str | Path) -> _Artifact:
        """Read it back."""

    @classmethod
    def from_pretrained(cls: type[_Artifact], repo_or_folder: str | Path, *, revision: str | None = None) -> _Artifact:
        """Load from a folder, or from the Hugging Face hub (and then from its cache).

        Args:
            repo_or_folder: a folder that exists, or else `"owner/name"` on the hub.
            revision: branch, tag or commit there.

        Raises:
            ArtifactError: there is no such folder, repository or revision; the hub cannot be reached and its cache does
                not hold it; or it is not a whole, unaltered artifact of this class.
        """
        folder = Path(repo_or_folder).expanduser()
        if folder.is_dir():
            if revision is not None:
                raise ArtifactError(f"{folder} is a folder and has no revisions: leave out revision={revision!r}")
            return cls.load(folder)
        repo_id = _repo_id(repo_or_folder)
        folder = _download(repo_id, revision)
        try:
            return cls.load(folder)
        except ArtifactError as error:
            raise ArtifactError(f"{repo_id}, from the Hugging Face hub: {error}") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload to the Hugging Face hub, as one commit, with whatever account `hf auth login` knows.

        Args:
            repo_id: `"owner/name"`; made if it is not there.
            private: whether a repository that is made now is private.
            revision: the branch, made if it is not there; by default the main one.
            commit_message: by default what is pushed, as it shows.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: the name is none; the repository holds something else than an artifact, such as a model's
                `config.json`, which is never overwritten; or the hub refuses or cannot be reached.
        """
        from huggingface_hub import HfApi

        api, repo_id = HfApi(library_name="lrt_tl"), _repo_id(repo_id)
        with TemporaryDirectory() as scratch, _explained(repo_id, revision):
            folder = self.save(Path(scratch) / "artifact")
            card = folder / CARD
            card.write_text(card.read_text(encoding="utf-8").replace("this folder", repo_id), encoding="utf-8")
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if api.file_exists(repo_id, CONFIG, revision=revision):
                _require_own(repo_id, Path(api.hf_hub_download(repo_id, CONFIG, revision=revision)))
            message = commit_message or f"Upload {self!r}"
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message, allow_patterns=FILES
            )
            return str(commit.commit_url)


def _repo_id(name: str | Path) -> str:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) or isinstance(name, Path):
        raise ArtifactError(f"{name} is neither a folder that exists nor a name on the hub, which is 'owner/name'")
    return str(name)


def _download(repo_id: str, revision: str | None) -> Path:
    """The folder of the cache that holds our files of a repository, and no others that it may have."""
    from huggingface_hub import snapshot_download

    with _explained(repo_id, revision):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=FILES))
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{repo_id} on the Hugging Face hub holds no {CONFIG}: it is not an artifact of lrt_tl")
    return folder


def _require_own(repo_id: str, config: Path) -> None:
    """Refuse to write over another library's files."""
    try:
        body = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get("library") != "lrt_tl":
        raise ArtifactError(f"{repo_id} holds a {CONFIG} that is not of lrt_tl: push to a repository of its own")


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as one sentence with what to do."""
    from huggingface_hub import errors

    at = f"{repo_id} (revision {revision})" if revision is not None else repo_id
    try:
        yield
    except ArtifactError:
        raise
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{repo_id} is on the Hugging Face hub, but has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"there is no folder {repo_id}, and no repository of that name on the Hugging Face hub that you may use: "
            "check the name, and log in with `hf auth login` if it is private"
        ) from error
    except (errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise ArtifactError(
            f"{at}: the Hugging Face hub cannot be reached, or is switched off (HF_HUB_OFFLINE), and its cache does "
            "not hold it: go online, or give a folder"
        ) from error
    except Exception as error:  # of the client's own kinds, or those of the library that it talks HTTP with
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise ArtifactError(f"{at}: the Hugging Face hub refuses: {type(error).__name__}: {reason}") from error
