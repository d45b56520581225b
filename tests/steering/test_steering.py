"""Steps together: their order, their contradictions, their conditions, and the file that they are kept in."""

import copy
import json
import pickle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.handle import steered
from lrt_tl.steering.operators import Step
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.positions import positions_to_json
from tests.checkpoints import CLASSES, hooked_only
from tests.steering.reference import huggingface

D = 16
ROWS = [[1, 7, 9, 4, 30, 11, 22, 8], [1, 5, 6], [1, 33, 21, 17, 12]]
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture
def model(pair: Any) -> Any:
    return pair[0]


def vector_for(model: Any, seed: int = 3, **site: Any) -> SteeringVector:
    direction = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(2 * direction, site_of(model, **(site or {"layer": 1})), residual_norm=5.0)


def padded(side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS))
    tokens, mask = torch.full((len(ROWS), width), 2), torch.zeros(len(ROWS), width, dtype=torch.long)
    for index, row in enumerate(ROWS):
        columns = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[index, columns], mask[index, columns] = torch.tensor(row), 1
    return tokens, mask


def resid(model: Any, steering: Steering, layer: int = 1) -> Tensor:
    """The residual stream after a block, steered."""
    name, seen = f"blocks.{layer}.hook_resid_post", []
    with (
        torch.no_grad(),
        steering.apply(model),
        model.hooks(fwd_hooks=[(name, lambda activation, hook: seen.append(activation))]),
    ):
        model(torch.tensor(ROWS[:1]))
    return seen[0].double()


# Composition


def test_steps_at_one_point_are_done_as_they_are_written(model: Any) -> None:
    """To add and then to rotate is not to rotate and then to add."""
    a, b = vector_for(model).add(1.5), vector_for(model, 4).rotate(-2.0)
    plain = resid(model, 0.0 * a)
    va, vb = 1.5 * vector_for(model).direction.double(), -2 * vector_for(model, 4).direction.double()

    def rotated(states: Tensor) -> Tensor:
        moved = states + vb
        return moved * states.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

    for steering, expected in ((a + b, rotated(plain + va)), (b + a, rotated(plain) + va)):
        torch.testing.assert_close(resid(model, steering), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(resid(model, sum([a, b])), resid(model, a + b))  # type: ignore[arg-type]
    handles = [b.attach(model), a.attach(model)]  # handles are done as they were attached
    torch.testing.assert_close(resid(model, 0.0 * a), rotated(plain) + va, atol=1e-4, rtol=1e-5)
    for handle in handles:
        handle.remove()


def test_steps_at_several_points_are_done_as_the_pass_comes_to_them(model: Any) -> None:
    early, late = vector_for(model, layer=0).ablate(), vector_for(model, 4, layer=2).add()
    one, other = resid(model, early + late, layer=2), resid(model, late + early, layer=2)
    assert torch.equal(one, other)
    assert not torch.equal(one, resid(model, late, layer=2))


def test_one_direction_is_taken_out_after_every_block(model: Any) -> None:
    vector = vector_for(model)
    unit = (vector.direction / vector.norm).double()
    everywhere = vector.ablate().on(range(3))
    assert [step.site.hook_name for step in everywhere.steps] == [f"blocks.{n}.hook_resid_post" for n in range(3)]
    for layer in range(3):
        assert (resid(model, everywhere, layer) @ unit).abs().max() < 1e-4
    assert (resid(model, vector.ablate(), 2) @ unit).abs().max() > 1e-2
    with pytest.raises(LrtError, match="out of range"):
        vector.ablate().on([7]).attach(model)


def test_a_factor_multiplies_every_coefficient(model: Any) -> None:
    steering = vector_for(model).add(1.5, positions=[0]) + vector_for(model, 4).clamp(3.0, 0.5)
    twice = 2.0 * steering
    assert [step.coefficient for step in twice.steps] == [3.0, 1.0]
    assert [step.value for step in twice.steps] == [None, 3.0]
    assert [step.positions for step in twice.at({"last": 1}).steps] == [{"last": 1}] * 2
    with pytest.raises(TypeError):
        steering + vector_for(model)  # type: ignore[operator]
    with pytest.raises(LrtError, match="nothing to steer with"):
        Steering(())


def test_a_factor_is_no_contradiction(model: Any) -> None:
    vector = vector_for(model)
    partial = vector.add() + vector.ablate(0.5)
    with (2.0 * partial).apply(model):  # the ablation is a whole one now
        pass


# Contradictions

SITE = Site("blocks.1.hook_resid_post", D)
E1, E2 = torch.eye(D)[0], torch.eye(D)[1]
PROBE = Probe(E2, 0.0, 0.0, SITE)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Step("add", E1, SITE), Step("ablate", E1, SITE)),
        (Step("add", E1, SITE), Step("ablate", -3 * E1, SITE)),
        (Step("rotate", E1, SITE), Step("clamp", E1 + 0.01 * E2, SITE, value=2.0)),
        (Step("clamp", E1, SITE, value=1.0), Step("clamp", E1, SITE, value=2.0)),
        (Step("ablate", E1, SITE), Step("clamp", E1, SITE, value=2.0)),
        (Step("add", E1, SITE, positions=[0]), Step("ablate", E1, SITE)),
        (Step("add", E1, SITE, positions=[0, 2]), Step("ablate", E1, SITE, positions={"at": 2})),
        (Step("add", E1, SITE, positions={"prompt": {"last": 1}}), Step("ablate", E1, SITE, positions={"last": 2})),
        (Step("add", E1, SITE, when=PROBE), Step("ablate", E1, SITE, when=PROBE)),
        (Step("clamp", E1, SITE, value=1.0, reads=Probe(E1, 0.0, 0.0, SITE)), Step("ablate", E1, SITE)),
    ],
    ids=lambda step: repr(step),
)
def test_what_undoes_a_step_is_refused(first: Step, second: Step) -> None:
    with pytest.raises(LrtError, match=r"undoes .*: both are of one direction\. Leave one out"):
        Steering((first,)) + Steering((second,))
    with pytest.raises(LrtError, match="undoes"):
        Steering((first,)) + Steering((Step("add", E2, SITE), second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Step("ablate", E1, SITE), Step("add", E1, SITE)),
        (Step("clamp", E1, SITE, value=1.0), Step("rotate", E1, SITE)),
        (Step("add", E1, SITE), Step("add", E1, SITE)),
        (Step("add", E1, SITE), Step("ablate", E1, SITE, 0.5)),
        (Step("add", E1, SITE, 0.0), Step("ablate", E1, SITE)),
        (Step("add", E1, SITE), Step("ablate", E2, SITE)),
        (Step("add", E1, SITE), Step("ablate", E1, Site("blocks.0.hook_resid_post", D))),
        (Step("add", E1, SITE, positions="prompt"), Step("ablate", E1, SITE, positions="generated")),
        (Step("add", E1, SITE, positions={"prompt": {"last": 1}}), Step("ablate", E1, SITE, positions="generated")),
        (Step("add", E1, SITE, positions=3), Step("ablate", E1, SITE, positions={"at": [0, 2]})),
        (Step("add", E1, SITE, positions={"not": {"first": 1}}), Step("ablate", E1, SITE, positions={"first": 1})),
        (Step("add", E1, SITE, positions=[0]), Step("ablate", E1, SITE, positions={"not": [0]})),
        (Step("add", E1, SITE, when=PROBE), Step("ablate", E1, SITE)),
        (Step("ablate", E1, SITE), Step("clamp", E1, SITE, value=1.0, reads=Probe(E1, 0.0, 0.0, SITE))),
    ],
    ids=lambda step: repr(step),
)
def test_what_agrees_is_let_through(first: Step, second: Step) -> None:
    assert len((Steering((first,)) + Steering((second,))).steps) == 2


def test_moving_two_steps_to_one_place_is_looked_at_again() -> None:
    steering = Steering((Step("add", E1, SITE, positions="prompt"), Step("ablate", E1, SITE, positions="generated")))
    with pytest.raises(LrtError, match="undoes"):
        steering.at("all")
    with pytest.raises(LrtError, match="undoes"):
        Steering((Step("add", E1, SITE, when=PROBE), Step("ablate", E1, SITE))).given(None)


# Conditions


def condition_for(model: Any, *, layer: int = 1, position: Any = "last") -> tuple[Probe, list[bool]]:
    """A probe that says yes to some of the rows, and to which: read off each unpadded row by itself."""
    name = f"blocks.{layer}.hook_resid_post"
    weight = torch.randn(D, generator=torch.Generator().manual_seed(8))
    scores = []
    for row in ROWS:
        _, cache = model.run_with_cache(torch.tensor([row]))
        states = cache[name][0, 1:].float().detach()  # all but the beginning of the sequence, which is special
        scores.append(float((states.mean(0) if position == "mean" else states[-1]) @ weight + 0.5))
    threshold = sum(sorted(scores)[:2]) / 2
    probe = Probe(weight, 0.5, threshold, site_of(model, layer=layer), position)
    said = [score > threshold for score in scores]
    assert sorted(said) == [False, True, True]
    return probe, said


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_condition_decides_row_by_row(model: Any, side: str, layer: int, position: Any) -> None:
    probe, said = condition_for(model, layer=layer, position=position)
    vector, (tokens, mask) = vector_for(model), padded(side)
    plain = model(tokens, attention_mask=mask)
    with vector.add(3.0).apply(model):
        always = model(tokens, attention_mask=mask)
    for steering in (vector.add(3.0, when=probe), vector.add(3.0).given(probe)):
        with steering.apply(model) as handle:
            found = model(tokens, attention_mask=mask)
        assert [bool(row) for row in handle.changed] == said
        for row, yes in enumerate(said):
            assert torch.equal(found[row][mask[row].bool()], (always if yes else plain)[row][mask[row].bool()])
    hooks = vector.add(3.0, when=probe).hooks(tokens=tokens, mask=mask, tokenizer=model.tokenizer)
    assert torch.equal(model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks), found)


def test_a_condition_may_read_a_substring(model: Any) -> None:
    """`word30` is token 33, in the third row only."""
    probe, (tokens, mask) = Probe(E1, 0.0, -1e9, site_of(model, layer=0), {"within": "word30"}), padded("left")
    with vector_for(model).add(when=probe).apply(model) as handle:
        model(tokens[2:], attention_mask=mask[2:])
        assert handle.changed == [[0, 1, 2, 3, 4]]
        with pytest.raises(LrtError, match="the prompt of row 0 does not contain 'word30'"):
            model(tokens, attention_mask=mask)
    elsewhere = Probe(E1, 0.0, -1e9, site_of(model, layer=0), 5)
    with (
        vector_for(model).add(when=elsewhere).apply(model),
        pytest.raises(LrtError, match="reads position=5, and the prompt of row 1 has none"),
    ):
        model(tokens, attention_mask=mask)


@pytest.mark.parametrize("positions", ["all", "generated", {"generated": {"first": 2}}], ids=str)
def test_generation_under_a_condition_is_that_of_each_row_alone(model: Any, positions: Any) -> None:
    """With and without a KV cache: a condition is read on the prompt, once, and holds for what follows."""
    probe, said = condition_for(model)
    (tokens, mask), vector = padded("left"), vector_for(model)
    padding = {"attention_mask": mask} if hasattr(model, "original_model") else {"padding_side": "left"}
    alone = []
    for row, yes in zip(ROWS, said, strict=True):
        with vector.add(3.0 if yes else 0.0, positions=positions).apply(model):
            alone.append(model.generate(torch.tensor([row]), max_new_tokens=5, **GREEDY)[0, -5:])
    outs = []
    with vector.add(3.0, positions=positions, when=probe).apply(model) as handle:
        for use_cache in (True, False):
            outs.append(
                model.generate(tokens, max_new_tokens=5, use_past_kv_cache=use_cache, **padding, **GREEDY)[:, -5:]
            )
            assert [bool(row) for row in handle.changed] == said
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], torch.stack(alone))


def test_a_condition_that_comes_too_late_is_refused(model: Any) -> None:
    late, vector = Probe(E1, 0.0, 0.0, site_of(model, layer=2)), vector_for(model)
    steering = vector.add(when=late)
    with pytest.raises(LrtError, match=r"the condition is read at small L2, after small L1, where it is to decide"):
        steering.attach(model)
    with pytest.raises(LrtError, match="the condition is read at small L2"):
        steering.hooks(tokens=torch.tensor(ROWS[:1]), tokenizer=model.tokenizer)
    for point in ({"layer": 1}, {"hook_name": "blocks.1.hook_resid_pre"}):
        vector.add(when=Probe(E1, 0.0, 0.0, site_of(model, **point))).attach(model).remove()
    assert steered(model) == []


def test_a_cache_that_was_filled_before_is_refused(bridges: Any) -> None:
    model = bridges[0]
    probe, tokens = Probe(E1, 0.0, 0.0, site_of(model, layer=0)), torch.tensor(ROWS[:1])
    options = {"use_cache": True, "return_type": "logits_and_cache"}
    with torch.no_grad():
        _, cache = model(tokens[:, :-1], **options)
    steerings = {
        "that was filled before the vector was attached": vector_for(model).add(when=probe),
        "counted from the end of the prompt": vector_for(model).add(positions={"generated": {"first": 1}}),
        "the tokens of this call are not known": vector_for(model).add(positions={"after": "word4"}),
    }
    for message, steering in steerings.items():
        with steering.apply(model), pytest.raises(LrtError, match=message):
            model(tokens[:, -1:], past_key_values=copy.deepcopy(cache), **options)
    with vector_for(model).add(positions="generated").apply(model) as handle:
        model(tokens[:, -1:], past_key_values=cache, **options)
    assert handle.changed == [[7]]


# Refusals


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (64, r"small has no position 64, only 0 to 63: it selects nothing"),
        ({"at": [70, 2**70]}, "small has no position 70"),
        ({"tokens": [48]}, "small has no token 48, only 0 to 47"),
        ({"generated": {"at": [99]}}, "small has no position 99"),
        ({"prompt": {"tokens": [50]}}, "small has no token 50"),
        (MappingProxyType({"at": 64}), "small has no position 64"),
    ],
    ids=str,
)
def test_what_can_never_be_selected_is_refused(bridges: Any, positions: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        vector_for(bridges[0]).add(positions=positions).attach(bridges[0])
    assert steered(bridges[0]) == []


@pytest.mark.parametrize(
    "positions",
    [
        "generated",
        {"generated": 0},
        MappingProxyType({"generated": 0}),
        {"not": "prompt"},
        {"not": "generated"},
        {"not": {"generated": 0}},
    ],
    ids=str,
)
def test_a_bare_hook_does_not_know_what_is_generated(bridges: Any, positions: Any) -> None:
    steering = vector_for(bridges[0]).add(positions=positions)
    with pytest.raises(LrtError, match=r"a bare hook cannot tell what is generated: use apply\(model\)"):
        steering.hooks(tokens=torch.tensor(ROWS[:1]))


def test_a_bare_hook_needs_the_batch(bridges: Any) -> None:
    vector, probe = vector_for(bridges[0]), Probe(E1, 0.0, 0.0, site_of(bridges[0], layer=1))
    for steering, known in (
        (vector.add(positions=[0]), {}),
        (vector.add(positions="prompt"), {}),
        (vector.add(when=probe), {"mask": torch.ones(1, 3)}),
    ):
        with pytest.raises(LrtError, match="needs tokens= or mask="):
            steering.hooks(**known)


def test_everything_that_a_step_holds_must_be_of_the_model(pair: Any) -> None:
    small, large = pair
    here, there = site_of(small, layer=1), site_of(large, layer=1)
    other = Probe(torch.ones(24), 0.0, 0.0, there)
    with pytest.raises(MismatchError, match="the vector has 16 dimensions, large has 24"):
        Steering((Step("add", E1, here),)).attach(large)
    with pytest.raises(MismatchError, match="the probe has 24 dimensions, small has 16"):
        Steering((Step("add", E1, here, when=other),)).attach(small)
    swapped = Steering((Step("add", E1, here, when=Probe(E1, 0.0, 0.0, Site(here.hook_name, D, there.model))),))
    with pytest.raises(MismatchError, match="the probe belongs to large"):
        swapped.attach(small)
    with pytest.raises(LrtError, match="out of range"):
        Steering((Step("add", E1, here), Step("add", E1, Site("blocks.7.hook_resid_post", D)))).attach(small)
    assert not {"generate", "__deepcopy__"} & (set(vars(small)) | set(vars(large)))


def test_what_is_at_work_already_is_attached_again_with_a_warning(pair: Any) -> None:
    model, vector = pair[0], vector_for(pair[0])
    again = r"small is already steered by this vector \(add × 4 on small L1\): this adds to it.*handle\.remove\(\)"
    handle = vector.attach(model, 4.0)
    with pytest.warns(UserWarning, match=again):
        vector.attach(model, 2.0).remove()
    with pytest.warns(UserWarning, match=again):
        vector.add(2.0).attach(model).remove()
    with pytest.warns(UserWarning, match=again), vector.apply(model, 2.0):
        pass
    probe = Probe(E1, 0.0, 0.0, site_of(model, layer=1))
    mood = vector_for(model, 4)
    for other in (
        mood.add(4.0),
        vector.rotate(4.0),
        vector.add(0.0),
        vector.add(4.0, positions="prompt"),
        vector.add(4.0, when=probe),
        vector.add(4.0).on([2]),
    ):
        other.attach(model).remove()
    with pytest.warns(UserWarning, match=again), (mood.add() + vector.add(-1.0)).apply(model):
        pass
    handle.remove()
    vector.attach(model, 4.0)
    model.reset_hooks()
    vector.attach(model, 4.0).remove()


# Files


def test_a_steering_comes_back_whole(bridges: Any, tmp_path: Path) -> None:
    model, vector = bridges[0], vector_for(bridges[0])
    probe = Probe(E2, 0.25, -1.0, site_of(model, layer=0), {"within": "word4"}, {"of": "a test"})
    reads = Probe(E1 + E2, 0.5, 0.0, vector.site)
    clamp = Step("clamp", vector.direction, vector.site, 0.5, 2.0, reads=reads, provenance={"method": "given"})
    mask = {"mask": torch.tensor([[True, False, True]])}
    steering = (
        vector.add(2.0, positions={"prompt": {"last": 2}, "generated": "all"}, when=probe)
        + vector.rotate(0.5, positions=mask)  # the same tensor as the first
        + Steering((clamp,))
        + vector_for(model, 4).ablate(0.5, positions={"not": {"after": "word4"}})
    )
    found = Steering.load(steering.save(tmp_path / "steering"))
    for one, other in zip(steering.steps, found.steps, strict=True):
        assert torch.equal(one.direction, other.direction)
        for name in ("operator", "site", "coefficient", "value", "provenance"):
            assert getattr(one, name) == getattr(other, name)
        assert positions_to_json(one.positions) == positions_to_json(other.positions)
        for role in ("when", "reads"):
            ours, theirs = getattr(one, role), getattr(other, role)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.equal(ours.weight, theirs.weight)
                for name in ("bias", "threshold", "site", "position", "provenance"):
                    assert getattr(ours, name) == getattr(theirs, name)
    tokens = torch.tensor([[1, 7, 9]])
    with steering.apply(model):
        expected = model(tokens)
    with found.apply(model):
        assert torch.equal(model(tokens), expected)
    with pytest.raises(ArtifactError, match="exists already"):
        steering.save(tmp_path / "steering")


def test_a_file_that_is_no_steering_is_refused(bridges: Any, tmp_path: Path) -> None:
    vector = vector_for(bridges[0])
    vector.save(tmp_path / "vector")
    with pytest.raises(ArtifactError, match="is of kind steering_vector, not steering"):
        Steering.load(tmp_path / "vector")
    config = vector.add().save(tmp_path / "steering") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps": []}))
    with pytest.raises(ArtifactError, match="edited or damaged"):
        Steering.load(tmp_path / "steering")


# What else is done to a model that is steered


@pytest.mark.parametrize("operator", ["add", "ablate", "rotate"])
def test_gradients_to_the_embedding_are_those_of_an_edit_by_hand(model: Any, folders: Any, operator: str) -> None:
    vector, tokens = vector_for(model), torch.tensor(ROWS[:1])
    v = vector.direction

    def edit(h: Tensor) -> Tensor:
        if operator == "ablate":
            return h - (h @ v)[..., None] * v / v.dot(v)
        moved = h + v
        return moved if operator == "add" else moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

    gpt = huggingface(folders[0])
    inside = gpt.gpt_neox.layers[2].register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))
    try:
        states = gpt.gpt_neox.embed_in(tokens).detach().requires_grad_()
        gpt(inputs_embeds=states).logits[0, -1, 5].backward()
    finally:
        inside.remove()
    seen = []
    with getattr(vector, operator)().apply(model), model.hooks(fwd_hooks=[("hook_embed", _keep(seen))]):
        model(tokens)[0, -1, 5].backward()
    torch.testing.assert_close(seen[0].grad, states.grad, atol=1e-5, rtol=1e-3)


def _keep(seen: list[Tensor]) -> Any:
    def keep(activation: Tensor, hook: object) -> Tensor:
        seen.append(activation.detach().requires_grad_())
        return seen[0]

    return keep


def test_a_pass_that_is_cut_short_is_steered_up_to_there(model: Any) -> None:
    tokens, vector = torch.tensor(ROWS[:1]), vector_for(model)
    plain = model(tokens, stop_at_layer=2)
    with vector.apply(model, positions=[1, 3]) as handle:
        torch.testing.assert_close(
            (model(tokens, stop_at_layer=2) - plain)[0, [1, 3]], vector.direction.expand(2, D), atol=1e-5, rtol=1e-5
        )
        assert torch.equal(model(tokens, stop_at_layer=1), model(tokens, stop_at_layer=1))
        model.run_with_cache(tokens, stop_at_layer=2)
    assert handle.calls == 2
    assert handle.changed == [[1, 3]]


@hooked_only
def test_a_pass_that_begins_in_the_middle_is_its_own(folders: Any) -> None:
    """Also where the one before it, of the same shape, ended just there."""
    model = load_model(folders[0], model_class="hooked")
    tokens, mask = padded("left")
    vector = vector_for(model)
    with vector.apply(model, positions={"first": 1}) as handle:
        expected = model(tokens, attention_mask=mask)
        states = model(tokens, attention_mask=mask, stop_at_layer=1)
        model(tokens.flip(0), stop_at_layer=1)  # of another text, without padding
        found = model(states, attention_mask=mask, start_at_layer=1)
        assert handle.changed == [[0]] * 3
        assert torch.equal(found[mask.bool()], expected[mask.bool()])
        touched = handle.positions_touched
        model(states, start_at_layer=2)
        assert handle.positions_touched == touched
    with vector.apply(model, positions={"tokens": [9]}):
        model(tokens, stop_at_layer=1)
        with pytest.raises(LrtError, match="the tokens of this call are not known"):
            model(states, start_at_layer=1)


def test_texts_that_transformer_lens_pads_itself(model: Any) -> None:
    texts = ["word4 word6 word1 word27", "word2"]
    with vector_for(model).apply(model, positions={"prompt": {"last": 1}, "generated": {"first": 1}}) as handle:
        model.generate(texts, max_new_tokens=3, prepend_bos=True, **GREEDY)
    assert handle.changed == [[4, 5], [1, 2]]


@pytest.mark.parametrize("positions", ["generated", {"generated": {"first": 2}}, {"after": "word6"}], ids=str)
def test_a_beam_search_is_steered_like_its_best_text(bridges: Any, positions: Any) -> None:
    """The sum of log-probabilities that a beam search reports is the one of its text, steered, in one pass."""
    model, tokens = bridges[0], torch.tensor([[1, 7, 9, 4]])
    settings = {"do_sample": False, "num_beams": 2, "max_new_tokens": 5, "length_penalty": 0.0}
    details = {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 2, "eos_token_id": 47}
    with vector_for(model).apply(model, 2.0, positions=positions):
        found = model.hf_generate(tokens, **settings, **details)
    text = found.sequences
    new = torch.arange(text.shape[1]) >= 4
    chosen = {"generated": new, "{'after': 'word6'}": torch.arange(text.shape[1]) > 2}.get(
        str(positions), new & (torch.arange(text.shape[1]) < 6)
    )
    at = {"mask": chosen[None]}
    with torch.no_grad(), vector_for(model).apply(model, 2.0, positions=at):
        steps = model(text)[0, 3:-1].log_softmax(-1)
    total = steps.gather(1, text[0, 4:, None]).sum()
    assert float(total) == pytest.approx(float(found.sequences_scores[0]), abs=1e-4)


def test_several_models_at_once(pair: Any) -> None:
    small, large = pair
    tokens = torch.tensor(ROWS[:1])
    plain = [model(tokens) for model in pair]
    other = SteeringVector(torch.ones(24), site_of(large, layer=1))
    with vector_for(small).apply(small):
        expected = small(tokens)
        assert torch.equal(large(tokens), plain[1])
        with other.apply(large) as handle:
            assert steered(large) == [handle]
            assert torch.equal(small(tokens), expected)
            assert not torch.equal(large(tokens), plain[1])
        assert torch.equal(large(tokens), plain[1])
    assert torch.equal(small(tokens), plain[0])


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_that_is_steered_is_neither_copied_nor_pickled(folders: Any, model_class: str) -> None:
    """The hooks of a copy would ask for the calls of the original."""
    model, tokens = load_model(folders[0], model_class=model_class), torch.tensor(ROWS[:1])
    with vector_for(model).apply(model):
        with pytest.raises(LrtError, match="a model that is being steered cannot be copied"):
            copy.deepcopy(model)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(model)
    twin = copy.deepcopy(model)
    with vector_for(twin).apply(twin):
        assert not torch.equal(twin(tokens), model(tokens))
    assert torch.equal(twin(tokens), model(tokens))


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_may_be_moved_while_it_is_steered(folders: Any, model_class: str) -> None:
    tokens, model = torch.tensor(ROWS[:1]), load_model(folders[0], model_class=model_class)
    vector = vector_for(model)
    with torch.no_grad(), (vector.add() + vector_for(model, 4).rotate()).apply(model):
        narrow = model(tokens)
        model.to(torch.float64)
        wide = model(tokens)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, atol=1e-4, rtol=1e-4)
