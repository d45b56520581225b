"""The one selector language, against a loop over rows and columns."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lrt_tl
from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call, Text
from lrt_tl.text.positions import check_positions, positions_to_json, select
from tests.checkpoints import WORDS
from tests.unchecked import without_type_checks

N_COLUMNS, N_PROMPT = 9, 6
PADDING = {
    "none": [[1] * N_COLUMNS] * 3,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * N_COLUMNS, [0, 1, 1, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0, 0, 1, 1, 1], [1] * N_COLUMNS, [1, 1, 1, 1, 1, 0, 1, 1, 1]],
}
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 5, 11], [5, 6, 7, 8, 9, 10, 3, 4, 5], [9, 9, 4, 7, 7, 10, 3, 10, 4]])
ROWS_MASK = [False, True, True]
PROMPT_MASK = [[True, False, True, True, False, True]] * 3

Wanted = Callable[[int, int, int, int, int, int], bool]
"""Of a column of text: row, column, its index in the row, the length of the row's prompt, token, whether generated."""

SELECTORS: list[tuple[Any, Wanted]] = [
    ("all", lambda row, column, index, n, token, new: True),
    ("prompt", lambda row, column, index, n, token, new: not new),
    ("generated", lambda row, column, index, n, token, new: bool(new)),
    (0, lambda row, column, index, n, token, new: index == 0),
    ([0, 3], lambda row, column, index, n, token, new: index in (0, 3)),
    (range(1, 3), lambda row, column, index, n, token, new: index in (1, 2)),
    ({"at": (2, 7)}, lambda row, column, index, n, token, new: index in (2, 7)),
    (99, lambda row, column, index, n, token, new: False),
    ({"first": 2}, lambda row, column, index, n, token, new: index < 2),
    ({"last": 2}, lambda row, column, index, n, token, new: not new and index >= n - 2),
    ({"last": 50}, lambda row, column, index, n, token, new: not new),
    ({"tokens": [5, 10]}, lambda row, column, index, n, token, new: token in (5, 10)),
    ({"mask": ROWS_MASK}, lambda row, column, index, n, token, new: ROWS_MASK[row]),
    (
        {"mask": torch.tensor(PROMPT_MASK)},
        lambda row, column, index, n, token, new: column < N_PROMPT and PROMPT_MASK[row][column],
    ),
]
OF_THE_PROMPT = ("last", "within", "after", "mask")


def call_of(padding: str, past: int, n_prompt: int = N_PROMPT, n_columns: int = N_COLUMNS) -> Call:
    """The columns from `past` on, of which the first `n_prompt` of all are the prompt."""
    mask = torch.tensor(PADDING[padding]).bool()[:, :n_columns]
    text = Text(n_prompt, TOKENS[:, :n_columns])
    return Call(3, n_columns - past, past, None if mask.all() else mask, n_prompt, text)


def assert_selects(positions: Any, wanted: Wanted, call: Call, padding: str) -> None:
    check_positions(positions)
    chosen = select(positions, call)
    assert chosen.shape == (3, call.n_positions)
    for row in range(3):
        mask, n_prompt = PADDING[padding][row], sum(PADDING[padding][row][: call.prompt_columns])
        for column in range(call.past, call.past + call.n_positions):
            index, token = sum(mask[:column]), int(TOKENS[row, column])
            is_wanted = wanted(row, column, index, n_prompt, token, column >= call.prompt_columns)
            assert bool(chosen[row, column - call.past]) == bool(mask[column] and is_wanted), (row, column)


each_call = pytest.mark.parametrize("past", [0, 4, N_PROMPT, N_COLUMNS - 1])
each_padding = pytest.mark.parametrize("padding", PADDING)
each_selector = pytest.mark.parametrize(("positions", "wanted"), SELECTORS, ids=[str(s)[:30] for s, _ in SELECTORS])


@each_call
@each_padding
@each_selector
def test_each_selector_and_its_complement(positions: Any, wanted: Wanted, padding: str, past: int) -> None:
    call = call_of(padding, past)
    assert_selects(positions, wanted, call, padding)
    if positions != "all":
        assert_selects({"not": positions}, lambda *place: not wanted(*place), call, padding)
        assert_selects({"not": {"not": positions}}, wanted, call, padding)


@each_call
@each_padding
@each_selector
def test_each_selector_in_the_prompt_and_in_what_is_generated(
    positions: Any, wanted: Wanted, padding: str, past: int
) -> None:
    """There, positions count from the first generated token."""
    if positions in ("prompt", "generated"):
        return
    call = call_of(padding, past)
    assert_selects({"prompt": positions}, lambda *place: not place[5] and wanted(*place), call, padding)
    if isinstance(positions, dict) and next(iter(positions)) in OF_THE_PROMPT:
        return

    def in_generated(row: int, column: int, index: int, n: int, token: int, new: int) -> bool:
        return bool(new) and wanted(row, column, index - n, n, token, new)

    def in_either(row: int, column: int, index: int, n: int, token: int, new: int) -> bool:
        return in_generated(row, column, index, n, token, new) or (not new and index == 1)

    assert_selects({"generated": positions}, in_generated, call, padding)
    assert_selects({"prompt": 1, "generated": positions}, in_either, call, padding)
    assert_selects({"not": {"prompt": 1, "generated": positions}}, lambda *p: not in_either(*p), call, padding)


@each_padding
@each_selector
def test_a_call_that_is_all_prompt_and_one_that_is_all_padding(positions: Any, wanted: Wanted, padding: str) -> None:
    call = call_of(padding, 0, N_PROMPT, N_PROMPT)
    assert_selects(positions, wanted, call, padding)
    empty = Call(3, 6, 0, torch.zeros(3, 6, dtype=torch.bool), 6, Text(6, TOKENS[:, :6]))
    assert not select(positions, empty).any()


def test_where_the_prompt_ends_is_not_guessed() -> None:
    call = Call(3, 5, 4, None, 4, Text(4, TOKENS, from_its_start=False))
    assert select("generated", call).all()
    assert select({"generated": "all"}, call).all()
    for inner in (0, {"first": 2}, {"not": 0}):
        with pytest.raises(LrtError, match=r"counted from the end of the prompt.*filled before"):
            select({"generated": inner}, call)


# Substrings


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer of one token a word."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return lrt_tl.load_model("storyworld-large-alt").tokenizer


def call_on(tokenizer: Any, prompts: list[str], n_new: int = 0, *, past: int = 0, side: str = "left") -> Call:
    """A call on these prompts, padded, with some generated tokens after them."""
    rows = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width + n_new), 2), torch.zeros(len(rows), width + n_new, dtype=torch.bool)
    mask[:, width:] = True
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[number, columns], mask[number, columns] = torch.tensor(row), True
    return Call(len(rows), width + n_new - past, past, mask, width, Text(width, tokens))


def by_bytes(tokenizer: Any, ids: list[int], substring: str) -> list[int]:
    """Which tokens hold a byte of the last occurrence: of a byte-level tokenizer, each character is a byte."""
    pieces = [len(tokenizer.convert_ids_to_tokens(token)) for token in ids]
    begin = tokenizer.decode(ids).encode().rfind(substring.encode())
    end, place, chosen = begin + len(substring.encode()), 0, []
    for number, length in enumerate(pieces):
        if place < end and place + length > begin:
            chosen.append(number)
        place += length
    return chosen


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("substring", ["word4", "word5 word6", "d4 wo", " word6", "4"])
def test_substrings_of_words(words: Any, substring: str, side: str) -> None:
    prompts = ["word4 word5 word6", "word7 word4 word5 word6 word8 word4 word5 word6 word9"]
    call = call_on(words, prompts, 2, side=side)
    within, after = (select({key: substring}, call, words) for key in ("within", "after"))
    for row, prompt in enumerate(prompts):
        text, index = prompt.split(), call.index[row]
        start = prompt.rfind(substring)
        bounds = [len(" ".join(text[: n + 1])) for n in range(len(text))]
        expected = [
            n for n in range(len(text)) if bounds[n] > start and (bounds[n - 1] if n else 0) < start + len(substring)
        ]
        assert index[within[row]].tolist() == expected
        assert index[after[row]].tolist() == list(range(expected[-1] + 1, len(text) + 2))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("substring", ["é", "漢", "字", "漢字", "🙂", "🙂🙃", "b🙂", "naïve", "é漢", "b"])
def test_characters_that_are_split_over_tokens(byte_level: Any, substring: str, side: str) -> None:
    prompts = [f"{substring} {substring}b", f"aé 漢字 b🙂🙃 naïve é漢{substring}字", f"🙃{substring}"]
    call = call_on(byte_level, prompts, side=side)
    within = select({"within": substring}, call, byte_level)
    after = select({"after": substring}, call, byte_level)
    for row, ids in enumerate(call.prompts()):
        expected = by_bytes(byte_level, ids, substring)
        assert call.index[row][within[row]].tolist() == expected
        assert call.index[row][after[row]].tolist() == list(range(expected[-1] + 1, len(ids)))


def test_the_tokenizer_does_split_these_characters(byte_level: Any) -> None:
    """Or the test above would show little."""
    for character in ("漢", "🙂"):
        assert len(byte_level.encode(character, add_special_tokens=False)) > 1


def test_substrings_under_a_cache(words: Any) -> None:
    """What was found in the prompt holds for all that follows it, and is looked for once."""
    whole = call_on(words, ["word4 word5 word6", "word5"], 3)
    for past in (2, 3, 5):
        call = Call(2, 6 - past, past, whole.text_columns, 3, whole.text)
        for positions in ({"within": "word5"}, {"after": "word5"}, {"not": {"after": "word5"}}):
            expected = select(positions, whole, words)[:, past:]
            assert torch.equal(select(positions, call, words), expected)
    assert list(whole.text.known) == [("span", "word5")]
    whole.text.tokens = None
    assert select({"after": "word5"}, Call(2, 1, 5, whole.text_columns, 3, whole.text)).all()


def test_a_substring_that_one_row_lacks_is_refused(words: Any) -> None:
    call = call_on(words, ["word4 word5", "word6 word7"])
    for key in ("within", "after"):
        with pytest.raises(LrtError, match=r"the prompt of row 1 does not contain 'word5': it is 'word6 word7'"):
            select({key: "word5"}, call, words)
    empty = Call(1, 2, 0, torch.zeros(1, 2, dtype=torch.bool), 2, Text(2, torch.tensor([[4, 5]])))
    with pytest.raises(LrtError, match=r"row 0 does not contain 'word5': it is ''"):
        select({"within": "word5"}, empty, words)


def test_what_cannot_be_looked_up_is_refused(words: Any) -> None:
    unknown = Call(1, 2, 0, None, 2, Text(2))
    for positions in ({"within": "word5"}, {"tokens": [5]}):
        with pytest.raises(LrtError, match="the tokens of this call are not known"):
            select(positions, unknown, words)
    with pytest.raises(LrtError, match="needs a tokenizer"):
        select({"within": "word5"}, call_on(words, ["word5"]))


@pytest.mark.parametrize("mask", [[True], [[True] * 5] * 3, [[True] * 9] * 3, [[True] * 6]], ids=str)
def test_a_mask_that_does_not_fit_is_refused(mask: Any) -> None:
    for past in (0, N_PROMPT):
        with pytest.raises(LrtError, match=r"does not fit a prompt of 3 rows and 6 columns"):
            select({"mask": mask}, call_of("left", past))


# What is no selector


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("last", "use 'all', 'prompt', 'generated', absolute positions from 0, or a mapping with one of at, first"),
        ("", "use 'all', 'prompt', 'generated'"),
        (-1, "absolute positions are whole numbers from 0, and there must be one"),
        (True, "absolute positions are whole numbers"),
        ([], "absolute positions are whole numbers"),
        ([0, -2], "absolute positions are whole numbers"),
        ([True], "absolute positions are whole numbers"),
        (["prompt"], "absolute positions are whole numbers"),
        (1.5, "absolute positions are whole numbers"),
        ([1.0], "absolute positions are whole numbers"),
        (None, "absolute positions are whole numbers"),
        (torch.tensor([1]), "absolute positions are whole numbers"),
        (np.array([1]), "absolute positions are whole numbers"),
        ({}, "must have one key, of at, first, last, within, after, tokens, mask, not; or prompt and generated"),
        ({"firts": 2}, "'firts': 2.* must have one key"),
        ({"first": 2, "last": 2}, "must have one key"),
        ({"prompt": "all", "first": 2}, "must have one key"),
        ({1: 2}, "must have one key"),
        ({"at": []}, "absolute positions are whole numbers"),
        ({"at": "all"}, "absolute positions are whole numbers"),
        ({"first": 0}, "'first' takes a number of tokens, 1 or more"),
        ({"last": -1}, "'last' takes a number of tokens, 1 or more"),
        ({"first": 1.0}, "'first' takes a number of tokens"),
        ({"last": True}, "'last' takes a number of tokens"),
        ({"within": ""}, "'within' takes a text that is not empty"),
        ({"after": 5}, "'after' takes a text that is not empty"),
        ({"tokens": []}, "token ids are whole numbers from 0, and there must be one"),
        ({"tokens": [-100]}, "token ids are whole numbers"),
        ({"tokens": "word"}, "token ids are whole numbers"),
        ({"mask": []}, r"the mask is False everywhere: it selects nothing"),
        ({"mask": [[False, False]]}, r"the mask is False everywhere: it selects nothing"),
        ({"mask": [[True], [True, False]]}, "a mask is a tensor, or lists of one length"),
        ({"mask": None}, "a mask is a tensor, or lists of one length"),
        ({"mask": "all"}, "a mask is a tensor, or lists of one length"),
        ({"mask": True}, r"a mask is \[row, position\] or \[row\], of True and False"),
        ({"mask": [[[True]]]}, r"a mask is \[row, position\] or \[row\]"),
        ({"mask": [0, 2]}, r"a mask is \[row, position\] or \[row\], of True and False"),
        ({"mask": [0.5]}, r"a mask is \[row, position\] or \[row\], of True and False"),
        ({"not": "all"}, "nothing is left of 'all': it selects nothing"),
        ({"not": {"prompt": "all", "generated": "all"}}, "nothing is left of 'all': it selects nothing"),
        ({"not": "last"}, "use 'all', 'prompt', 'generated'"),
        ({"not": np.array([1, 2])}, "absolute positions are whole numbers"),
        ({"not": {"first": 0}}, "'first' takes a number of tokens"),
        ({"prompt": "generated"}, "use 'all', absolute positions"),
        ({"generated": "prompt"}, "use 'all', absolute positions"),
        ({"prompt": {"generated": 0}}, "must have one key, of .*not$"),
        ({"prompt": {"not": "all"}}, "nothing is left of 'all'"),
        ({"generated": {"not": {"last": 2}}}, "'last' is of the prompt, and cannot be known of what is generated"),
        ({"generated": {"last": 2}}, "'last' is of the prompt"),
        ({"generated": {"within": "a"}}, "'within' is of the prompt"),
        ({"generated": {"after": "a"}}, "'after' is of the prompt"),
        ({"generated": {"mask": [True]}}, "'mask' is of the prompt"),
    ],
    ids=str,
)
def test_what_is_no_selector(positions: Any, message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message) as caught:
        check_positions(positions)
    assert str(caught.value).startswith("positions=")  # says what was given


def test_integers_of_numpy_will_do() -> None:
    for positions in (np.int64(3), [np.int64(3)], {"first": np.int64(3)}, {"tokens": [np.int64(3)]}):
        check_positions(positions)
        assert json.loads(json.dumps(positions_to_json(positions))) == positions


@pytest.mark.parametrize("positions", [s for s, _ in SELECTORS] + [{"within": "é"}, {"not": {"after": "b"}}], ids=str)
@pytest.mark.parametrize("padding", PADDING)
def test_a_selector_comes_back_from_json(byte_level: Any, positions: Any, padding: str) -> None:
    for whole in (positions, {"not": {"not": positions}})[: 1 if positions == "all" else 2]:
        found = json.loads(json.dumps(positions_to_json(whole)))
        check_positions(found)
        if "within" in str(whole) or "after" in str(whole):
            call = call_on(byte_level, ["aéb", "é b c"])
        else:
            call = call_of(padding, 2)
        assert torch.equal(select(found, call, byte_level), select(whole, call, byte_level))
