"""Sampled texts: what differs between the columns is the steering."""

from typing import Any

import torch

from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector


def test_columns_differ_by_the_steering_alone(pair: tuple[Any, Any]) -> None:
    target = pair[1]
    vector = SteeringVector(torch.linspace(-3, 3, 24), site_of(target, layer=1))
    before = torch.random.get_rng_state()
    steering = {"plain": None, "nothing": vector.add(0.0), "steered": vector.add(8.0)}
    prompts = ("word1 word2", "word3")
    rows = sample_texts(target, prompts, steering, max_new_tokens=12, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [row["prompt"] for row in rows] == list(prompts)
    assert all(row["plain"] == row["nothing"] for row in rows)
    assert any(row["plain"] != row["steered"] for row in rows)
    assert rows == sample_texts(target, prompts, steering, max_new_tokens=12, seed=3)


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_token(pair: tuple[Any, Any]) -> None:
    target = pair[1]
    vector = SteeringVector(torch.linspace(-3, 3, 24), site_of(target, layer=1))
    row = sample_texts(target, ["word5 word6"], {"steered": vector.add(2.0)}, max_new_tokens=5, temperature=0.0)[0]
    tokens = [1, *target.tokenizer("word5 word6", add_special_tokens=False)["input_ids"]]
    for _ in range(5):
        hook = (vector.site.hook_name, lambda act, hook: act + 2 * vector.direction)
        tokens.append(int(target.run_with_hooks(torch.tensor([tokens]), fwd_hooks=[hook])[0, -1].argmax()))
        if tokens[-1] == target.tokenizer.eos_token_id:
            break
    written = target.tokenizer.decode(tokens[1:], skip_special_tokens=True)
    assert row["steered"] == written.removeprefix("word5 word6")


def test_nothing_is_written_past_what_the_model_reads(pair: tuple[Any, Any]) -> None:
    """It reads 64 tokens, of which one is the beginning of sequence."""
    prompts = (" ".join(["word3"] * 60), " ".join(["word3"] * 63))
    some, none = sample_texts(pair[1], prompts, {"plain": None}, max_new_tokens=12, temperature=0.0)
    assert len(some["plain"].split()) <= 3
    assert none["plain"] == ""
