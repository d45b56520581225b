"""A watcher that knows what a model's forward pass is looking at.

A hook sees activations `[row, position, d_model]` and nothing else. Under a KV cache these are 7 positions, then 1, 1,
1, …, and without one 7, 8, 9, …; which of them are padding, or generated, cannot be told from them. A `CallWatcher`
notes it from outside: from the arguments of the embedding and the blocks (HookedTransformer) or of the Hugging Face
model (TransformerBridge), and from the `generate` call around them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isgenerator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call, Text
from lrt_tl.models.protocol import HookedModel

_GENERATE = ("generate", "generate_stream", "hf_generate")


class CallWatcher:
    """Knows the current call of one model. Shared by all that steer it: see `watch`."""

    def __init__(self, model: HookedModel) -> None:
        self.paused = False
        """Whether hooks that ask this watcher are to do nothing: see `at_rest`."""
        self.measuring = False
        """Whether the passes are not the user's own: see `as_continuation`."""
        self._users = 0
        self._generate_depth = 0
        self._text: Text | None = None
        self._cache: Any = None
        self._embedded: list[Tensor] = []
        self._next_block = 0
        self._seen: tuple[int, int, int, Tensor | None] | None = None
        self._call: Call | None = None
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def current(self, activation: Tensor) -> Call:
        """The call that this activation `[row, position, d_model]` is part of."""
        rows, n_positions = activation.shape[:2]
        if self._seen is None or self._seen[:2] != (rows, n_positions):
            called = None if self._seen is None else self._seen[:2]
            raise LrtError(f"a hook saw {rows} rows of {n_positions} positions, but the model was called on {called}")
        if self._call is None:
            past, mask = self._seen[2:]
            mask = None if mask is None else mask.to(activation.device).bool()
            assert self._text is not None
            boundary = self._text.prompt_columns
            if not self._generate_depth and past:
                boundary = min(boundary, past)
            self._call = Call(rows, n_positions, past, mask, boundary, self._text, activation.device)
        return self._call

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Run the model as if nothing that asks this watcher were attached."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def as_continuation(self, prompt_columns: int) -> Iterator[None]:
        """Forward passes inside are of one text whose prompt has that many columns, and are nobody's to count."""
        before, self.measuring = self.measuring, True
        try:
            with _Generation(self, Text(prompt_columns)):
                yield
        finally:
            self.measuring = before

    def acquire(self) -> "CallWatcher":
        self._users += 1
        if self._users == 1:
            self._watch_forward()
            self._replace("__deepcopy__", _refuse_copy)
            for name in _GENERATE:
                if hasattr(self._model, name):
                    self._replace(name, self._watched(getattr(self._model, name)))
        return self

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            for undo in self._undo:
                undo()
            del _watchers[self._model]  # it refers to the model, which would else never be freed

    def _watch_forward(self) -> None:
        inner = getattr(self._model, "original_model", None)
        if inner is not None:
            self._before(inner, self._note_huggingface)
            self._undo.append(inner.register_forward_hook(self._note_cache).remove)
            return
        self._replace("forward", self._from_first_block(self._model.forward))  # type: ignore[attr-defined]
        self._before(self._model.embed, self._note_embedding)  # type: ignore[attr-defined]
        for layer, block in enumerate(self._model.blocks):
            self._before(block, functools.partial(self._note_block, layer))

    def _before(self, module: Any, note: Callable[..., None]) -> None:
        self._undo.append(module.register_forward_pre_hook(note, with_kwargs=True).remove)

    def _from_first_block(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Whatever block a pass begins with is its first, also where the pass before it has stopped just there."""

        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._next_block = 0
            return forward(*args, **kwargs)

        return watched

    def _note_embedding(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._embedded.append(args[0] if args else kwargs["tokens"])

    def _note_block(self, layer: int, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_first, self._next_block = layer == 0 or layer != self._next_block, layer + 1
        if not is_first and self._seen is not None and self._seen[:2] == args[0].shape[:2]:
            return  # the blocks of one pass are called on the same columns
        cache = kwargs.get("past_kv_cache_entry")
        past = 0 if cache is None else cache.past_keys.shape[1]
        tokens, self._embedded = self._embedded, []
        self._note(args[0], self._tokens_of_pass(tokens, args[0].shape[1], past), past, cache, kwargs)

    def _tokens_of_pass(self, embedded: list[Tensor], n_positions: int, past: int) -> Tensor | None:
        """`generate` without a cache embeds the token that is new, and runs the blocks on all."""
        if not embedded:
            return None
        earlier = self._text.tokens if self._generate_depth and self._text is not None and not past else None
        if earlier is not None and embedded[-1].shape[1] < n_positions:
            embedded = [earlier, *embedded]
        tokens = torch.cat(embedded, dim=1) if len({len(each) for each in embedded}) == 1 else embedded[-1]
        return tokens[:, -n_positions:] if tokens.shape[1] >= n_positions else None

    def _note_huggingface(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        ids = args[0] if args else kwargs.get("input_ids")
        inputs = ids if ids is not None else kwargs["inputs_embeds"]
        self._note(inputs, None if inputs.is_floating_point() else inputs, past, cache, kwargs)

    def _note_cache(self, _: Any, args: tuple[Any, ...], output: Any) -> None:
        """A Hugging Face model makes the cache itself, if it is given none."""
        self._cache = getattr(output, "past_key_values", self._cache)

    def _note(self, inputs: Tensor, tokens: Tensor | None, past: int, cache: Any, kwargs: dict[str, Any]) -> None:
        rows, n_positions = inputs.shape[:2]
        mask = kwargs.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.shape == (rows, past + n_positions)
        mask = mask if fits else None
        if mask is not None and mask.device.type == "cpu" and mask.all():  # on a GPU one would have to wait for that
            mask = None
        self._seen, self._call = (rows, n_positions, past, mask), None
        if not self._continues(past, cache):
            goes_on = past > 0 and not self._generate_depth
            self._text = Text(past if goes_on else past + n_positions, from_its_start=not goes_on)
        assert self._text is not None
        self._text.extend(tokens, past=past)
        self._cache = cache

    def _continues(self, past: int, cache: Any) -> bool:
        """Whether the pass goes on with the text of the one before."""
        if self._text is None:
            return False
        if self._generate_depth:
            return True
        return past > 0 and self._cache is cache

    def _replace(self, name: str, method: Callable[..., Any]) -> None:
        before = vars(self._model).get(name)  # what somebody else has put in the place of the method
        setattr(self._model, name, method)
        self._undo.append(functools.partial(self._restore, name, before))

    def _restore(self, name: str, before: Any) -> None:
        if before is None:
            vars(self._model).pop(name, None)
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

    def __init__(self, watcher: CallWatcher, text: Text | None = None) -> None:
        self._watcher = watcher
        self._state: tuple[Any, ...] = (text, None, [])

    def __enter__(self) -> "_Generation":
        if self._watcher._generate_depth == 0:
            self._exchange()
        self._watcher._generate_depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher._generate_depth -= 1
        if self._watcher._generate_depth == 0:
            self._exchange()

    def _exchange(self) -> None:
        """Put this generation's text into the watcher, and keep what was there; or the other way round."""
        watcher = self._watcher
        now = (watcher._text, watcher._cache, watcher._embedded)
        watcher._text, watcher._cache, watcher._embedded = self._state
        self._state = now


def _refuse_copy(_: object) -> None:
    raise LrtError(
        "a model that is being steered cannot be copied, for the steering of the copy would look at the calls of the "
        "original: take it off first, with for handle in lrt_tl.steered(model): handle.remove()"
    )


_watchers: "WeakKeyDictionary[Any, CallWatcher]" = WeakKeyDictionary()


def watch(model: HookedModel) -> CallWatcher:
    """The model's watcher, at work until as many `release()` as `watch()` have been called."""
    watcher = _watchers.get(model)
    if watcher is None:
        watcher = _watchers[model] = CallWatcher(model)
    return watcher.acquire()
