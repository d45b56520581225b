"""What one forward pass is looking at: which columns are text, where in the text, and whether the model wrote them.

A hook sees activations `[row, position, d_model]` and nothing else. Under a KV cache these are 7 positions, then 1, 1,
1, …, and without one 7, 8, 9, …; which of them are padding, or generated, cannot be told from them. A `CallWatcher`
notes it from outside: from the arguments of the blocks (HookedTransformer) or of the Hugging Face model
(TransformerBridge), and from the `generate` call around them.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import isgenerator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel

_GENERATE = ("generate", "generate_stream", "hf_generate")


@dataclass(frozen=True)
class Call:
    """The columns of one forward pass."""

    mask: Bool[Tensor, "row position"]
    """True at text, False at padding."""
    index: Int[Tensor, "row position"]
    """Place in the row's own text: 0 at its first token, wherever padding and the KV cache have put it."""
    generated: Bool[Tensor, "row position"]
    """True where the model wrote the token: inside `generate`, all that comes after the prompt; outside, what continues
    a KV cache."""


def call_from_mask(mask: Bool[Tensor, "row column"], *, n_positions: int, prompt_length: int | None = None) -> Call:
    """The last `n_positions` columns of a batch whose mask covers all columns, cached ones included.

    Args:
        prompt_length: the number of leading columns that are the prompt; by default all that this pass or the one that
            filled the cache began with.
    """
    columns = mask.shape[1]
    start = columns - n_positions
    boundary = prompt_length if prompt_length is not None else (start if start > 0 else columns)
    index = (mask.long().cumsum(1) - 1).clamp(min=0)
    generated = torch.arange(columns, device=mask.device) >= boundary
    return Call(mask[:, start:], index[:, start:], generated[start:].expand(mask.shape[0], -1))


class CallWatcher:
    """Knows the current call of one model. Shared by all that steer it: see `watch`."""

    def __init__(self, model: HookedModel) -> None:
        self._users = 0
        self._generate_depth = 0
        self._prompt_length: int | None = None
        self._seen: tuple[int, int, int, Tensor | None] | None = None
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def current(self, activation: Tensor) -> Call:
        """The call that this activation `[row, position, d_model]` is part of."""
        rows, n_positions = activation.shape[:2]
        if self._seen is None or self._seen[:2] != (rows, n_positions):
            called = None if self._seen is None else self._seen[:2]
            raise LrtError(f"a hook saw {rows} rows of {n_positions} positions, but the model was called on {called}")
        past, mask = self._seen[2:]
        if mask is None:
            mask = torch.ones(rows, past + n_positions, dtype=torch.bool)
        mask = mask.to(activation.device).bool()
        return call_from_mask(mask, n_positions=n_positions, prompt_length=self._prompt_length)

    def acquire(self) -> "CallWatcher":
        self._users += 1
        if self._users == 1:
            self._watch_forward()
            self._watch_generate()
        return self

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            for undo in self._undo:
                undo()
            del _watchers[self._model]  # it refers to the model, which would else never be freed

    def _watch_forward(self) -> None:
        inner = getattr(self._model, "original_model", None)
        modules = list(self._model.blocks) if inner is None else [inner]
        note = self._note_block if inner is None else self._note_huggingface
        for module in modules:
            self._undo.append(module.register_forward_pre_hook(note, with_kwargs=True).remove)

    def _note_block(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entry = kwargs.get("past_kv_cache_entry")
        self._note(args[0], 0 if entry is None else entry.past_keys.shape[1], kwargs.get("attention_mask"))

    def _note_huggingface(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        embeds = kwargs.get("inputs_embeds")
        inputs = args[0] if args else kwargs["input_ids"] if embeds is None else embeds
        self._note(inputs, 0 if cache is None else cache.get_seq_length(), kwargs.get("attention_mask"))

    def _note(self, inputs: Tensor, past: int, mask: Any) -> None:
        rows, n_positions = inputs.shape[:2]
        fits = isinstance(mask, Tensor) and mask.shape == (rows, past + n_positions)
        self._seen = (rows, n_positions, past, mask if fits else None)
        if self._generate_depth and self._prompt_length is None:
            self._prompt_length = past + n_positions

    def _watch_generate(self) -> None:
        for name in _GENERATE:
            if hasattr(self._model, name):
                before = vars(self._model).get(name)  # what somebody else has put in the place of the method
                setattr(self._model, name, self._watched(getattr(self._model, name)))
                self._undo.append(functools.partial(self._restore, name, before))

    def _restore(self, name: str, before: Any) -> None:
        if before is None:
            delattr(self._model, name)
        else:
            setattr(self._model, name, before)

    def _watched(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _Generation(self) as generation:
                result = generate(*args, **kwargs)
            return self._stream(result, generation) if isgenerator(result) else result

        return watched

    def _stream(self, stream: Iterator[Any], generation: "_Generation") -> Iterator[Any]:
        """Count as generating only while the stream runs, so that calls between two of its items are their own."""
        while True:
            with generation:
                try:
                    item = next(stream)
                except StopIteration:
                    return
            yield item


class _Generation:
    """One `generate` call; entered again each time that a stream goes on."""

    def __init__(self, watcher: CallWatcher) -> None:
        self._watcher = watcher
        self._prompt_length: int | None = None

    def __enter__(self) -> "_Generation":
        if self._watcher._generate_depth == 0:
            self._watcher._prompt_length = self._prompt_length
        self._watcher._generate_depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher._generate_depth -= 1
        if self._watcher._generate_depth == 0:
            self._prompt_length = self._watcher._prompt_length
            self._watcher._prompt_length = None


_watchers: "WeakKeyDictionary[Any, CallWatcher]" = WeakKeyDictionary()


def watch(model: HookedModel) -> CallWatcher:
    """The model's watcher, at work until as many `release()` as `watch()` have been called."""
    watcher = _watchers.get(model)
    if watcher is None:
        watcher = _watchers[model] = CallWatcher(model)
    return watcher.acquire()
