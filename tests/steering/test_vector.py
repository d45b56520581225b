"""Steering with a vector, on both classes, against an edit by hand of Hugging Face's residual stream."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.handle import require_at_rest, steered
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES, PAIRS, hooked_only
from tests.steering.reference import CHOSEN, steered_greedy, steered_logits
from tests.unchecked import without_type_checks

LAYER = 1
PAD = 2
ROWS = [[1, 7, 9, 4, 30, 11, 22, 8], [1, 5, 6], [1, 33, 21, 17, 12]]
POSITIONS = [pytest.param(positions, id=str(positions)) for positions in CHOSEN]
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture(params=[0, 1], ids=["neox", "gpt2"])
def model_and_folder(request: pytest.FixtureRequest, pair: Any, folders: Any) -> tuple[Any, Path]:
    return pair[request.param], folders[request.param]


@pytest.fixture
def model(model_and_folder: tuple[Any, Path]) -> Any:
    return model_and_folder[0]


def vector_for(model: Any, **site: Any) -> SteeringVector:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    return SteeringVector(2 * direction, site_of(model, **(site or {"layer": LAYER})), residual_norm=5.0)


def padded(rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask."""
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[index, columns], mask[index, columns] = torch.tensor(row), 1
    return tokens, mask


def is_bridge(model: Any) -> bool:
    return hasattr(model, "original_model")


def n_hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in model.hook_dict.values())


# One forward pass


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_steered_where_each_unpadded_row_would_be(
    model_and_folder: tuple[Any, Path], side: str, positions: Any
) -> None:
    model, folder = model_and_folder
    vector, chosen = vector_for(model), CHOSEN[positions]
    tokens, mask = padded(ROWS, side)
    with vector.apply(model, 1.5, positions=positions) as handle:
        logits = model(tokens, attention_mask=mask)
    for index, row in enumerate(ROWS):
        expected = steered_logits(folder, row, LAYER, 1.5 * vector.direction, chosen)
        torch.testing.assert_close(logits[index][mask[index].bool()], expected, atol=2e-4, rtol=1e-4)
    assert handle.calls == 1
    assert handle.positions_touched == sum(chosen(place, len(row)) for row in ROWS for place in range(len(row)))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["hook_resid_pre", "hook_resid_post"])
def test_the_residual_stream_before_a_block_is_that_after_the_last(
    model_and_folder: tuple[Any, Path], layer: int, name: str
) -> None:
    model, folder = model_and_folder
    before = name == "hook_resid_pre"
    vector = vector_for(model, hook_name=f"blocks.{layer}.{name}")
    with vector.apply(model):
        logits = model(torch.tensor(ROWS[:1]))[0]
    expected = steered_logits(folder, ROWS[0], layer - before, vector.direction, CHOSEN["all"])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def test_the_middle_of_a_block_is_refused_where_a_change_would_miss_the_skip_connection(pair: Any) -> None:
    model, tokens = pair[1], torch.tensor(ROWS[:1])
    vector = vector_for(model, hook_name=f"blocks.{LAYER}.hook_resid_mid")
    if is_bridge(model):
        with pytest.raises(LrtError, match="can be read but not steered"):
            vector.attach(model)
        return
    _, before = model.run_with_cache(tokens)
    with vector.apply(model):
        _, after = model.run_with_cache(tokens)
    # what the MLP adds, and the vector, and nothing else
    change = after[f"blocks.{LAYER}.hook_resid_post"] - before[f"blocks.{LAYER}.hook_resid_post"]
    mlp = after[f"blocks.{LAYER}.hook_mlp_out"] - before[f"blocks.{LAYER}.hook_mlp_out"]
    torch.testing.assert_close(change - mlp, vector.direction.expand_as(change), atol=1e-4, rtol=1e-4)


def test_coefficient_zero_and_a_finished_block_leave_the_logits_as_they_were(model: Any) -> None:
    vector, (tokens, mask) = vector_for(model), padded(ROWS, "left")
    plain, hooks = model(tokens, attention_mask=mask), n_hooks(model)
    with vector.apply(model, 0.0) as handle:
        assert torch.equal(model(tokens, attention_mask=mask), plain)
    assert (handle.calls, handle.positions_touched) == (1, 0)
    with vector.apply(model):
        assert not torch.equal(model(tokens, attention_mask=mask), plain)
    with pytest.raises(RuntimeError, match="inside"), vector.apply(model):
        raise RuntimeError("inside")
    assert torch.equal(model(tokens, attention_mask=mask), plain)
    assert n_hooks(model) == hooks
    assert not {"generate", "generate_stream", "hf_generate"} & set(vars(model))


def test_nothing_happens_before_the_block_is_entered(model: Any) -> None:
    hooks, context = n_hooks(model), vector_for(model).apply(model)
    assert n_hooks(model) == hooks
    with context:
        assert n_hooks(model) > hooks


@pytest.mark.parametrize("first_off", [0, 1])
def test_two_vectors_add_up_and_come_off_in_any_order(model: Any, first_off: int) -> None:
    tokens, plain = torch.tensor(ROWS[:1]), model(torch.tensor(ROWS[:1]))
    vectors = vector_for(model), vector_for(model).scaled_to(3.0)
    handles = [vector.attach(model, positions=p) for vector, p in zip(vectors, ["prompt", "all"], strict=True)]
    summed = SteeringVector(vectors[0].direction + vectors[1].direction, vectors[0].site)
    with pytest.warns(UserWarning, match="already steered by this vector"), summed.apply(model):
        pass  # a third one, which comes and goes
    both = model(tokens)
    handles[first_off].remove()
    handles[first_off].remove()  # a second time does nothing
    assert "generate" in vars(model)
    left = model(tokens)
    handles[1 - first_off].remove()
    assert torch.equal(model(tokens), plain)
    assert "generate" not in vars(model)
    with summed.apply(model):
        torch.testing.assert_close(both, model(tokens), atol=1e-4, rtol=1e-4)
    with vectors[1 - first_off].apply(model):
        assert torch.equal(left, model(tokens))


def test_other_peoples_hooks_at_the_same_point_stay_and_run(model: Any) -> None:
    vector, tokens, runs = vector_for(model), torch.tensor(ROWS[:1]), []
    point = model.hook_dict[vector.site.hook_name]

    def foreign(activation: Tensor, hook: Any) -> Tensor:
        runs.append(1)
        return activation * 1.25

    with model.hooks(fwd_hooks=[(vector.site.hook_name, foreign)]):
        alone = model(tokens)
        with vector.apply(model):
            steered = model(tokens)
            with model.hooks(fwd_hooks=[(vector.site.hook_name, foreign)]):
                model(tokens)
            assert torch.equal(model(tokens), steered)
        assert torch.equal(model(tokens), alone)
        assert len(point.fwd_hooks) == 1
    assert len(runs) == 6
    assert not torch.equal(alone, steered)
    # the foreign hook was there first: the vector is added to what it leaves
    by_hand = [(vector.site.hook_name, lambda activation, hook: activation * 1.25 + vector.direction)]
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=by_hand), steered)


def test_run_with_cache_and_run_with_hooks_see_the_steered_model(model: Any) -> None:
    vector, tokens = vector_for(model), torch.tensor(ROWS[:1])
    name = vector.site.hook_name
    _, before = model.run_with_cache(tokens)
    with vector.apply(model):
        logits, after = model.run_with_cache(tokens)
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(name, lambda act, hook: None)]), logits)
        assert torch.equal(model(tokens), logits)
    torch.testing.assert_close(after[name] - before[name], vector.direction.expand_as(after[name]))


def test_the_unit_of_the_coefficient(model: Any) -> None:
    vector = vector_for(model)
    torch.testing.assert_close(vector.delta(-2.0), -2.0 * vector.direction)
    assert vector.delta(0.5, scale="residual").norm().item() == pytest.approx(0.5 * 5.0)
    with vector.apply(model, 0.5, scale="residual"):
        by_residual = model(torch.tensor(ROWS[:1]))
    with vector.apply(model, 0.5 * 5.0 / vector.norm):
        torch.testing.assert_close(model(torch.tensor(ROWS[:1])), by_residual, atol=1e-5, rtol=1e-5)
    with pytest.raises(LrtError, match="does not know the residual norm"):
        SteeringVector(vector.direction, vector.site).delta(1.0, scale="residual")
    with without_type_checks(), pytest.raises(LrtError, match="'vector', 'unit' or 'residual'"):
        vector.delta(1.0, scale="neither")  # type: ignore[arg-type]


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_bfloat16_model_is_steered_in_bfloat16(folders: Any, model_class: str) -> None:
    model = load_model(folders[0], model_class=model_class, dtype=torch.bfloat16)
    vector, seen = vector_for(model), []
    name, tokens = vector.site.hook_name, torch.tensor(ROWS[:1])
    _, cache = model.run_with_cache(tokens)
    with vector.apply(model, positions=[0, 3]), model.hooks(fwd_hooks=[(name, lambda act, hook: seen.append(act))]):
        assert model(tokens).dtype == torch.bfloat16
    expected = cache[name].clone()
    expected[:, [0, 3]] += vector.direction.bfloat16()
    assert torch.equal(seen[0], expected)


# Generation


def fed(n_prompt: int, n_new: int, use_cache: bool) -> list[range]:
    """The positions that each forward pass of greedy decoding is given."""
    starts = [0] + [n_prompt + step if use_cache else 0 for step in range(n_new - 1)]
    return [range(start, n_prompt + step) for step, start in enumerate(starts)]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_steers_what_was_asked(model_and_folder: tuple[Any, Path], positions: Any, use_cache: bool) -> None:
    model, folder = model_and_folder
    vector, chosen, prompts = vector_for(model), CHOSEN[positions], [ROWS[2], [1, 40, 3, 19, 6]]
    with vector.apply(model, 3.0, positions=positions) as handle:
        out = model.generate(torch.tensor(prompts), max_new_tokens=6, use_past_kv_cache=use_cache, **GREEDY)
    expected = [steered_greedy(folder, p, LAYER, 3.0 * vector.direction, chosen, 6) for p in prompts]
    assert out.tolist() == expected
    passes = fed(5, 6, use_cache)
    assert handle.calls == len(passes)
    assert handle.positions_touched == 2 * sum(chosen(place, 5) for columns in passes for place in columns)


def test_the_selectors_differ_in_what_they_generate(folders: Any, bridges: Any) -> None:
    """Or the test above would pass with any of them."""
    delta = 3.0 * vector_for(bridges[0]).direction
    rows = [steered_greedy(folders[0], ROWS[2], LAYER, delta, chosen, 6) for chosen in CHOSEN.values()]
    rows.append(steered_greedy(folders[0], ROWS[2], LAYER, 0 * delta, CHOSEN["all"], 6))
    assert len(set(map(tuple, rows))) >= 5


@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_from_texts_of_different_lengths(model_and_folder: tuple[Any, Path], positions: Any) -> None:
    model, folder = model_and_folder
    vector, texts = vector_for(model), [model.tokenizer.decode(row[1:]) for row in ROWS]
    with vector.apply(model, 3.0, positions=positions):
        out = model.generate(texts, max_new_tokens=5, prepend_bos=True, return_type="tokens", **GREEDY)
    for index, row in enumerate(ROWS):
        expected = steered_greedy(folder, row, LAYER, 3.0 * vector.direction, CHOSEN[positions], 5)
        assert out[index, -len(expected) :].tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_from_left_padded_tokens(model_and_folder: tuple[Any, Path], positions: Any, use_cache: bool) -> None:
    model, folder = model_and_folder
    vector, (tokens, mask) = vector_for(model), padded(ROWS, "left")
    masked = {"attention_mask": mask} if is_bridge(model) else {"padding_side": "left"}
    with vector.apply(model, 3.0, positions=positions) as handle:
        out = model.generate(tokens, max_new_tokens=5, use_past_kv_cache=use_cache, **masked, **GREEDY)
    touched = 0
    for index, row in enumerate(ROWS):
        expected = steered_greedy(folder, row, LAYER, 3.0 * vector.direction, CHOSEN[positions], 5)
        assert out[index, -len(expected) :].tolist() == expected
        passes = fed(len(row), 5, use_cache)
        touched += sum(CHOSEN[positions](place, len(row)) for columns in passes for place in columns)
    assert handle.positions_touched == touched


@pytest.mark.parametrize("positions", ["generated", (0, 4, 6)], ids=str)
def test_a_stream_from_texts_of_different_lengths(bridges: Any, positions: Any) -> None:
    for model in bridges:  # HookedTransformer streams one text only
        texts = [model.tokenizer.decode(row[1:]) for row in ROWS]
        settings = {"max_new_tokens": 5, "prepend_bos": True, "return_type": "tokens"} | GREEDY
        with vector_for(model).apply(model, 3.0, positions=positions):
            expected = model.generate(texts, **settings)
            parts = list(model.generate_stream(texts, max_tokens_per_yield=1, **settings))
        assert torch.equal(torch.cat(parts, dim=1), expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_hf_generate_on_left_padded_rows(folders: Any, bridges: Any, positions: Any, use_cache: bool) -> None:
    model, folder = bridges[1], folders[1]
    vector, (tokens, mask) = vector_for(model), padded(ROWS, "left")
    settings = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "pad_token_id": PAD}
    with vector.apply(model, 3.0, positions=positions):
        out = model.hf_generate(tokens, attention_mask=mask, use_past_kv_cache=use_cache, eos_token_id=47, **settings)
    for index, row in enumerate(ROWS):
        expected = steered_greedy(folder, row, LAYER, 3.0 * vector.direction, CHOSEN[positions], 5)
        assert out[index, -len(expected) :].tolist() == expected


@pytest.mark.parametrize("positions", ["prompt", "generated"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_stream_that_is_interrupted_and_abandoned(
    model_and_folder: tuple[Any, Path], positions: Any, use_cache: bool
) -> None:
    model, folder = model_and_folder
    vector, chosen, prompt = vector_for(model), CHOSEN[positions], ROWS[2]
    delta = 3.0 * vector.direction
    with vector.apply(model, 3.0, positions=positions) as handle:
        settings = {"max_tokens_per_yield": 1, "use_past_kv_cache": use_cache} | GREEDY
        stream = model.generate_stream(torch.tensor([prompt]), max_new_tokens=6, **settings)
        row = [*next(stream)[0].tolist(), *next(stream)[0].tolist()]
        between = model(torch.tensor([ROWS[0]]))[0]  # a forward pass of its own: all of it is prompt
        short = model.generate(torch.tensor([ROWS[1]]), max_new_tokens=3, **GREEDY)[0].tolist()
        row += [*next(stream)[0].tolist(), *next(stream)[0].tolist()]
        stream.close()
        touched = handle.positions_touched
        after = model(torch.tensor([ROWS[0]]))[0]
        assert handle.positions_touched - touched == (8 if positions == "prompt" else 0)
    assert row == steered_greedy(folder, prompt, LAYER, delta, chosen, 4)
    assert short == steered_greedy(folder, ROWS[1], LAYER, delta, chosen, 3)
    expected = steered_logits(folder, ROWS[0], LAYER, delta, chosen)
    torch.testing.assert_close(between, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(after, expected, atol=2e-4, rtol=1e-4)


def test_a_whole_stream_gives_what_generate_gives(model: Any) -> None:
    prompt = torch.tensor([ROWS[2]])
    with vector_for(model).apply(model, 3.0, positions="generated"):
        expected = model.generate(prompt, max_new_tokens=6, **GREEDY)
        parts = list(model.generate_stream(prompt, max_new_tokens=6, max_tokens_per_yield=1, **GREEDY))
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_a_generation_that_fails_leaves_the_next_call_its_own(model: Any) -> None:
    vector, tokens = vector_for(model), torch.tensor([ROWS[0]])

    def fail(activation: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    with vector.apply(model, positions="prompt") as handle:
        name = f"blocks.{LAYER + 1}.hook_resid_pre"
        with pytest.raises(RuntimeError, match="on purpose"), model.hooks(fwd_hooks=[(name, fail)]):
            model.generate(tokens[:, :3], max_new_tokens=4, **GREEDY)
        touched = handle.positions_touched
        model(tokens)
        assert handle.positions_touched - touched == tokens.numel()


@hooked_only
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoding_by_hand_with_a_cache_on_hooked_transformer(folders: Any, positions: Any) -> None:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Cache

    model, prompt, chosen = load_model(folders[1], model_class="hooked"), ROWS[0], CHOSEN[positions]
    vector, row, given = vector_for(model), list(prompt), list(prompt)
    cache = Cache.init_cache(model.cfg, model.cfg.device, 1)
    with vector.apply(model, 3.0, positions=positions) as handle:
        for _ in range(5):
            logits = model(torch.tensor([given]), past_kv_cache=cache)
            given = [int(logits[0, -1].argmax())]
            row += given
    assert row == steered_greedy(folders[1], prompt, LAYER, 3.0 * vector.direction, chosen, 5)
    assert handle.positions_touched == sum(chosen(place, 8) for columns in fed(8, 5, True) for place in columns)


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoding_by_hand_with_a_cache_on_a_bridge(folders: Any, bridges: Any, positions: Any) -> None:
    model, folder, prompt = bridges[0], folders[0], ROWS[0]
    vector, row, given, cache = vector_for(model), list(prompt), list(prompt), None
    with vector.apply(model, 3.0, positions=positions):
        for _ in range(5):
            logits, cache = model(
                torch.tensor([given]), past_key_values=cache, use_cache=True, return_type="logits_and_cache"
            )
            given = [int(logits[0, -1].argmax())]
            row += given
    assert row == steered_greedy(folder, prompt, LAYER, 3.0 * vector.direction, CHOSEN[positions], 5)


# Hooks to be handed to TransformerLens


@pytest.mark.parametrize("positions", [p for p in CHOSEN if p != "generated"], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_bare_hooks_do_what_apply_does(model: Any, side: str, positions: Any) -> None:
    vector, (tokens, mask) = vector_for(model), padded(ROWS, side)
    with vector.apply(model, 1.5, positions=positions):
        expected = model(tokens, attention_mask=mask)
    hooks = vector.hooks(1.5, positions=positions, tokens=tokens, mask=mask)
    assert torch.equal(model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks), expected)
    with model.hooks(fwd_hooks=hooks):
        assert torch.equal(model(tokens, attention_mask=mask), expected)
    assert not torch.equal(model(tokens, attention_mask=mask), expected)


def test_bare_hooks_at_all_positions_need_no_tokens(model: Any) -> None:
    vector = vector_for(model)
    for width in (3, 5):
        tokens = torch.tensor([ROWS[0][:width]])
        with vector.apply(model):
            expected = model(tokens)
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=vector.hooks()), expected)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_processed_model_is_steered_once_by_either(folders: Any, model_class: str) -> None:
    """A Bridge in compatibility mode may call a hook once for each of its names."""
    model = load_model(folders[1], model_class=model_class, processed=True)
    vector, tokens = vector_for(model), torch.tensor(ROWS[:1])
    name = vector.site.hook_name
    _, before = model.run_with_cache(tokens)
    with vector.apply(model):
        logits, after = model.run_with_cache(tokens)
    torch.testing.assert_close(after[name] - before[name], vector.direction.expand_as(after[name]))
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=vector.hooks()), logits)


# What a vector is


def test_a_saved_vector_comes_back_whole(bridges: Any, tmp_path: Path) -> None:
    site = site_of(bridges[0], hook_name="blocks.2.hook_in")
    vector = SteeringVector(torch.randn(16), site, 7.5, {"method": "given", "n_pairs": 3})
    found = SteeringVector.load(vector.save(tmp_path / "vector"))
    assert torch.equal(found.direction, vector.direction)
    assert (found.site, found.residual_norm, found.provenance) == (site, 7.5, vector.provenance)
    assert repr(found) == repr(vector)
    found.check_model(bridges[0])
    with pytest.raises(ArtifactError, match="exists already"):
        vector.save(tmp_path / "vector")


def test_a_vector_is_used_on_its_own_model_only(pair: Any, folders: Any) -> None:
    small, large = pair
    vector = vector_for(small)
    vector.check_model(small)
    vector.check_model(load_model(folders[0]))  # the other class, perhaps
    with pytest.raises(MismatchError, match="16 dimensions, large has 24"):
        vector.attach(large)
    carried = SteeringVector(torch.ones(24), site_of(large, layer=1), None, {"transported_through": "a map"})
    with pytest.raises(
        MismatchError, match="24 dimensions, small has 16: it belongs to large, to which it was carried:"
    ):
        carried.attach(small)
    other = SteeringVector(torch.ones(24), Site(vector.site.hook_name, 24, vector.site.model))
    with pytest.raises(MismatchError, match="belongs to small"):
        other.attach(large)
    SteeringVector(torch.ones(24), Site(vector.site.hook_name, 24)).check_model(large)  # of no model that is known
    missing = SteeringVector(torch.ones(24), Site("blocks.9.hook_resid_post", 24))
    with pytest.raises(LrtError, match="out of range"):
        missing.attach(large)
    assert "generate" not in vars(large)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_vector_of_one_basis_is_refused_in_the_other(folders: Any, model_class: str) -> None:
    raw = load_model(folders[1], model_class=model_class)
    centered = load_model(folders[1], model_class=model_class, processed=True)
    for made_on, tried_on in ((raw, centered), (centered, raw)):
        with pytest.raises(MismatchError, match="basis"), vector_for(made_on).apply(tried_on):
            pytest.fail("it was applied")


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.zeros(4), "is zero"),
        (torch.tensor([1.0, float("nan"), 0, 0]), "NaN or infinity"),
        (torch.tensor([1.0, float("inf"), 0, 0]), "NaN or infinity"),
        (torch.ones(5), r"shape \(5,\)"),
    ],
)
def test_what_is_no_direction_is_refused(direction: Tensor, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        SteeringVector(direction, Site("blocks.0.hook_resid_post", 4))


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_residual_norm_that_is_no_length_is_refused(norm: float) -> None:
    with pytest.raises(LrtError, match=f"residual_norm={norm}: it is a length above 0"):
        SteeringVector(torch.ones(4), Site("blocks.0.hook_resid_post", 4), norm)


def test_a_vector_is_shown_in_one_line(bridges: Any) -> None:
    vector = SteeringVector(torch.ones(16), site_of(bridges[0], layer=2), provenance={"method": "mean_difference"})
    assert repr(vector) == "SteeringVector(small L2, 16 dimensions, norm 4, mean_difference)"
    assert vector.scaled_to(2.0).norm == pytest.approx(2.0)
    assert vector.provenance == vector.scaled_to(2.0).provenance


def test_a_vector_shows_its_figures_and_not_those_of_its_opposite(bridges: Any) -> None:
    vector = mean_difference(bridges[0], PAIRS, layer=2)
    assert vector.report is not None
    shown = vector._repr_html_()
    assert f"<th>AUC on held-out pairs</th><td>{vector.report.auc:.3f}</td>" in shown
    assert f"<td>{vector.norm:.3g}, {vector.norm / vector.residual_norm:.2f} × the median residual norm<" in shown
    made = {**vector.provenance, "carried": {"determined": 0.75}, "transported_from": "tiny L1", "their_key": 3}
    rows = replace(vector, provenance=made, report=None).summary()
    assert rows["contrast pairs"] == str(len(PAIRS))
    assert rows["hash of the texts"] == vector.provenance["data"]
    assert rows["states read at"] == "mean"
    assert rows["share in directions that the map knows"] == "0.75"
    assert (rows["carried from"], rows["their key"]) == ("tiny L1", "3")
    assert vector.scaled_to(2.0).report == vector.report
    opposite = vector.scaled_to(-2.0)
    torch.testing.assert_close(opposite.direction, -2 * vector.direction / vector.norm)
    assert opposite.report is None
    assert "AUC" not in opposite._repr_html_()


def test_steering_shows_its_steps_in_their_order(bridges: Any) -> None:
    vector = SteeringVector(torch.ones(16), site_of(bridges[0], layer=2))
    shown = (vector.clamp(0.5, positions={"first": 2}) + vector.add(3.0))._repr_html_()
    first, second = shown.split("<tr>")[2:]
    assert "<td>clamp</td><td>1</td><td>0.5</td><td>small L2</td><td>4</td><td>{&#x27;first&#x27;: 2}</td>" in first
    assert "<td>add</td><td>3</td><td></td><td>small L2</td><td>4</td><td>all</td>" in second


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf")])
def test_a_coefficient_that_is_no_number_is_refused(pair: tuple[Any, Any], coefficient: float) -> None:
    vector = SteeringVector(torch.ones(24), site_of(pair[1], layer=1), residual_norm=2.0)
    for scale in ("vector", "residual"):
        with pytest.raises(LrtError, match="must be a finite number"):
            vector.strength(coefficient, scale=scale)  # type: ignore[arg-type]


def test_a_coefficient_or_a_value_that_is_text_is_refused(pair: tuple[Any, Any]) -> None:
    vector: Any = SteeringVector(torch.ones(24), site_of(pair[1], layer=1))
    with without_type_checks():
        with pytest.raises(LrtError, match="coefficient='1': it must be a number, not of type str"):
            vector.attach(pair[1], "1")
        with pytest.raises(LrtError, match="coefficient=None: it must be a number, not of type NoneType"):
            vector.ablate(None)
        with pytest.raises(LrtError, match="value='1': it must be a number"):
            vector.clamp("1")


def test_strength_keeps_its_sign() -> None:
    vector = SteeringVector(torch.tensor([3.0, 4.0]), Site("blocks.0.hook_resid_post", 2), residual_norm=10.0)
    assert vector.strength(-0.5) == -0.5
    assert vector.strength(-0.5, scale="residual") == -1.0  # half of 10 is one length of the vector
    torch.testing.assert_close(vector.delta(-0.5, scale="residual"), torch.tensor([-3.0, -4.0]))


def test_a_model_that_something_changes_is_not_measured(folders: tuple[Path, Path]) -> None:
    model = load_model(folders[1])
    vector = SteeringVector(torch.ones(24), site_of(model, layer=1))
    require_at_rest(model)
    handles = [vector.attach(model, 2.0), vector.attach(model, 3.0, positions="prompt")]
    assert steered(model) == handles
    with pytest.raises(LrtError, match=r"large is being steered by .*in lrt_tl\.steered\(model\)"):
        require_at_rest(model)
    for handle in steered(model):
        handle.remove()
    assert steered(model) == []
    require_at_rest(model)
    model.train()
    with pytest.raises(LrtError, match=r"training mode.*model\.eval\(\)"):
        require_at_rest(model)


def test_a_handle_knows_that_the_models_hooks_were_reset(pair: tuple[Any, Any]) -> None:
    handle = SteeringVector(torch.ones(24), site_of(pair[1], layer=1)).attach(pair[1], 2.0)
    assert "at work" in repr(handle)
    pair[1].reset_hooks()
    assert "removed" in repr(handle)
    require_at_rest(pair[1])
    assert "generate" not in vars(pair[1])


def test_bare_hooks_refuse_states_of_another_width(pair: tuple[Any, Any]) -> None:
    vector = SteeringVector(torch.ones(16), Site("blocks.1.hook_resid_post", 16))
    with pytest.raises(LrtError, match="a vector of 16 dimensions cannot be added to states of 24"):
        pair[1].run_with_hooks(torch.tensor([[1, 5]]), fwd_hooks=vector.hooks(1.0))
