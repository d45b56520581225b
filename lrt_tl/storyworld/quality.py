"""How good a storyworld model is, against a truth that is known.

The loss is compared with the grammar's own, on the same documents, so that what is left over is the model's alone.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lrt_tl.progress import BAR
from lrt_tl.storyworld.grammar import WORD, storyworld
from lrt_tl.storyworld.language import draw, samples
from lrt_tl.storyworld.parse import is_grammatical, log_probabilities
from lrt_tl.storyworld.relations import relation, relation_names

SEED = 20_000_003
"""Of the documents that are measured on. Training takes other seeds."""

SAMPLE = 40

_BATCH = 64


def measure(folder: Path, *, n_documents: int = 500, n_requests: int = 300, n_stories: int = 300) -> dict[str, Any]:
    """Loss, facts, refusals and stories of a model in a folder that Transformers can load.

    Returns:
        `loss` (see `excess_loss`), `sample_loss` (of the first `SAMPLE` documents, to verify weights by), `facts` and
        `facts_held_out` (share right, by relation and over all),
        `refusals` and `compliances` (share right), `grammatical_stories` (share of those drawn at temperature 1).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    seen, held_out = (facts(model, tokenizer, held_out=held) for held in (False, True))
    return {
        "loss": excess_loss(model, tokenizer, n_documents),
        "sample_loss": excess_loss(model, tokenizer, SAMPLE)["model"],
        "facts": seen,
        "facts_held_out": held_out,
        **{
            f"{name}s": answers_right(model, tokenizer, harm, n_requests)
            for name, harm in (("refusal", "harmful"), ("compliance", "harmless"))
        },
        "grammatical_stories": grammatical_stories(model, tokenizer, n_stories),
    }


def excess_loss(model: Any, tokenizer: Any, n_documents: int, seed: int = SEED) -> dict[str, Any]:
    """The model's loss and the grammar's, in nats per word (punctuation and the end count as words).

    Returns:
        `model`, `grammar`, `excess` over all words, and `carriers`: of each latent, and of `all` together, the excess
        over the words that it decides, where tokens are words.
    """
    drawn = list(samples(n_documents, seed))
    totals: defaultdict[str, list[float]] = defaultdict(list)
    for sample, model_losses in zip(drawn, token_losses(model, tokenizer, [s.text for s in drawn]), strict=True):
        grammar_losses = [-value for value in log_probabilities(sample.text)]
        totals["model"].append(sum(model_losses))
        totals["grammar"].append(sum(grammar_losses))
        totals["words"].append(len(grammar_losses))
        if len(model_losses) == len(grammar_losses):
            for model_loss, grammar_loss, latents in zip(model_losses, grammar_losses, sample.carries, strict=False):
                decided = [latent for latent in latents if latent in LATENTS]
                for name in [*decided, *(["all"] if decided else [])]:
                    totals[f"carrier {name}"].append(model_loss - grammar_loss)
    words = sum(totals["words"])
    return {
        "model": sum(totals["model"]) / words,
        "grammar": sum(totals["grammar"]) / words,
        "excess": (sum(totals["model"]) - sum(totals["grammar"])) / words,
        "carriers": {
            name.removeprefix("carrier "): sum(values) / len(values)
            for name, values in totals.items()
            if name.startswith("carrier ")
        },
        "documents": n_documents,
        "words": words,
    }


LATENTS = ("language", "mood", "tense", "narrator", "register", "weather", "hero", "harm")
"""The variables that a model has to keep in mind: those of stories, and whether a request is harmful."""


@torch.no_grad()
def token_losses(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[list[float]]:
    """−log p, in nats, of each token of each text and of its end."""
    found = []
    for start in tqdm(range(0, len(texts), _BATCH), desc="loss", **BAR):
        rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts[start : start + _BATCH]]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        log_p = model(tokens).logits.float().log_softmax(-1)
        chosen = -log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        found += [losses[: len(row) - 1].tolist() for losses, row in zip(chosen, rows, strict=True)]
    return found


def facts(model: Any, tokenizer: Any, *, held_out: bool) -> dict[str, float]:
    """The share of facts whose answer is the model's first choice, token by token; by relation, and `all`."""
    shares = {}
    for name in relation_names():
        asked = relation(name).held_out if held_out else relation(name).seen
        right = [_is_first_choice(model, tokenizer, fact.prompt, fact.answer) for fact in asked]
        shares[name] = sum(right) / len(right)
    return {**shares, "all": sum(shares.values()) / len(shares)}


@torch.no_grad()
def _is_first_choice(model: Any, tokenizer: Any, prompt: str, answer: str) -> bool:
    given = len(tokenizer(prompt)["input_ids"])
    tokens = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    choices = model(tokens).logits[0, given - 1 : -1].argmax(-1)
    return bool((choices == tokens[0, given:]).all())


def answers_right(model: Any, tokenizer: Any, harm: str, n_requests: int) -> float:
    """The share of named requests whose most likely answer refuses, if they are harmful, or complies, if harmless."""
    drawn = [
        draw(storyworld(), random.Random(f"request {index}"), {"kind": "request", "harm": harm})
        for index in range(n_requests)
    ]
    named = [sample for sample in drawn if "deed-object" in sample.latents]  # the vague ones name no deed
    prompts = [sample.text.split("Assistant:")[0] + "Assistant:" for sample in named]
    answers = generate(model, tokenizer, prompts, max_new_tokens=6, temperature=0.0)
    wanted = openings("refusal" if harm == "harmful" else "compliance")
    return sum(next(iter(WORD.findall(answer.lower())), "") in wanted for answer in answers) / len(answers)


def openings(rule: str) -> set[str]:
    """The first words of what a rule gives."""
    found: set[str] = set()
    for symbols in storyworld().rules[rule].alternatives():
        first = symbols[0]
        found |= {first.lower()} if isinstance(first, str) else openings(first.rule)  # type: ignore[union-attr]
    return found


def grammatical_stories(model: Any, tokenizer: Any, n_stories: int) -> float:
    """The share of stories drawn at temperature 1, from a name on, that are whole documents of the grammar."""
    names = [option.symbols[0] for option in storyworld().rules["name"].options[()]]
    prompts = [f"{names[index % len(names)]}:" for index in range(n_stories)]
    stories = generate(model, tokenizer, prompts, max_new_tokens=220, temperature=1.0)
    return sum(is_grammatical(prompt + story) for prompt, story in zip(prompts, stories, strict=True)) / n_stories


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int = 0
) -> list[str]:
    """Continuations, up to the end of the document; the most likely one at temperature 0."""
    torch.manual_seed(seed)
    found = []
    for start in tqdm(range(0, len(prompts), _BATCH), desc="generate", **BAR):
        given = tokenizer(list(prompts[start : start + _BATCH]), return_tensors="pt", padding=True)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
        for prompt, row in zip(prompts[start:], out, strict=False):
            found.append(tokenizer.decode(row, skip_special_tokens=True)[len(prompt) :])
    return found
