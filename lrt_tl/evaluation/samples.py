"""What the model writes, plain and steered, side by side."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.steering import Steering
from lrt_tl.text.batches import tokenize


def sample_texts(
    model: HookedModel,
    prompts: Sequence[str],
    steering: Mapping[str, Steering | None],
    *,
    max_new_tokens: int = 30,
    temperature: float = 0.8,
    prepend_bos: bool = True,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Continuations of each prompt, by the names of `steering`; None is the plain model.

    Every continuation begins from the same random state, so that what differs is the steering. The random state of the
    caller is left as it was.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> large = storyworld.load("large")
        >>> vector = lrt.mean_difference(large, storyworld.contrast_pairs("refusal", 16), layer=5)
        >>> steering = {"plain": None, "refusing": vector.add(2.0), "obeying": vector.add(-2.0)}
        >>> (found,) = lrt.sample_texts(large, storyworld.neutral_prompts("refusal", 1), steering, max_new_tokens=8)
        >>> list(found)
        ['prompt', 'plain', 'refusing', 'obeying']
        >>> answers = storyworld.behavior("refusal").score
        >>> found["refusing"].startswith(answers.positive), found["obeying"].startswith(answers.negative)
        (True, True)
    """
    texts = []
    for prompt in prompts:
        row = {"prompt": prompt}
        for name, steps in steering.items():
            with nullcontext() if steps is None else steps.apply(model):
                row[name] = _continue(model, prompt, max_new_tokens, temperature, prepend_bos, seed)
        texts.append(row)
    return texts


def _continue(
    model: HookedModel, prompt: str, max_new_tokens: int, temperature: float, prepend_bos: bool, seed: int
) -> str:
    tokens = torch.tensor(tokenize(model.tokenizer, [prompt], prepend_bos=prepend_bos), device=model.cfg.device)
    room = min(max_new_tokens, model.cfg.n_ctx - tokens.shape[1])
    if room < 1:
        return ""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            tokens,
            max_new_tokens=room,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            stop_at_eos=model.tokenizer.eos_token_id is not None,
            return_type="tokens",
            verbose=False,
        )
    return new_text(model.tokenizer, tokens[0].tolist(), written[0].tolist())


def new_text(tokenizer: Any, given: list[int], whole: list[int]) -> str:
    """What follows the given tokens. Decoded by themselves, the new ones would lose the space in front of them."""
    before, text = (str(tokenizer.decode(row, skip_special_tokens=True)) for row in (given, whole))
    return text[len(before) :]
