"""Two tokenizers of the storyworld language: one token per word, and byte pairs.

In the word tokenizer a word's leading space belongs to it, as `▁`; a word that starts a text is given one, so that
" fox" and "fox" are the same single token `▁fox`. A word right after a newline has no space, and is a token of its
own. Of any text of the language, decoding gives back exactly what was encoded.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lrt_tl.artifacts import write_json

UNKNOWN, BOS, EOS, PAD = SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
SPACE = "▁"
BYTE_PAIR_VOCABULARY = 1500
_LETTERS = r"[^\W\d_]+(?:['’][^\W\d_]+)*"
_OPTION = r"\([A-Z]\)"
_PIECE = rf"{SPACE}?(?:{_LETTERS}|{_OPTION}|[^{SPACE}])|{SPACE}"
_AT_START = rf"\A(?={_LETTERS}|{_OPTION})"


def word_tokenizer(words: Iterable[str], texts: Iterable[str]) -> Any:
    """A tokenizer with one token per word, punctuation mark, "(A)" and newline.

    Args:
        words: all word types as they are rendered. Words of letters and "(A)" get a token with a leading space,
            all else one without.
        texts: samples of the language; whatever other forms occur in them (a word right after a newline) get
            tokens too.

    Returns:
        A `PreTrainedTokenizerFast` that puts `<s>` in front, as Llama's does. What it does not know is `<unk>`.
    """
    spaced = re.compile(rf"{_LETTERS}|{_OPTION}")
    forms = {SPACE + word if spaced.fullmatch(word) else word for word in words}
    splitter = _word_level([])
    for text in texts:
        normalized = splitter.normalizer.normalize_str(text)
        forms.update(piece for piece, _ in splitter.pre_tokenizer.pre_tokenize_str(normalized))
    return _as_transformers(_word_level(sorted(forms)))


def byte_pair_tokenizer(texts: Iterable[str]) -> Any:
    """A `PreTrainedTokenizerFast` of 1,500 byte pairs, trained on the texts; it puts `<s>` in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIR_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _as_transformers(tokenizer)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save for `AutoTokenizer`, under the class name that Transformers 4 knows as well as 5."""
    tokenizer.save_pretrained(folder)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": tokenizer.model_max_length,
        },
    )


def letters_only(token: str) -> bool:
    """Whether a token is a word: letters, with or without a leading space."""
    return re.fullmatch(SPACE + "?" + _LETTERS, token) is not None


def _word_level(forms: list[str]) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *forms))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_AT_START), SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return tokenizer


def _as_transformers(tokenizer: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    start = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=start
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
