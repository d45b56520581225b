"""What steering did, call by call, for an audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.models.call import Call
from lrt_tl.models.calls import CallWatcher
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.operators import Step
from lrt_tl.tables import html_columns


@dataclass(frozen=True)
class LogEntry:
    """One step in one forward pass.

    Attributes:
        call: which pass, from 1.
        step: which step, from 0.
        positions: of each row, those that were changed, counted from the row's first token.
        before: mean projection of the changed states on the unit direction, in the residual stream's units; None
            where nothing was changed.
        after: the same when the step was done.
    """

    call: int
    step: int
    positions: tuple[tuple[int, ...], ...]
    before: float | None
    after: float | None


@dataclass(frozen=True)
class _Sampled:
    """A call that will be run again: everything up to its last column."""

    call: int
    tokens: Int[Tensor, "row column"]
    mask: Bool[Tensor, "row column"]
    prompt_columns: int


class SteeringLog:
    """Entries in the order in which they came, and the KL of a sample of the calls.

    `kl` holds, of the 1st, 2nd, 4th, 8th … call, KL(unsteered ‖ steered) in nats of the next token after the last
    column, mean over the rows: when the `with` block ends, or at `handle.finish()`, the model is run on the same tokens
    with everything of ours taken off, and again with it. A call whose tokens are not known is left out.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.entries: list[LogEntry] = []
        self.kl: dict[int, float] = {}
        self._steps = tuple(steps)
        self._calls = 0
        self._call: Call | None = None
        self._sampled: list[_Sampled] = []

    @torch.no_grad()
    def note(self, step: int, call: Call, selected: Tensor | None, before: Tensor, after: Tensor | None) -> None:
        """Add what one step, given by its number, did in one call."""
        if call is not self._call:
            self._call = call
            self._calls += 1
            if self._calls & (self._calls - 1) == 0 and (whole := call.whole()) is not None:
                self._sampled.append(_Sampled(self._calls, *whole, call.prompt_columns))
        chosen = call.mask if selected is None else selected
        if after is None or not chosen.any():
            self.entries.append(LogEntry(self._calls, step, ((),) * call.rows, None, None))
            return
        positions = tuple(
            tuple(index[row].tolist()) for index, row in zip(call.index, chosen.to(call.index.device), strict=True)
        )
        direction = self._steps[step].direction
        projections = (_projection(states[chosen.to(states.device)], direction) for states in (before, after))
        self.entries.append(LogEntry(self._calls, step, positions, *projections))

    @torch.no_grad()
    def measure(self, model: HookedModel, watcher: CallWatcher) -> None:
        """Run the sampled calls again, without the steering and with it."""
        for each in self._sampled:
            with watcher.as_continuation(each.prompt_columns):
                steered = _last_log_probabilities(model, each)
                with watcher.at_rest():
                    plain = _last_log_probabilities(model, each)
            self.kl[each.call] = float((plain.exp() * (plain - steered)).sum(-1).mean())
        self._sampled = []

    def rows(self) -> list[Mapping[str, str]]:
        """The entries for a table."""
        return [
            {
                "call": str(entry.call),
                "step": repr(self._steps[entry.step]),
                "positions changed": "; ".join(",".join(map(str, row)) or "–" for row in entry.positions),
                "projection before": "–" if entry.before is None else f"{entry.before:.3f}",
                "after": "–" if entry.after is None else f"{entry.after:.3f}",
                "KL to unsteered": f"{self.kl[entry.call]:.4f}" if entry.call in self.kl else "",
            }
            for entry in self.entries
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "steps": list(map(repr, self._steps)),
            "entries": [vars(entry) for entry in self.entries],
            "kl": self.kl,
        }

    def __repr__(self) -> str:
        return f"SteeringLog({self._calls} calls, {len(self.entries)} entries, KL of {len(self.kl)} calls)"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def _projection(states: Float[Tensor, "position d_model"], direction: Float[Tensor, "d_model"]) -> float:
    unit = (direction / direction.norm()).to(states.device)
    return float((states.float() @ unit).mean())


def _last_log_probabilities(model: HookedModel, sampled: _Sampled) -> Float[Tensor, "row d_vocab"]:
    """Of the token after each row's last column of text."""
    mask = sampled.mask.to(sampled.tokens.device)
    logits = model(sampled.tokens, attention_mask=mask.long())
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    rows = torch.arange(len(last), device=logits.device)
    found: Tensor = logits[rows, last.to(logits.device)].double().log_softmax(-1)
    return found
