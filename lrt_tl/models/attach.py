"""Put hooks on a model and take exactly those off again; other people's hooks stay as they are.

TransformerLens removes hooks by context level or all at once. Here each hook is removed by its own handle, so that any
number of attachments can be nested or interleaved, with each other and with `model.hooks(...)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lrt_tl.models.hook_names import hook_points
from lrt_tl.models.protocol import Hook, HookedModel


class Attachment:
    """Hooks that are on a model until `remove()`, which may be called more than once."""

    def __init__(self, model: HookedModel, hooks: Sequence[tuple[str, Hook]]) -> None:
        self._handles: list[tuple[Any, Any]] = []
        points = hook_points(model, [name for name, _ in hooks])
        try:
            for point, (_, hook) in zip(points, hooks, strict=True):
                point.add_hook(hook)
                self._handles.append((point, point.fwd_hooks[-1]))
        except BaseException:
            self.remove()
            raise

    def is_on(self) -> bool:
        """Whether all hooks are still there: `model.reset_hooks()` takes off everybody's."""
        return bool(self._handles) and all(
            any(other is handle for other in point.fwd_hooks) for point, handle in self._handles
        )

    def remove(self) -> None:
        """Take the hooks off. One that `model.reset_hooks()` has already removed is no matter."""
        for point, handle in self._handles:
            handle.hook.remove()
            point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
        self._handles = []


@contextmanager
def attached(model: HookedModel, hooks: Sequence[tuple[str, Hook]]) -> Iterator[Attachment]:
    """Hooks that are on a model inside a `with` block, whatever happens in it."""
    attachment = Attachment(model, hooks)
    try:
        yield attachment
    finally:
        attachment.remove()
