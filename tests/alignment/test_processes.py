"""Several processes share a pass: the same moments as one process, or one error in all. `sharing.py` runs the cases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.alignment.accumulation import HarvestedMoments
from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import harvest_moments
from lrt_tl.alignment.processes import _own_cuda_device, is_first, sharing
from lrt_tl.cli import main
from lrt_tl.errors import LrtError
from lrt_tl.storyworld import documents
from tests.alignment.test_accumulation import assert_same, tensors

ROOT = Path(__file__).parents[2]
SECONDS = 280


def started(*command: str) -> subprocess.CompletedProcess[str]:
    """A module of Python, with one thread, which is killed when it hangs."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    finished = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **one_thread},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def out(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of all cases have left."""
    place = tmp_path_factory.mktemp("sharing")
    started("tests.alignment.sharing", str(folders[0]), str(folders[1]), str(place))
    return place


def moments(out: Path, case: str, size: int) -> list[HarvestedMoments]:
    """Of each process, none of which has failed."""
    assert errors(out, case, size) == [None] * size
    return [HarvestedMoments.load(out / case / str(rank)) for rank in range(size)]


def errors(out: Path, case: str, size: int) -> list[Any]:
    reports = [json.loads((out / case / f"{rank}.json").read_text()) for rank in range(size)]
    return [report["error"] for report in reports]


@pytest.mark.parametrize("some", ["all", "few"])  # 50 batches or so for 3 processes, and 2
def test_processes_that_share_a_pass_get_the_moments_of_one(out: Path, some: str) -> None:
    (alone,) = moments(out, f"{some}-alone", 1)
    together = moments(out, f"{some}-of-3", 3)
    wanted = tensors(alone)
    for name, found in tensors(together[0]).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-12 * float(wanted[name].abs().max()))
    assert torch.equal(together[0].moments.count, alone.moments.count)
    assert together[0].counts == alone.counts
    assert alone.counts.special_dropped > alone.counts.documents, "unknown words, too, are special"
    assert alone.counts.documents_excluded == (3 if some == "all" else 0)
    for other in together[1:]:
        assert_same(other, together[0])


def test_an_error_in_one_process_is_one_in_all_at_once(out: Path) -> None:
    (own, _), *others = (json.loads((out / f"failed-{rank}.json").read_text()) for rank in (1, 0, 2))
    assert own == "the disk is on fire"
    for message, batches in others:
        assert message == "process 1 of 3 failed: RuntimeError: the disk is on fire"
        assert batches < 16, "they did not go on to the end of their share"
    (alone,) = moments(out, "all-alone", 1)
    for again in moments(out, "fails-and-goes-on", 3):
        assert again.counts == alone.counts, "the next pass is another one"


@pytest.mark.parametrize("case", ["fails-to-calibrate", "fails-where-the-store-is"])
def test_an_error_in_the_process_on_which_all_depend_reaches_the_others(out: Path, case: str) -> None:
    told = "process 0 of 3 failed: RuntimeError: the disk is on fire"
    assert errors(out, case, 3) == ["the disk is on fire", told, told]


def test_an_error_before_the_pass_reaches_the_others(out: Path) -> None:
    (first, second) = errors(out, "no-documents", 2)
    assert second.startswith("there is no file ")
    assert first == f"process 1 of 2 failed: {second}"


def test_arguments_that_differ_are_refused_in_all_processes(out: Path) -> None:
    message = "process 2 of 3 was given another batch_size than process 0: batch_size is 5, not 4"
    assert all(error.startswith(message) for error in errors(out, "other-batches", 3))


@pytest.mark.parametrize("killed", ["both", "one"])
def test_processes_that_are_killed_give_the_same_moments_bit_for_bit(out: Path, killed: str) -> None:
    """Each goes on from its own place; one that has kept nothing begins at the beginning."""
    kept = {"both": {"rank-0-of-2": 7, "rank-1-of-2": 2}, "one": {"rank-1-of-2": 5}}[killed]
    assert json.loads((out / f"kept-{killed}.json").read_text()) == kept
    for resumed, wanted in zip(moments(out, f"resumed-{killed}", 2), moments(out, "uninterrupted", 2), strict=True):
        assert_same(resumed, wanted)
    left = {path.name: len(list(path.iterdir())) for path in (out / f"kept-{killed}").iterdir()}
    assert left == {"rank-0-of-2": 1, "rank-1-of-2": 1}  # the last checkpoint of each


def test_another_number_of_processes_does_not_go_on_with_a_checkpoint(out: Path) -> None:
    for case, size in {"of-3-both": 3, "of-3-one": 3, "alone-both": 1, "alone-one": 1}.items():
        for error in errors(out, case, size):
            assert f"holds a pass whose number of processes was 2, and now it is {size}" in error


def test_a_search_that_processes_share_finds_the_same(out: Path) -> None:
    alone, *together = (json.loads((out / f"search-{name}.json").read_text()) for name in ("alone", "0", "1"))
    assert together[0] == together[1]
    for name, table in alone.items():
        torch.testing.assert_close(torch.tensor(together[0][name]), torch.tensor(table), rtol=0, atol=1e-6)


def test_torchrun_shares_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in documents(120, seed=1)))
    fit = f"lrt_tl fit --source storyworld-small --target storyworld-small --layers 0:1 --documents {file} --out"
    shown = started(
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *fit.split(), str(tmp_path / "2")
    )
    monkeypatch.setattr(sys, "argv", [*fit.split(), str(tmp_path / "1")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert shown.stdout == capsys.readouterr().out, "the first process alone prints"
    ours, wanted = (AffineMap.load(tmp_path / name) for name in ("2", "1"))
    torch.testing.assert_close(ours.weight, wanted.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.bias, wanted.bias, rtol=1e-5, atol=1e-6)
    assert ours.report.harvest == wanted.report.harvest


def test_distributed_without_a_group_is_refused(bridges: tuple[Any, Any], texts: list[str]) -> None:
    with pytest.raises(LrtError, match=r"torchrun.*init_process_group"):
        harvest_moments(*bridges, texts, layers=(1, 2), distributed=True)
    with sharing(False) as processes:
        assert (processes.rank, processes.size, processes.gather("alone")) == (0, 1, ["alone"])
    assert is_first()


def test_each_process_has_a_cuda_device_of_its_own() -> None:
    assert _own_cuda_device(1, 2) == "cuda:1"
    with pytest.raises(LrtError, match=r"there are 2: start no more.*--nproc-per-node=2"):
        _own_cuda_device(2, 2)
