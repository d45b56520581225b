"""What the log says was done, against the same by hand."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.models.identity import site_of
from lrt_tl.steering.log import LogEntry
from lrt_tl.steering.operators import Operator
from lrt_tl.steering.vector import SteeringVector

ROWS = [[1, 7, 9, 4, 30, 11, 22, 8], [1, 5, 6], [1, 33, 21, 17, 12]]
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}
PLACE = "blocks.1.hook_resid_post"


@pytest.fixture(params=[0, 1], ids=["neox", "gpt2"])
def model(request: pytest.FixtureRequest, pair: Any) -> Any:
    return pair[request.param]


def vector_for(model: Any, seed: int = 3) -> SteeringVector:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(2 * direction, site_of(model, layer=1))


def padded(side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS))
    tokens, mask = torch.full((len(ROWS), width), 2), torch.zeros(len(ROWS), width, dtype=torch.long)
    for index, row in enumerate(ROWS):
        columns = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[index, columns], mask[index, columns] = torch.tensor(row), 1
    return tokens, mask


def kl(plain: Tensor, steered: Tensor) -> float:
    """KL(plain ‖ steered), from the logits `[row, d_vocab]`; mean over the rows."""
    p, q = plain.double().softmax(-1), steered.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("operator", ["add", "ablate", "rotate"])
def test_projections_positions_and_kl_of_a_padded_batch(model: Any, side: str, operator: Operator) -> None:
    (tokens, mask), vector, positions = padded(side), vector_for(model), [0, 2, 4]
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    unit = vector.direction / vector.norm
    with getattr(vector, operator)(positions=positions).apply(model, log=True) as handle:
        logits, steered_cache = model.run_with_cache(tokens, attention_mask=mask)
    chosen = [[at for at in positions if at < len(row)] for row in ROWS]
    before, after = [], []
    last = []
    for row, places in enumerate(chosen):
        columns = mask[row].nonzero()[:, 0]
        before += [float(cache[PLACE][row, columns[at]] @ unit) for at in places]
        after += [float(steered_cache[PLACE][row, columns[at]] @ unit) for at in places]
        last.append(int(columns[-1]))
    assert handle.log is not None
    (entry,) = handle.log.entries
    assert (entry.call, entry.step, [list(row) for row in entry.positions]) == (1, 0, chosen)
    assert entry.before == pytest.approx(sum(before) / len(before), rel=1e-4, abs=1e-4)
    assert entry.after == pytest.approx(sum(after) / len(after), rel=1e-4, abs=1e-4)
    rows, plain = torch.arange(3), model(tokens, attention_mask=mask)
    expected = kl(plain[rows, torch.tensor(last)], logits[rows, torch.tensor(last)])
    assert expected > 1e-3
    assert handle.log.kl == {1: pytest.approx(expected, rel=1e-4)}


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", ["all", "generated", {"prompt": {"last": 1}}], ids=str)
def test_a_generation_is_logged_pass_by_pass(model: Any, use_cache: bool, positions: Any) -> None:
    vector, prompt = vector_for(model), torch.tensor(ROWS[:1])
    with vector.apply(model, 2.0, positions=positions, log=True) as handle:
        out = model.generate(prompt, max_new_tokens=5, use_past_kv_cache=use_cache, **GREEDY)
        said = (handle.calls, handle.positions_touched, handle.changed)
    assert (handle.calls, handle.positions_touched, handle.changed) == said  # what is measured does not count
    log = handle.log
    assert log is not None
    assert [entry.call for entry in log.entries] == [1, 2, 3, 4, 5] == list(range(1, handle.calls + 1))
    chosen = {"all": range(99), "generated": range(8, 99)}.get(str(positions), range(7, 8))
    for number, entry in enumerate(log.entries):
        seen = range(7 + number if use_cache and number else 0, 8 + number)
        assert list(entry.positions[0]) == [at for at in seen if at in chosen]
        assert (entry.before is None) == (not entry.positions[0])
    assert sorted(log.kl) == [1, 2, 4]
    for call, found in log.kl.items():
        text = out[:, : 7 + call]
        wanted = torch.tensor([[at in chosen for at in range(7 + call)]])
        plain = steered = model(text)[:, -1]
        if wanted.any():
            with vector.apply(model, 2.0, positions={"mask": wanted}):
                steered = model(text)[:, -1]
        assert found == pytest.approx(kl(plain, steered), rel=1e-4, abs=1e-9)


def test_each_handle_counts_its_own_passes_only(model: Any) -> None:
    """Also while the log of another one is measured."""
    tokens = torch.tensor(ROWS[:1])
    with vector_for(model).apply(model, log=True) as outer:
        model(tokens)
        with vector_for(model, 4).apply(model, log=True) as inner:
            model(tokens)
        model(tokens)
        assert (outer.calls, inner.calls) == (3, 1)
        assert outer.positions_touched == 3 * 8
        assert outer.log is not None
        assert inner.log is not None
        assert (len(outer.log.entries), len(inner.log.entries)) == (3, 1)
    assert sorted(outer.log.kl) == [1, 2]


def test_nothing_is_measured_after_an_exception_or_after_the_hooks_are_gone(model: Any) -> None:
    tokens, passes, handles = torch.tensor(ROWS[:1]), [], []

    def fail() -> None:
        with vector_for(model).apply(model, log=True) as handle:
            handles.append(handle)
            model(tokens)
            raise RuntimeError("on purpose")

    def count(activation: Tensor, hook: object) -> None:
        passes.append(activation.shape)

    with model.hooks(fwd_hooks=[("hook_embed", count)]), pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert len(passes) == 1
    with vector_for(model).apply(model, log=True) as reset:
        model(tokens)
        model.reset_hooks()
    (handle,) = handles
    for each in (handle, reset):
        assert each.log is not None
        assert len(each.log.entries) == 1
        assert each.log.kl == {}
    handle.finish()  # too late, and no matter
    assert handle.log is not None
    assert handle.log.kl == {}


def test_a_coefficient_of_zero_is_logged_as_nothing(model: Any) -> None:
    with vector_for(model).apply(model, 0.0, log=True) as handle:
        model(torch.tensor(ROWS[:1]))
    assert handle.log is not None
    assert handle.log.entries == [LogEntry(1, 0, ((),), None, None)]
    assert handle.log.kl == {1: 0.0}


def test_a_call_whose_tokens_are_not_known_has_no_kl(bridges: Any) -> None:
    model = bridges[0]
    with vector_for(model).apply(model, log=True) as handle:
        model.original_model(inputs_embeds=torch.randn(1, 3, 16))
    assert handle.log is not None
    assert len(handle.log.entries) == 1
    assert handle.log.kl == {}


def test_a_log_is_shown_as_a_table_and_kept_as_json(bridges: Any) -> None:
    model = bridges[0]
    steering = vector_for(model).add(positions=[1]) + vector_for(model, 4).ablate(positions=[39])
    with steering.apply(model, log=True) as handle:
        model(torch.tensor(ROWS[:1]))
    log = handle.log
    assert log is not None
    assert repr(log) == "SteeringLog(1 calls, 2 entries, KL of 1 calls)"
    first, second = log.rows()
    assert (first["call"], first["step"], first["positions changed"]) == ("1", "add × 1 on small L1 at [1]", "1")
    assert first["KL to unsteered"] == f"{log.kl[1]:.4f}"
    assert (second["positions changed"], second["projection before"], second["after"]) == ("–", "–", "–")
    assert "positions changed" in log._repr_html_()
    kept = json.loads(json.dumps(log.to_json()))
    assert kept["entries"][0]["before"] == log.entries[0].before
    assert kept["kl"] == {"1": log.kl[1]}


def test_an_attached_log_is_measured_as_it_is_finished(model: Any) -> None:
    handle = vector_for(model).attach(model, 3.0, log=True)
    model(torch.tensor([[1, 7, 9, 4]]))
    assert handle.log is not None
    assert handle.log.kl == {}
    handle.finish()
    assert handle.log.kl[1] > 0
    assert not handle.is_at_work()
