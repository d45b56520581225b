"""What is attached to a model: the handle that takes it off, and the list of all of them."""

import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.attach import Attachment
from lrt_tl.models.call import Call, Text
from lrt_tl.models.calls import CallWatcher, watch
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.hooks import steering_hooks
from lrt_tl.steering.log import SteeringLog
from lrt_tl.steering.operators import Step, same_direction
from lrt_tl.text.positions import positions_to_json


class SteeringHandle:
    """Steps at work on a model, until `remove()`.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> handle = vector.attach(model, 4.0, positions={"last": 2})
        >>> logits = model("The capital of Norvia is")
        >>> handle.changed
        [[4, 5]]
        >>> handle.remove()
        >>> handle.is_at_work()
        False
    """

    def __init__(self, model: HookedModel, steps: Sequence[Step], *, log: bool = False) -> None:
        self.steps = tuple(steps)
        self.calls = 0
        """Forward passes that reached a step."""
        self.log = SteeringLog(self.steps) if log else None
        """What was done in each call, where that was asked for."""
        self._changes: list[Tensor | int] = []
        self._text: Text | None = None
        self._call: Call | None = None
        self._columns: list[tuple[Call, Tensor | None, bool]] = []
        self._model = model
        self._watcher: CallWatcher | None = watch(model)
        try:
            hooks = steering_hooks(self.steps, self._current, model.tokenizer, self._note)
            self._attachment = Attachment(model, hooks)
        except BaseException:
            self._watcher.release()
            raise
        self._listed = _handles.setdefault(model, [])
        self._listed.append(self)

    def _current(self, activation: Tensor) -> Call | None:
        watcher = self._watcher
        return None if watcher is None or watcher.paused else watcher.current(activation)

    def _note(self, step: int, call: Call, selected: Tensor | None, before: Tensor, after: Tensor | None) -> None:
        if self._watcher is None or self._watcher.measuring:
            return
        if call is not self._call:
            self._call = call
            self.calls += 1
        if call.text is not self._text:
            self._text, self._columns = call.text, []
        self._columns.append((call, selected, after is not None))
        if after is not None:
            self._changes.append(call.rows * call.n_positions if selected is None else selected.sum())
        if self.log is not None:
            self.log.note(step, call, selected, before, after)

    @property
    def positions_touched(self) -> int:
        """Positions changed, over all rows of all calls; one that two steps change counts twice."""
        self._changes = [sum(int(change) for change in self._changes)]
        return int(self._changes[0])

    @property
    def changed(self) -> list[list[int]]:
        """Of each row of the text that the model was last run on, with its continuation: which positions were changed,
        counted from the row's first token."""
        rows: list[set[int]] = [set() for _ in range(self._columns[0][0].rows if self._columns else 0)]
        for call, selected, changed in self._columns:
            chosen = call.mask if selected is None else selected.to(call.mask.device)
            for row, index, columns in zip(rows, call.index, chosen, strict=True):
                row.update(index[columns].tolist() if changed else ())
        return [sorted(row) for row in rows]

    def remove(self) -> None:
        """Take it all off. A second time does nothing."""
        self._attachment.remove()
        if self._watcher is not None:
            self._watcher.release()
            self._watcher = None
            self._listed.remove(self)

    def finish(self) -> None:
        """Measure what the log still lacks, which takes a few forward passes, and take it all off."""
        try:
            if self.log is not None and self._watcher is not None and self.is_at_work():
                self.log.measure(self._model, self._watcher)
        finally:
            self.remove()

    def is_at_work(self) -> bool:
        """False after `remove()`, and after `model.reset_hooks()`, which takes off everybody's hooks."""
        return self._attachment.is_on()

    def __repr__(self) -> str:
        state = "at work" if self.is_at_work() else "removed"
        steps = "; ".join(map(repr, self.steps))
        return f"SteeringHandle({steps}, {state}: {self.calls} calls, {self.positions_touched} positions touched)"


_handles: "WeakKeyDictionary[Any, list[SteeringHandle]]" = WeakKeyDictionary()


def steered(model: HookedModel) -> list[SteeringHandle]:
    """The handles of what is attached to a model now, also of those whose handle was lost.

    `for handle in steered(model): handle.remove()` takes all of them off.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model = lrt.load_model("storyworld-small")
        >>> vector = lrt.mean_difference(model, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> lost = vector.attach(model, 4.0)
        >>> len(lrt.steered(model))
        1
        >>> for handle in lrt.steered(model):
        ...     handle.remove()
        >>> lrt.steered(model)
        []
    """
    for handle in list(_handles.get(model, [])):
        if not handle.is_at_work():
            handle.remove()
    return list(_handles.get(model, []))


def require_at_rest(model: HookedModel) -> None:
    """Refuse to measure a model that something would silently change.

    Raises:
        LrtError: a steering vector is attached to it, or it is a Bridge in training mode, with dropout.
    """
    if handles := steered(model):
        raise LrtError(
            f"{model.cfg.model_name} is being steered by {handles}: take that off first, with "
            "for handle in lrt_tl.steered(model): handle.remove()"
        )
    if getattr(getattr(model, "original_model", None), "training", False):
        raise LrtError(f"{model.cfg.model_name} is in training mode, where dropout is random: call model.eval() first")


def warn_of_repeated(steps: Sequence[Step], model: HookedModel) -> None:
    """Warn where a handle is at work that does one of these steps, as after a cell of a notebook is run again."""
    at_work = [step for handle in steered(model) for step in handle.steps]
    repeated = [step for step in at_work if any(_repeats(each, step) for each in steps)]
    if repeated:
        warnings.warn(
            f"{model.cfg.model_name} is already steered by this vector ({'; '.join(map(repr, repeated))}): this adds "
            "to it. To take that off, call handle.remove(), or, for all handles, "
            "for handle in lrt_tl.steered(model): handle.remove()",
            stacklevel=3,
        )


def _repeats(step: Step, other: Step) -> bool:
    """Whether two steps do the same to the same positions, by whatever coefficient."""
    if step.idle or other.idle or (step.operator, step.site.hook_name) != (other.operator, other.site.hook_name):
        return False
    if (step.when is None) != (other.when is None) or (step.when and other.when and not step.when.equals(other.when)):
        return False
    return same_direction(step, other) and positions_to_json(step.positions) == positions_to_json(other.positions)
