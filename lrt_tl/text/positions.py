"""Where and when: the one small language that says which positions are read, harvested or steered.

| value | selects |
|---|---|
| `"all"` | all text; padding is never counted, nor selected |
| `"prompt"`, `"generated"` | what the model was given; what it wrote |
| `3`, `[0, 2]`, `{"at": [0, 2]}` | positions counted from the row's first token, which is 0 |
| `{"first": n}` | the first n tokens |
| `{"last": n}` | the last n tokens of the prompt |
| `{"within": "text"}` | the prompt's tokens of which a part lies in the last occurrence of a substring |
| `{"after": "text"}` | all tokens, generated ones too, after the last occurrence of a substring in the prompt |
| `{"tokens": [5, 7]}` | these token ids |
| `{"mask": mask}` | True of a mask `[row, position]` over the prompt with its padding; or of `[row]`, whole rows |
| `{"prompt": selector, "generated": selector}` | a selector for each; one that is left out selects nothing |
| `{"not": selector}` | the complement of any of these |

Inside `"generated"` positions count from the first generated token. Special tokens are text like any other: to leave
out a beginning of sequence, say `{"not": {"first": 1}}`.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call

Positions = str | int | Sequence[int] | Mapping[str, Any]
"""A selector of the language above."""

_NAMED = ("all", "prompt", "generated")
_PARTS = {"prompt", "generated"}
_IN_THE_PROMPT = ("last", "within", "after", "mask")
_KEYS = ("at", "first", "last", "within", "after", "tokens", "mask", "not")


def check_positions(positions: object) -> None:
    """Raises:
    LrtError: it is no selector, or one that can never select anything.
    """
    _check(positions, positions)


def check_given_texts(positions: object) -> None:
    """Raises:
    LrtError: no selector; or one of what is generated, or a mask, which texts that are given, and come in batches, have
        not.
    """
    check_positions(positions)
    for name in ("generated", "mask"):
        if mentions(positions, name):
            raise LrtError(f"positions={positions!r}: texts are given, and have no {name!r} to select")


def mentions(positions: object, name: str) -> bool:
    """Whether a selector depends on one of that name: the complement of the prompt is what is generated."""
    if not isinstance(positions, Mapping):
        return isinstance(positions, str) and positions == name
    if name == "generated" and positions.get("not") in ("prompt", {"prompt": "all"}):
        return True
    return name in positions or any(mentions(positions.get(key), name) for key in ("not", "prompt", "generated"))


def positions_to_json(positions: object) -> Any:
    """The selector as JSON can hold it: masks as lists."""
    if isinstance(positions, Mapping):
        return {key: positions_to_json(value) for key, value in positions.items()}
    if isinstance(positions, Tensor):
        return positions.tolist()
    if isinstance(positions, Integral):
        return int(positions)
    if isinstance(positions, Sequence) and not isinstance(positions, str):
        return [positions_to_json(value) for value in positions]
    return positions


def select(positions: Positions, call: Call, tokenizer: Any = None) -> Bool[Tensor, "row position"]:
    """The selected columns of a call.

    Args:
        tokenizer: for substrings.

    Raises:
        LrtError: a row's prompt does not contain the substring, a mask does not fit the prompt, or tokens, or where
            the prompt ends, are needed and not known.
    """
    if positions == "all":
        return call.mask
    if positions == "prompt":
        return call.mask & ~call.generated
    if positions == "generated":
        return call.mask & call.generated
    if not isinstance(positions, Mapping) or not positions.keys() <= _PARTS:
        return _choose(positions, call, call.mask, call.index, tokenizer)
    chosen = torch.zeros_like(call.mask)
    if "prompt" in positions:
        chosen = chosen | _choose(positions["prompt"], call, call.mask & ~call.generated, call.index, tokenizer)
    if "generated" in positions:
        if positions["generated"] != "all" and not call.text.from_its_start:
            raise LrtError(
                f"positions={positions!r}: what is generated is counted from the end of the prompt, and this call goes "
                "on from a KV cache that was filled before: give the model the whole prompt, or use 'generated'"
            )
        since = call.index - call.prompt_length[:, None]
        chosen = chosen | _choose(positions["generated"], call, call.mask & call.generated, since, tokenizer)
    return chosen


def _choose(
    positions: Positions,
    call: Call,
    among: Bool[Tensor, "row position"],
    index: Int[Tensor, "row position"],
    tokenizer: Any,
) -> Bool[Tensor, "row position"]:
    """The selected of the columns in question, which are counted by `index`."""
    if isinstance(positions, str) or (isinstance(positions, Mapping) and positions.keys() <= _PARTS):
        return among & select(positions, call, tokenizer)
    if not isinstance(positions, Mapping):
        positions = {"at": positions}
    ((key, value),) = positions.items()
    if key == "not":
        return among & ~_choose(value, call, among, index, tokenizer)
    if key == "at":
        return among & torch.isin(index, torch.as_tensor(value, device=index.device).reshape(-1))
    if key == "first":
        return among & (index < int(value))
    if key == "last":
        return among & ~call.generated & (index >= call.prompt_length[:, None] - int(value))
    if key == "tokens":
        return among & torch.isin(call.tokens, torch.as_tensor(value, device=index.device).reshape(-1))
    if key == "mask":
        return among & _masked(torch.as_tensor(value), call)
    first, end = _spans(value, call, tokenizer)
    return among & (index >= end if key == "after" else (index >= first) & (index < end))


def _masked(mask: Tensor, call: Call) -> Bool[Tensor, "row position"]:
    """A mask over rows, or over the columns of the prompt; none of it is True after that."""
    wanted: tuple[int, ...] = (call.rows,) if mask.ndim == 1 else (call.rows, call.prompt_columns)
    if mask.shape != wanted:
        raise LrtError(
            f"a mask of shape {tuple(mask.shape)} does not fit a prompt of {call.rows} rows and {call.prompt_columns} "
            "columns: it must be [row, position], or [row] for whole rows"
        )
    mask = mask.bool().to(call.mask.device)
    if mask.ndim == 1:
        return mask[:, None].expand_as(call.mask)
    columns = call.past + call.n_positions
    whole = torch.zeros(call.rows, max(columns, mask.shape[1]), dtype=torch.bool, device=mask.device)
    whole[:, : mask.shape[1]] = mask
    return whole[:, call.past : columns]


def _spans(substring: str, call: Call, tokenizer: Any) -> tuple[Int[Tensor, "row 1"], Int[Tensor, "row 1"]]:
    """In each row's own count: the first token that a substring of the prompt lies in, and the one after its last."""
    key = ("span", substring)
    if key not in call.text.known:
        if tokenizer is None:
            raise LrtError(f"the text {substring!r} is looked for in the prompt's text: that needs a tokenizer")
        spans = [_span(substring, row, number, tokenizer) for number, row in enumerate(call.prompts())]
        call.text.known[key] = torch.tensor(spans, device=call.mask.device)[..., None]
    first, end = call.text.known[key].to(call.mask.device).unbind(1)
    return first, end


def _span(substring: str, ids: list[int], number: int, tokenizer: Any) -> tuple[int, int]:
    def text_of(n: int) -> str:
        return str(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False))

    whole = text_of(len(ids))
    at = whole.rfind(substring)
    if at < 0:
        raise LrtError(f"the prompt of row {number} does not contain {substring!r}: it is {whole[:80]!r}")
    end = at + len(substring)  # a character of which a token holds a part only is decoded to another one
    first = _least(lambda n: len(text_of(n)) > at, len(ids)) - 1
    return first, _least(lambda n: text_of(n)[:end] == whole[:end], len(ids))


def _least(enough: Callable[[int], bool], most: int) -> int:
    """The least n of 1 … most that is enough, by bisection."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _check(selector: object, whole: object, part: str | None = None) -> None:
    """A selector, or one inside the part `"prompt"` or `"generated"`."""
    if isinstance(selector, str):
        if selector not in _NAMED or (part and selector != "all"):
            names = "'all'" if part else ", ".join(map(repr, _NAMED))
            _refuse(whole, f"use {names}, absolute positions from 0, or a mapping with one of {', '.join(_KEYS)}")
    elif not isinstance(selector, Mapping):
        _check_numbers(selector, whole, "absolute positions are")
    elif selector and not part and selector.keys() <= _PARTS:
        for name, inner in selector.items():
            _check(inner, whole, name)
    elif len(selector) != 1 or next(iter(selector)) not in _KEYS:
        parts = "" if part else "; or prompt and generated"
        _refuse(whole, f"{dict(selector)!r} must have one key, of {', '.join(_KEYS)}{parts}")
    else:
        ((key, value),) = selector.items()
        _check_value(key, value, whole, part)


def _check_value(key: str, value: Any, whole: object, part: str | None) -> None:
    if part == "generated" and key in _IN_THE_PROMPT:
        _refuse(whole, f"{key!r} is of the prompt, and cannot be known of what is generated")
    if key == "not":
        _check(value, whole, part)
        if value in ("all", {"prompt": "all", "generated": "all"}):
            _refuse(whole, "nothing is left of 'all': it selects nothing")
    elif key in ("first", "last"):
        if not _is_whole(value) or value < 1:
            _refuse(whole, f"{key!r} takes a number of tokens, 1 or more")
    elif key in ("within", "after"):
        if not isinstance(value, str) or not value:
            _refuse(whole, f"{key!r} takes a text that is not empty")
    elif key == "mask":
        _check_mask(value, whole)
    else:
        _check_numbers(value, whole, "token ids are" if key == "tokens" else "absolute positions are")


def _check_mask(value: Any, whole: object) -> None:
    try:
        mask = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        _refuse(whole, "a mask is a tensor, or lists of one length, of True and False")
    if mask.ndim not in (1, 2) or bool(((mask != 0) & (mask != 1)).any()):
        _refuse(whole, "a mask is [row, position] or [row], of True and False")
    if not mask.any():
        _refuse(whole, "the mask is False everywhere: it selects nothing")


def _check_numbers(value: object, whole: object, what: str) -> None:
    numbers = [value] if isinstance(value, Integral) else value
    if (
        not isinstance(numbers, Sequence)
        or isinstance(numbers, str)
        or not numbers
        or not all(_is_whole(number) and number >= 0 for number in numbers)
    ):
        _refuse(whole, f"{what} whole numbers from 0, and there must be one")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refuse(whole: object, why: str) -> NoReturn:
    raise LrtError(f"positions={whole!r}: {why}")
