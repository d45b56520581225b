"""Documents → rows of tokens: several documents in a row, each to be read by itself, with as little padding as fits.

Chunk after chunk is written, tokenized and packed in processes of its own, ahead of the training. What a chunk holds
depends on nothing but its number and the data's seed.
"""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.tokenizer import BOS, EOS, PAD, SPACE, letters_only

CHUNK = 4000
_LONG_PRIME = 1_000_003
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Packed rows.

    Attributes:
        tokens: [rows, length], padded with `<pad>`.
        document: [rows, length], which document of its row a token belongs to, 0, 1, …; -1 at padding.
        left_out: documents that were longer than a row.
    """

    tokens: Tokens
    document: Tokens
    left_out: int = 0


@dataclass(frozen=True)
class Data:
    """All that decides the training data.

    Attributes:
        seed: of the documents.
        tokenizer: the tokenizer as its JSON text.
        row_length: tokens per row.
        permutation: the token that stands for each token; None where every one stands for itself.
        chunk: documents that are packed together.
    """

    seed: int
    tokenizer: str
    row_length: int
    permutation: Tokens | None = None
    chunk: int = CHUNK

    def rows(self, number: int) -> Rows:
        """The rows of chunk 0, 1, …, shuffled."""
        tokenizer = Tokenizer.from_str(self.tokenizer)
        seed = self.seed * _LONG_PRIME + number
        encoded = encode(documents(self.chunk, seed=seed), tokenizer)
        if self.permutation is not None:
            encoded = [self.permutation[document] for document in encoded]
        rows = pack(encoded, self.row_length, padding=tokenizer.get_vocab()[PAD])
        order = np.random.default_rng(seed).permutation(len(rows.tokens))
        return Rows(rows.tokens[order], rows.document[order], rows.left_out)


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
    """`<s> text </s>` of each text."""
    start, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array([start, *encoding.ids, end], np.int32) for encoding in encodings]


def pack(encoded: Sequence[Tokens], row_length: int, padding: int) -> Rows:
    """Put every document, the longest first, into the row that it fills best; leave out what is longer than a row."""
    rows: list[list[Tokens]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # tokens that are free → rows
    fitting = sorted((document for document in encoded if len(document) <= row_length), key=len, reverse=True)
    for document in fitting:
        room = next((room for room in range(len(document), row_length + 1) if with_room[room]), None)
        if room is None:
            room, row = row_length, len(rows)
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(document)
        with_room[room - len(document)].append(row)
    tokens = np.full((len(rows), row_length), padding, np.int32)
    number = np.full((len(rows), row_length), -1, np.int32)
    for row, members in enumerate(rows):
        filled = np.concatenate(members)
        tokens[row, : len(filled)] = filled
        number[row, : len(filled)] = np.repeat(np.arange(len(members)), [len(member) for member in members])
    return Rows(tokens, number, len(encoded) - len(fitting))


def row_length_for(encoded: Sequence[Tokens], *, least: int = 128, step: int = 32) -> int:
    """The smallest multiple of `step`, from `least` on, that holds the longest of these documents."""
    longest = max(map(len, encoded))
    return max(least, -(-longest // step) * step)


def permuted_words(vocabulary: dict[str, int], seed: int = 7) -> Tokens:
    """A permutation of token numbers that trades words for words.

    Words with a leading space are traded among themselves, and so are those without; punctuation, newlines,
    "(A)" and special tokens stay.
    """
    generator = np.random.default_rng(seed)
    permutation = np.arange(len(vocabulary), dtype=np.int32)
    words = {token: number for token, number in vocabulary.items() if letters_only(token)}
    for spaced in (True, False):
        group = np.array(sorted(number for token, number in words.items() if token.startswith(SPACE) is spaced), int)
        permutation[group] = generator.permutation(group)
    return permutation


def batches(
    data: Data, rows_per_batch: int, *, chunk: int = 0, batch: int = 0, workers: int = 1
) -> Generator[tuple[int, int, Rows], None, None]:
    """All batches in order, from batch `batch` of chunk `chunk` on, without end.

    Yields:
        The position after the batch (chunk and batch in it), and the batch. `left_out` is counted in the first
        batch of a chunk. The few rows that do not fill a batch are dropped at the end of each chunk.

    Raises:
        LrtError: not even a whole chunk fills a batch.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        ahead: deque[Future[Rows]] = deque(pool.submit(data.rows, chunk + i) for i in range(workers + 1))
        try:
            while True:
                rows = ahead.popleft().result()
                if len(rows.tokens) < rows_per_batch:
                    raise LrtError(f"a batch of {rows_per_batch} rows is more than the {len(rows.tokens)} of a chunk")
                ahead.append(pool.submit(data.rows, chunk + workers + 1))
                for first in range(batch, len(rows.tokens) // rows_per_batch):
                    part = slice(first * rows_per_batch, (first + 1) * rows_per_batch)
                    left_out = rows.left_out if first == 0 else 0
                    yield chunk, first + 1, Rows(rows.tokens[part], rows.document[part], left_out)
                chunk, batch = chunk + 1, 0
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the training is killed, which it would otherwise outlive."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
