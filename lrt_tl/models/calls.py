"""What one forward pass is looking at: which columns are text, which tokens, and whether the model wrote them.

A hook sees activations `[row, position, d_model]` and nothing else. Under a KV cache these are 7 positions, then 1, 1,
1, …, and without one 7, 8, 9, …; which of them are padding, or generated, cannot be told from them. A `CallWatcher`
notes it from outside: from the arguments of the embedding and the blocks (HookedTransformer) or of the Hugging Face
model (TransformerBridge), and from the `generate` call around them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from inspect import isgenerator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.protocol import HookedModel

_GENERATE = ("generate", "generate_stream", "hf_generate")


@dataclass(eq=False)
class Text:
    """The rows that a model is at work on: a prompt and what continues it, over as many forward passes as that takes.

    Attributes:
        prompt_columns: leading columns that are the prompt, padding included.
        tokens: of all columns so far `[row, column]`, where they are known.
        known: whatever was found out about the prompt once, such as where a substring ends in each row.
    """

    prompt_columns: int
    tokens: Tensor | None = None
    known: dict[Any, Any] = field(default_factory=dict)

    def extend(self, tokens: Tensor | None, *, past: int) -> None:
        """After the first `past` columns come these; None where the model was given embeddings."""
        before, self.tokens = self.tokens, None
        if tokens is not None and not past:
            self.tokens = tokens
        elif tokens is not None and before is not None and before.shape[1] >= past and len(before) == len(tokens):
            self.tokens = torch.cat([before[:, :past], tokens], dim=1)


@dataclass(frozen=True, eq=False)
class Call:
    """The columns of one forward pass.

    Attributes:
        rows: number of texts.
        n_positions: columns of this pass, the last ones of the text.
        past: columns before them, in the KV cache.
        text_columns: True at text, False at padding, cached columns included; None where all of it is text.
        prompt_columns: how many of all columns are the prompt.
        text: the same object in all passes over one prompt and its continuation.
    """

    rows: int
    n_positions: int
    past: int
    text_columns: Bool[Tensor, "row column"] | None
    prompt_columns: int
    text: Text
    device: Any = None

    @cached_property
    def _columns(self) -> Bool[Tensor, "row column"]:
        if self.text_columns is not None:
            return self.text_columns
        return torch.ones(self.rows, self.past + self.n_positions, dtype=torch.bool, device=self.device)

    @cached_property
    def mask(self) -> Bool[Tensor, "row position"]:
        """True at text, False at padding."""
        return self._columns[:, self.past :]

    @cached_property
    def index(self) -> Int[Tensor, "row position"]:
        """Place in the row's own text: 0 at its first token, wherever padding and the KV cache have put it."""
        return (self._columns.long().cumsum(1) - 1).clamp(min=0)[:, self.past :]

    @cached_property
    def generated(self) -> Bool[Tensor, "row position"]:
        """True where the model wrote the token: inside `generate`, all that comes after the prompt; outside, what
        continues a KV cache."""
        columns = torch.arange(self.past, self.past + self.n_positions, device=self._columns.device)
        return (columns >= self.prompt_columns).expand(self.rows, -1)

    @cached_property
    def prompt_length(self) -> Int[Tensor, "row"]:
        """Tokens of each row's own prompt."""
        return self._columns[:, : self.prompt_columns].sum(1)

    @cached_property
    def tokens(self) -> Int[Tensor, "row position"]:
        """Token ids.

        Raises:
            LrtError: the model was given embeddings or states, and its tokens are not known.
        """
        return self._all_tokens()[:, self.past :].to(self._columns.device)

    def prompts(self) -> list[list[int]]:
        """Token ids of each row's prompt, without padding.

        Raises:
            LrtError: as of `tokens`.
        """
        ids = self._all_tokens()[:, : self.prompt_columns].cpu()
        mask = self._columns[:, : self.prompt_columns].cpu()
        return [row[text].tolist() for row, text in zip(ids, mask, strict=True)]

    def whole(self) -> tuple[Int[Tensor, "row column"], Bool[Tensor, "row column"]] | None:
        """Tokens and mask of all columns, cached ones included, where they are known."""
        ids = self.text.tokens
        return None if ids is None or ids.shape != self._columns.shape else (ids, self._columns)

    def _all_tokens(self) -> Tensor:
        whole = self.whole()
        if whole is None:
            raise LrtError(
                "the tokens of this call are not known: it began with embeddings, inside the model, or from a KV cache "
                "that was filled before; choose positions that need no tokens"
            )
        return whole[0]


def call_from_mask(
    mask: Bool[Tensor, "row column"],
    *,
    n_positions: int,
    prompt_length: int | None = None,
    tokens: Int[Tensor, "row column"] | None = None,
) -> Call:
    """The last `n_positions` columns of a batch whose mask covers all columns, cached ones included.

    Args:
        prompt_length: the number of leading columns that are the prompt; by default all that this pass or the one that
            filled the cache began with.
        tokens: of all columns, for positions that are chosen by them.
    """
    rows, columns = mask.shape
    past = columns - n_positions
    boundary = prompt_length if prompt_length is not None else (past if past > 0 else columns)
    return Call(rows, n_positions, past, mask, boundary, Text(boundary, tokens), mask.device)


class CallWatcher:
    """Knows the current call of one model. Shared by all that steer it: see `watch`."""

    def __init__(self, model: HookedModel) -> None:
        self.paused = False
        """Whether hooks that ask this watcher are to do nothing: see `at_rest`."""
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
        """Forward passes inside are of one text whose prompt has that many columns."""
        with _Generation(self, Text(prompt_columns)):
            yield

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
        if inner is not None:
            self._before(inner, self._note_huggingface)
            self._undo.append(inner.register_forward_hook(self._note_cache).remove)
            return
        self._before(self._model.embed, self._note_embedding)  # type: ignore[attr-defined]
        for layer, block in enumerate(self._model.blocks):
            self._before(block, functools.partial(self._note_block, layer))

    def _before(self, module: Any, note: Callable[..., None]) -> None:
        self._undo.append(module.register_forward_pre_hook(note, with_kwargs=True).remove)

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
        self._cache = getattr(output, "past_key_values", None)

    def _note(self, inputs: Tensor, tokens: Tensor | None, past: int, cache: Any, kwargs: dict[str, Any]) -> None:
        rows, n_positions = inputs.shape[:2]
        mask = kwargs.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.shape == (rows, past + n_positions)
        mask = mask if fits else None
        if mask is not None and mask.device.type == "cpu" and mask.all():  # on a GPU one would have to wait for that
            mask = None
        self._seen, self._call = (rows, n_positions, past, mask), None
        if not self._continues(past, cache):
            self._text = Text(past if past and not self._generate_depth else past + n_positions)
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


_watchers: "WeakKeyDictionary[Any, CallWatcher]" = WeakKeyDictionary()


def watch(model: HookedModel) -> CallWatcher:
    """The model's watcher, at work until as many `release()` as `watch()` have been called."""
    watcher = _watchers.get(model)
    if watcher is None:
        watcher = _watchers[model] = CallWatcher(model)
    return watcher.acquire()
