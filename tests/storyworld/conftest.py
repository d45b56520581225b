"""What several modules test on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrt_tl.storyworld.language import documents, vocabulary
from lrt_tl.storyworld.tokenizer import byte_pair_tokenizer, save_tokenizer, word_tokenizer
from tests.unchecked import without_type_checks


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """For hundreds of documents, from the first test that asks on: checking each of a parser's calls takes minutes."""
    with without_type_checks():
        yield


@pytest.fixture(scope="session")
def sampled() -> list[str]:
    """300 documents."""
    with without_type_checks():
        return documents(300, seed=12)


@pytest.fixture(scope="session")
def word() -> Any:
    """One token per word."""
    with without_type_checks():
        return word_tokenizer(vocabulary(), documents(300, seed=1))


@pytest.fixture(scope="session")
def byte_pair() -> Any:
    """Byte pairs."""
    with without_type_checks():
        return byte_pair_tokenizer(documents(300, seed=1))


@pytest.fixture(scope="session", params=["word", "byte_pair", "word reloaded", "byte_pair reloaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each as it was made, and as `AutoTokenizer` reads it from a folder."""
    name, _, reloaded = request.param.partition(" ")
    made = request.getfixturevalue(name)
    if not reloaded:
        return made
    folder: Path = tmp_path_factory.mktemp(name)
    save_tokenizer(made, folder)
    return AutoTokenizer.from_pretrained(folder)
