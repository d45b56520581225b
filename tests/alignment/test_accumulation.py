"""A pass that is killed goes on where it was; passes over parts of the text add up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment import accumulation as module
from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.moments import fit_pairs
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import site_of
from lrt_tl.text.documents import Exclusion, read_documents

HOOKS = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"


def passed(bridges: tuple[Any, Any], texts: list[str], place: Path | None = None, **options: Any) -> HarvestedMoments:
    sites = [site_of(model, hook_name=hook) for model, hook in zip(bridges, HOOKS, strict=True)]
    options = {"batch_size": 4, "context_length": 64, **options}
    harvest = Harvest(*bridges, HOOKS[:1], HOOKS[1:], read_documents(texts), **options)
    pairs = fit_pairs([f"source:{HOOKS[0]}"], [f"target:{HOOKS[1]}"])
    return accumulate(harvest, sites[:1], sites[1:], pairs, checkpoint=place, seconds=0.0)


def tensors(harvested: HarvestedMoments) -> dict[str, Tensor]:
    moments = harvested.moments
    named = {**moments.shifts, **{f"Σ {name}": total for name, total in moments.sums.items()}}
    return {**named, **{" × ".join(pair): of for pair, of in moments.products.items()}, "n": moments.count}


def assert_same(actual: HarvestedMoments, wanted: HarvestedMoments) -> None:
    ours, theirs = tensors(actual), tensors(wanted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert actual.counts == wanted.counts


class KilledError(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a pass die when it has taken so many batches."""
    original = Harvest.run

    def set_to(batches: int | None) -> None:
        def run(self: Harvest, *args: Any, **options: Any) -> Iterator[Any]:
            for number, batch in enumerate(original(self, *args, **options)):
                if number == batches:
                    raise KilledError
                yield batch

        monkeypatch.setattr(Harvest, "run", run)

    return set_to


@pytest.fixture(scope="module")
def uninterrupted(bridges: tuple[Any, Any], texts: list[str]) -> HarvestedMoments:
    """A pass over 77 texts, for 3 of the 80 are excluded."""
    return passed(bridges, texts[:80], exclude=Exclusion(texts[:3]))


@pytest.mark.parametrize("kills", [(0,), (1,), (7,), (3, 1, 5)])
def test_a_pass_that_is_killed_gives_the_same_moments_bit_for_bit(
    bridges: tuple[Any, Any],
    texts: list[str],
    uninterrupted: HarvestedMoments,
    tmp_path: Path,
    killed_after: Any,
    kills: tuple[int, ...],
) -> None:
    place = tmp_path / "work"
    for kill in kills:
        killed_after(kill)
        with pytest.raises(KilledError):
            passed(bridges, texts[:80], place, exclude=Exclusion(texts[:3]))
    killed_after(None)
    assert_same(passed(bridges, texts[:80], place, exclude=Exclusion(texts[:3])), uninterrupted)
    assert [path.name for path in place.iterdir()] == ["000000000020"]  # of 77 texts, 4 to a batch


def test_a_pass_that_was_done_is_not_made_again(
    bridges: tuple[Any, Any], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = passed(bridges, texts[:40], tmp_path)
    monkeypatch.setattr("lrt_tl.alignment.forward.capture", lambda *_: pytest.fail("a model was run"))
    assert_same(passed(bridges, texts[:40], tmp_path), whole)


def test_a_kill_while_a_checkpoint_is_written_loses_nothing(
    bridges: tuple[Any, Any], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, place = texts[:40], tmp_path / "work"
    whole = passed(bridges, texts)
    original, calls = module.save_artifact, []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            (place / ".000000000004.partial-x").mkdir()  # what a killed writer leaves
            raise KilledError
        return original(*args, **options)

    monkeypatch.setattr(module, "save_artifact", dying)
    with pytest.raises(KilledError):
        passed(bridges, texts, place)
    monkeypatch.setattr(module, "save_artifact", original)
    assert sorted(path.name for path in place.glob("[0-9]*")) == ["000000000003"]
    assert_same(passed(bridges, texts, place), whole)


def test_nothing_of_the_users_is_removed(bridges: tuple[Any, Any], texts: list[str], tmp_path: Path) -> None:
    own = [tmp_path / "notes.txt", tmp_path / "2024" / "data.txt"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    passed(bridges, texts[:40], tmp_path)
    assert [path.read_text() for path in own] == ["mine", "mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "2024", "000000000010"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 5}, "another batch_size: batch_size was 4, and is 5"),
        ({"prepend_bos": False}, "another prepend_bos"),
        ({"exclude": Exclusion(["word1 word2 word3 word4 word5"])}, "another excluded texts"),
    ],
)
def test_other_arguments_are_refused(
    bridges: tuple[Any, Any],
    texts: list[str],
    tmp_path: Path,
    killed_after: Any,
    changed: dict[str, Any],
    message: str,
) -> None:
    texts = texts[:40]
    killed_after(2)
    with pytest.raises(KilledError):
        passed(bridges, texts, tmp_path / "work")
    killed_after(None)
    with pytest.raises(LrtError, match=message):
        passed(bridges, texts, tmp_path / "work", **changed)
    with pytest.raises(LrtError, match="another documents"):
        passed(bridges, [*texts[:-1], "word1"], tmp_path / "work")
    with pytest.raises(LrtError, match="another source"):
        passed((bridges[1], bridges[1]), texts, tmp_path / "work")


def test_parts_of_the_text_add_up(bridges: tuple[Any, Any], texts: list[str], tmp_path: Path) -> None:
    whole = passed(bridges, texts[:100])
    parts = [passed(bridges, part) for part in (texts[:45], texts[45:100])]
    folders = [part.save(tmp_path / f"part-{number}") for number, part in enumerate(parts)]
    merged = HarvestedMoments.load(folders[0]).merge(HarvestedMoments.load(folders[1]))
    assert merged.counts.positions == whole.counts.positions
    assert merged.counts.documents == 100
    for name in ("norms_before", "norms_kept"):
        for key, norms in getattr(whole.counts, name).items():
            found_norms = getattr(merged.counts, name)[key]
            assert (found_norms.count, found_norms.largest) == (norms.count, pytest.approx(norms.largest, rel=1e-6))
            assert found_norms.mean == pytest.approx(norms.mean, rel=1e-6)
    assert merged.sources == whole.sources
    found, wanted_parts = (some.parts(some.sources, some.targets[0]) for some in (merged, whole))
    for ours, theirs in zip(found, wanted_parts, strict=True):
        assert ours.count == theirs.count
        for name in ("source_mean", "target_mean", "source_source", "source_target", "target_target"):
            wanted = getattr(theirs, name)
            torch.testing.assert_close(getattr(ours, name), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_saved_moments_are_the_same_bit_for_bit(bridges: tuple[Any, Any], texts: list[str], tmp_path: Path) -> None:
    moments = passed(bridges, texts[:40])
    assert_same(HarvestedMoments.load(moments.save(tmp_path / "moments")), moments)
    with pytest.raises(ArtifactError, match="exists already"):
        moments.save(tmp_path / "moments")


def test_moments_of_other_models_do_not_merge(bridges: tuple[Any, Any], texts: list[str]) -> None:
    moments = passed(bridges, texts[:40])
    swapped = HarvestedMoments(moments.targets, moments.sources, moments.moments, moments.counts)
    with pytest.raises(MismatchError, match="a site of the first moments is at small L1"):
        moments.merge(swapped)
