import pytest

from lrt_tl.errors import LrtError
from lrt_tl.storyworld import named as module
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.named import default_documents, named_behavior, named_contrast_pairs, named_documents
from lrt_tl.storyworld.tasks import behavior, contrast_pairs


def test_names_stand_for_what_storyworld_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_DOCUMENTS", 30)
    assert named_documents("storyworld") == documents(30)
    assert named_contrast_pairs("storyworld:tense") == contrast_pairs("tense")
    assert named_behavior("storyworld:refusal") == behavior("refusal")


def test_anything_else_stays_what_it_is() -> None:
    for named in (named_documents, named_contrast_pairs, named_behavior):
        assert named("texts.jsonl") == "texts.jsonl"


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LrtError, match="no task 'taste'"):
        named_behavior("storyworld:taste")


def test_only_models_of_storyworld_have_documents_of_their_own() -> None:
    assert default_documents("storyworld-small", "storyworld-large") == "storyworld"
    with pytest.raises(LrtError, match="documents must be given"):
        default_documents("storyworld-small", "gpt2")
