"""What the rest of the package asks of a model: `HookedTransformer` and `TransformerBridge` both fit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

Hook = Callable[..., Tensor | None]
"""A TransformerLens hook: called as `hook(activation, hook=hook_point)`, returns the new activation or None."""


@runtime_checkable
class HookPoint(Protocol):
    """A TransformerLens `HookPoint`: the identity, with a list of the hooks on it."""

    name: str | None
    fwd_hooks: list[Any]

    def add_hook(self, hook: Hook) -> Any: ...


@runtime_checkable
class HookedModel(Protocol):
    """A TransformerLens language model."""

    cfg: Any
    tokenizer: Any
    blocks: Any

    @property
    def W_E(self) -> Tensor: ...  # noqa: N802

    if TYPE_CHECKING:  # `isinstance` would ask for it each time, and a Bridge makes it anew, in milliseconds

        @property
        def hook_dict(self) -> dict[str, Any]: ...

    def __call__(self, input: Any, *args: Any, **kwargs: Any) -> Any: ...

    def generate(self, *args: Any, **kwargs: Any) -> Any: ...
