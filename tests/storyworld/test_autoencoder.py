"""Sparse autoencoders: against numpy, on directions that were planted, from folder to folder, and beside SAELens."""

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.loading import load_model
from lrt_tl.steering.autoencoder import TENSORS, Autoencoder
from lrt_tl.storyworld import autoencoder_training as module
from lrt_tl.storyworld.autoencoder_training import (
    _loss,
    fit,
    make_autoencoder,
    quality,
    states_of,
    train_autoencoder,
)
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.recipe import (
    AutoencoderRecipe,
    Recipe,
    autoencoder_names,
    read_autoencoder_recipe,
    read_recipe,
    recipe_names,
)
from lrt_tl.storyworld.tokenizer import save_tokenizer
from lrt_tl.storyworld.train import main, new_model
from tests.unchecked import without_type_checks

D_IN, N_DIRECTIONS, ACTIVE = 32, 48, 3
PLANTED = AutoencoderRecipe(
    "planted", "none", layer=0, d_sae=64, k=ACTIVE, seed=0, data_seed=0, tokens=250_000, batch_tokens=256, lr=0.01
)
TINY = Recipe(
    "tiny", 16, 2, 2, 1, 24, "word", "plain", seed=0, data_seed=0, tokens=1, batch_tokens=1, muon_lr=1.0, adam_lr=1.0
)


def random_autoencoder(d_in: int = 5, d_sae: int = 11, k: int = 3, seed: int = 0) -> Autoencoder:
    """Weights that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    weights = {name: torch.randn(shape, generator=generator).half().float() for name, shape in shapes.items()}
    return Autoencoder(**weights, k=k, hook_name="blocks.1.hook_resid_post", model_name="storyworld-small")


def planted(seed: int) -> tuple[Tensor, Iterator[Tensor]]:
    """Directions, and without end chunks of states: each the sum of a few directions, about a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N_DIRECTIONS, D_IN, generator=generator), dim=-1)
    mean = torch.randn(D_IN, generator=generator)

    def chunk() -> Tensor:
        chosen = torch.rand(10_000, N_DIRECTIONS, generator=generator).topk(ACTIVE).indices
        lengths = 5 + 5 * torch.rand(10_000, ACTIVE, generator=generator)
        return mean + torch.einsum("np,npd->nd", lengths, directions[chosen])

    return directions, (chunk() for _ in repeat(None))


# The forward pass


@pytest.mark.parametrize("shape", [(7,), (2, 3), ()])
def test_encode_and_decode_are_numpys(shape: tuple[int, ...]) -> None:
    autoencoder = random_autoencoder()
    states = torch.randn(*shape, 5, generator=torch.Generator().manual_seed(1))
    W_enc, b_enc, W_dec, b_dec = (getattr(autoencoder, name).double().numpy() for name in TENSORS)
    latents: NDArray[np.float64] = np.zeros((*shape, 11))
    for place in np.ndindex(*shape):
        before = (states[place].double().numpy() - b_dec) @ W_enc + b_enc
        highest = np.argsort(before)[-3:]
        latents[place][highest] = np.maximum(before[highest], 0)
    found = autoencoder.encode(states)
    np.testing.assert_allclose(found, latents, atol=1e-5)
    np.testing.assert_allclose(autoencoder.decode(found), latents @ W_dec + b_dec, atol=1e-5)


def test_fewer_than_k_latents_are_active_where_fewer_are_above_0() -> None:
    autoencoder = replace(random_autoencoder(), b_enc=torch.full((11,), -1e3))
    assert not autoencoder.encode(torch.randn(4, 5)).any()


def test_latents_have_the_dtype_of_the_states_and_a_gradient() -> None:
    autoencoder = random_autoencoder()
    states = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    latents = autoencoder.encode(states)
    assert latents.dtype == autoencoder.decode(latents).dtype == torch.float64
    (gradient,) = torch.autograd.grad(latents.sum(), states)
    assert gradient.any()


def test_states_and_latents_of_another_width_are_refused() -> None:
    autoencoder = random_autoencoder()
    with pytest.raises(MismatchError, match=r"6, not 5: this autoencoder has 11 latents of the 5 dimensions of story"):
        autoencoder.encode(torch.zeros(2, 6))
    with pytest.raises(MismatchError, match="5, not 11"):
        autoencoder.decode(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 12}, "k=12 of 11 latents"),
        ({"k": 0}, "k=0 of 11"),
        ({"b_dec": torch.full((5,), torch.nan)}, "b_dec holds NaN"),
        ({"W_dec": torch.zeros(11, 6)}, "not the shapes of one autoencoder"),
        ({"W_enc": torch.zeros(5)}, "not the shapes of one autoencoder"),
    ],
)
def test_weights_that_are_no_autoencoder_are_refused(change: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        replace(random_autoencoder(), **change)


# Training


@pytest.fixture(scope="module")
def trained() -> tuple[Tensor, Iterator[Tensor], Autoencoder]:
    """On planted directions."""
    directions, chunks = planted(seed=0)
    return directions, chunks, fit(PLANTED, chunks, hook_name="blocks.0.hook_resid_post", model_name="planted")


def test_planted_directions_are_found(trained: tuple[Tensor, Iterator[Tensor], Autoencoder]) -> None:
    directions, _, autoencoder = trained
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=-1), torch.ones(64), atol=1e-3, rtol=0)
    best = (directions @ autoencoder.W_dec.T).max(1).values
    assert (best > 0.9).float().mean() > 0.9


def test_planted_states_are_explained_on_states_never_seen(
    trained: tuple[Tensor, Iterator[Tensor], Autoencoder],
) -> None:
    _, chunks, autoencoder = trained
    found = quality(autoencoder, next(chunks))
    assert found["variance_explained"] > 0.9
    assert ACTIVE - 0.5 < found["mean_l0"] <= ACTIVE
    assert found["dead_share"] <= 1 - N_DIRECTIONS / PLANTED.d_sae  # there are more latents than directions


def test_the_unit_of_the_states_changes_nothing_but_the_unit_of_the_latents() -> None:
    short = replace(PLANTED, tokens=5_000)
    first, second = (
        fit(short, (scale * chunk for chunk in planted(seed=1)[1]), hook_name="", model_name="") for scale in (1, 64)
    )
    states = next(planted(seed=2)[1])[:100]
    torch.testing.assert_close(second.encode(64 * states), 64 * first.encode(states), atol=1.0, rtol=0.01)
    torch.testing.assert_close(second.W_dec, first.W_dec, atol=1e-3, rtol=0)


def test_the_same_recipe_gives_the_same_weights() -> None:
    short = replace(PLANTED, tokens=2_000)
    first, second = (fit(short, planted(seed=1)[1], hook_name="", model_name="") for _ in range(2))
    assert torch.equal(first.W_dec, second.W_dec)
    other = fit(replace(short, seed=1), planted(seed=1)[1], hook_name="", model_name="")
    assert not torch.equal(first.W_dec, other.W_dec)


def test_a_latent_that_is_never_among_the_k_learns_from_what_the_others_leave_over() -> None:
    weights = [tensor.requires_grad_() for tensor in (torch.eye(4), torch.zeros(4), torch.eye(4) / 2, torch.zeros(4))]
    states = torch.tensor([[4.0, 0, 0, 1.0]])
    for dead in (False, True):
        loss, active = _loss(weights, states, 1, torch.tensor([False, False, False, dead]))
        assert active.tolist() == [True, False, False, False]
        of_decoder = torch.autograd.grad(loss, weights[2])[0]
        assert of_decoder[0].any()
        assert bool(of_decoder[3].any()) is dead


def test_states_that_end_too_early_are_refused() -> None:
    with pytest.raises(LrtError, match="end after 39 of 976 steps"):
        fit(PLANTED, [next(planted(seed=1)[1])], hook_name="", model_name="")


# On a model


@pytest.fixture(scope="module")
def family(word: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers that was never trained, under the name of storyworld-small."""
    folder = tmp_path_factory.mktemp("weights")
    new_model(TINY, word).save_pretrained(folder / "storyworld-small")
    save_tokenizer(word, folder / "storyworld-small")
    return folder


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 20)


@pytest.mark.usefixtures("few_documents")
def test_states_are_those_at_all_words_after_the_layer(family: Path) -> None:
    folder = family / "storyworld-small"
    found = states_of(load_model(folder, device="cpu"), "blocks.0.hook_resid_post", seed=5)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_model(folder, device="cpu").tokenizer
    expected = []
    for text in documents(20, seed=5):
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        assert tokens[0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            expected.append(reference(tokens, output_hidden_states=True).hidden_states[1][0, 1:])
    wanted = torch.cat(expected)
    assert found.shape == wanted.shape  # in another order: batches are sorted by length
    distance = torch.cdist(found.double(), wanted.double())
    assert max(distance.min(0).values.max(), distance.min(1).values.max()) < 1e-4


@pytest.mark.usefixtures("few_documents")
def test_the_command_trains_and_saves(
    family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "small-sae", "--out", str(family), "--tokens", "4000"])
    main()
    folder = family / "storyworld-small-sae"
    assert capsys.readouterr().out == f"{folder}\n"
    autoencoder = Autoencoder.load(folder)
    assert (autoencoder.d_in, autoencoder.d_sae, autoencoder.k) == (16, 512, read_autoencoder_recipe("small-sae").k)
    assert (autoencoder.model_name, autoencoder.hook_name) == ("storyworld-small", "blocks.1.hook_resid_post")
    training = json.loads((folder / "training.json").read_text())
    assert training["recipe"] == replace(read_autoencoder_recipe("small-sae"), tokens=4000).as_dict()
    states = states_of(load_model(family / "storyworld-small", device="cpu"), autoencoder.hook_name, 11 * 1_000_003)
    for name, value in quality(autoencoder, states).items():
        assert training[name] == pytest.approx(value, rel=1e-3)
    with pytest.raises(SystemExit):
        main()
    assert "exists already" in capsys.readouterr().err


def test_the_command_says_that_the_model_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "large-sae", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "first run python -m lrt_tl.storyworld.train large" in capsys.readouterr().err


def test_a_model_that_takes_words_for_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LrtError, match="medium-foreign means other things"):
        make_autoencoder(replace(PLANTED, model="medium-foreign"), tmp_path)


def test_a_layer_that_the_model_lacks_is_refused(family: Path) -> None:
    model = load_model(family / "storyworld-small", device="cpu")
    with pytest.raises(LrtError, match="layer 2 is out of range"):
        train_autoencoder(replace(PLANTED, layer=2), model)


# Folders


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    autoencoder = random_autoencoder()
    folder = autoencoder.save(tmp_path / "sae", {"seconds": 1.0})
    loaded = Autoencoder.load(folder)
    for name in TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(autoencoder, name))
        assert getattr(loaded, name).dtype == torch.float32
    assert (loaded.k, loaded.hook_name, loaded.model_name) == (3, "blocks.1.hook_resid_post", "storyworld-small")
    assert {file.name for file in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors", "training.json"}
    stored = load_file(folder / "sae_weights.safetensors")
    assert {stored[name].dtype for name in ("W_enc", "W_dec")} == {torch.float16}
    with pytest.raises(ArtifactError, match="exists already"):
        autoencoder.save(folder)


def test_what_float16_does_not_hold_is_not_saved(tmp_path: Path) -> None:
    autoencoder = replace(random_autoencoder(), W_dec=torch.full((11, 5), 1e5))
    with pytest.raises(ArtifactError, match="W_dec holds more than float16"):
        autoencoder.save(tmp_path / "sae")
    assert not any(tmp_path.iterdir())
    biased = replace(random_autoencoder(), b_dec=torch.full((5,), 1e5))
    assert torch.equal(Autoencoder.load(biased.save(tmp_path / "sae")).b_dec, biased.b_dec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal'; those read here are standard, topk"),
        ({"architecture": ["topk"]}, r"architecture \['topk'\]"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input=1"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"rescale_acts_by_decoder_norm": None}, "rescale_acts_by_decoder_norm=None"),
        ({"k": None}, "lacks k"),
        ({"k": True}, "lacks k"),
        ({"k": 12}, "k=12 of 11 latents"),
        ({"metadata": {}}, "lacks hook_name in its metadata"),
        ({"metadata": None}, "lacks hook_name in its metadata"),
        ({"d_in": 6}, "says {'d_in': 6, 'd_sae': 11}"),
    ],
)
def test_settings_of_another_autoencoder_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = random_autoencoder().save(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(ArtifactError, match=message):
        Autoencoder.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_dec": None}, r"holds the tensors \['W_dec', 'W_enc', 'b_enc'\]"),
        ({"threshold": torch.zeros(11)}, "holds the tensors"),
        ({"W_dec": torch.full((11, 5), torch.inf)}, "W_dec holds NaN or infinity"),
        ({"W_dec": torch.zeros(5, 11)}, "not the shapes"),
    ],
)
def test_weights_of_another_autoencoder_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    folder = random_autoencoder().save(tmp_path / "sae")
    file = folder / "sae_weights.safetensors"
    save_file({name: tensor for name, tensor in (load_file(file) | change).items() if tensor is not None}, file)
    with without_type_checks(), pytest.raises(ArtifactError, match=message):
        Autoencoder.load(folder)


def test_folders_that_hold_no_autoencoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        Autoencoder.load(tmp_path / "none")
    folder = random_autoencoder().save(tmp_path / "sae")
    weights = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(weights[:-8])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Autoencoder.load(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"holds no sae_weights\.safetensors"):
        Autoencoder.load(folder)
    (folder / "sae_weights.safetensors").write_bytes(weights)
    for content, message in (("{", "cannot be read"), ("[]", "holds no settings")):
        (folder / "cfg.json").write_text(content)
        with pytest.raises(ArtifactError, match=message):
            Autoencoder.load(folder)


def test_saelens_reads_the_folder_and_agrees(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saelens = pytest.importorskip("sae_lens", exc_type=ImportError)
    autoencoder = random_autoencoder(d_in=24, d_sae=64, k=5)
    sae = saelens.SAE.load_from_disk(autoencoder.save(tmp_path / "sae"))
    states = 10 * torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    latents = autoencoder.encode(states)
    torch.testing.assert_close(sae.encode(states), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(latents), autoencoder.decode(latents), atol=1e-5, rtol=1e-5)
    sae.save_model(tmp_path / "by saelens")
    again = Autoencoder.load(tmp_path / "by saelens")
    assert torch.equal(again.encode(states), latents)
    assert (again.model_name, again.hook_name) == (autoencoder.model_name, autoencoder.hook_name)


# Recipes


def test_every_autoencoder_is_of_a_models_middle_layer() -> None:
    assert autoencoder_names() == ["small-sae", "large-sae"]
    assert not set(autoencoder_names()) & set(recipe_names())
    for name in autoencoder_names():
        recipe = read_autoencoder_recipe(name)
        model = read_recipe(recipe.model)
        assert recipe.layer == model.n_layers // 2 - 1
        assert recipe.data_seed not in {read_recipe(other).data_seed for other in recipe_names()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0, and must be 1 or more"),
        ({"k": 65}, "k=65 of d_sae=64 latents"),
        ({"lr": 0.0}, "lr is 0.0, and must be above 0"),
        ({"tokens": -1}, "tokens is -1"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        replace(PLANTED, **change)


def test_the_recipe_of_a_model_is_none_of_an_autoencoder() -> None:
    with pytest.raises(LrtError, match="small has the unknown fields"):
        read_autoencoder_recipe("small")
    with pytest.raises(LrtError, match="small-sae has the unknown fields"):
        read_recipe("small-sae")
