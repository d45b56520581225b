"""The architectures of SAELens: against numpy, from its folders, and beside SAELens itself."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.loading import load_model
from lrt_tl.steering.autoencoder import Autoencoder, decoder_vectors, load_autoencoder

D_IN, D_SAE, K = 24, 40, 5
SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard, raw inputs": {"apply_b_dec_to_input": False},
    "jumprelu": {},
    "gated": {"apply_b_dec_to_input": False},
    "topk": {"k": K},
    "topk, rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
}


def tensors_of(architecture: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    extra = {"jumprelu": ["b_enc", "threshold"], "gated": ["b_gate", "b_mag", "r_mag"]}.get(architecture, ["b_enc"])
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,), **dict.fromkeys(extra, (D_SAE,))}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def folder_of(path: Path, name: str, **change: Any) -> Path:
    """As SAELens 6 saves it."""
    path.mkdir()
    architecture = name.split(",")[0]
    save_file(tensors_of(architecture), path / "sae_weights.safetensors")
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    metadata = {"sae_lens_version": "6.54.12", "model_name": "large", "hook_name": "blocks.1.hook_resid_post"}
    (path / "cfg.json").write_text(json.dumps({**config, **SETTINGS[name], "metadata": metadata, **change}))
    return path


def reference(name: str, states: Tensor) -> tuple[Any, Any]:
    """Latents and reconstructions in numpy, as the papers write them."""
    w = {key: tensor.double().numpy() for key, tensor in tensors_of(name.split(",")[0]).items()}
    x = states.double().numpy()
    x = x - w["b_dec"] if SETTINGS[name].get("apply_b_dec_to_input", True) else x
    pre = x @ w["W_enc"]
    if name == "gated":
        latents = (pre + w["b_gate"] > 0) * np.maximum(np.exp(w["r_mag"]) * pre + w["b_mag"], 0)
        return latents, latents @ w["W_dec"] + w["b_dec"]
    pre = pre + w["b_enc"]
    norms = np.linalg.norm(w["W_dec"], axis=1) if name == "topk, rescaled" else np.ones(D_SAE)
    if name.startswith("topk"):
        kth = np.sort(pre * norms, axis=-1)[:, -K, None]
        latents = np.where(pre * norms >= kth, np.maximum(pre * norms, 0), 0)
    else:
        latents = np.maximum(pre, 0) * (pre > w.get("threshold", 0))
    return latents, latents / norms @ w["W_dec"] + w["b_dec"]


STATES = 2 * torch.randn(300, D_IN, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", SETTINGS)
def test_folders_of_every_architecture_give_numpys_latents(tmp_path: Path, name: str) -> None:
    autoencoder = load_autoencoder(folder_of(tmp_path / "sae", name))
    latents, states = reference(name, STATES)
    np.testing.assert_allclose(autoencoder.encode(STATES), latents, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(autoencoder.decode(autoencoder.encode(STATES)), states, atol=1e-3, rtol=1e-4)
    assert 0.02 < (latents > 0).mean() < 0.6
    assert autoencoder.architecture == {"gated": "jumprelu"}.get(name, name.split(",")[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_saelens_agrees(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saelens = pytest.importorskip("sae_lens", exc_type=ImportError)
    folder = folder_of(tmp_path / "sae", name)
    sae, ours = saelens.SAE.load_from_disk(folder), load_autoencoder(folder)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(STATES), sae.encode(STATES), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours.decode(ours.encode(STATES)), sae(STATES), atol=1e-3, rtol=1e-4)
        sae.save_model(tmp_path / "by saelens")
    assert torch.equal(load_autoencoder(tmp_path / "by saelens").encode(STATES), ours.encode(STATES))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_saved_comes_back_in_float16(tmp_path: Path, name: str) -> None:
    autoencoder = load_autoencoder(folder_of(tmp_path / "theirs", name))
    again = Autoencoder.load(autoencoder.save(tmp_path / "ours"))
    assert (again.architecture, again.k) == (autoencoder.architecture, autoencoder.k)
    assert again.apply_b_dec_to_input == autoencoder.apply_b_dec_to_input
    torch.testing.assert_close(again.W_dec, autoencoder.W_dec.half().float(), atol=0, rtol=0)
    torch.testing.assert_close(again.threshold, autoencoder.threshold, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("standard", {"normalize_activations": "expected_average_only_in"}, "normalize_activations='expected_average"),
        ("standard", {"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ("standard", {"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
        ("jumprelu", {"architecture": "standard"}, "holds the tensors"),
        ("standard", {"architecture": "transcoder"}, "architecture 'transcoder'"),
        ("standard", {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}, "lacks model_name"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_key(tmp_path: Path, name: str, change: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load_autoencoder(folder_of(tmp_path / "sae", name, **change))


def test_thresholds_and_k_exclude_each_other(tmp_path: Path) -> None:
    weights: Any = {name: tensors_of("standard")[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    with pytest.raises(LrtError, match="and not both"):
        Autoencoder(**weights, k=3, hook_name="", model_name="", threshold=torch.zeros(D_SAE))


def test_a_latents_vector_does_what_a_rise_of_the_latent_does(folders: Any, bridges: Any, tmp_path: Path) -> None:
    model, autoencoder = load_model(folders[1]), load_autoencoder(folder_of(tmp_path / "sae", "jumprelu"))
    third, first = decoder_vectors(autoencoder, [3, 1], model)
    latents = autoencoder.encode(STATES)
    raised = latents.clone()
    raised[:, 3] += 2.5
    change = autoencoder.decode(raised) - autoencoder.decode(latents)
    torch.testing.assert_close((2.5 * third).direction.expand_as(change), change, atol=1e-4, rtol=1e-4)
    assert first.provenance == {"method": "autoencoder", "autoencoder": "large blocks.1.hook_resid_post", "latent": 1}
    assert first.site.hook_name == "blocks.1.hook_resid_post"
    first.check_model(model)
    with pytest.raises(MismatchError, match="of 24 dimensions of large; small has 16"):
        decoder_vectors(autoencoder, [0], bridges[0])
    with pytest.raises(LrtError, match=r"no latents \[-1, 40\]: the autoencoder has 0 to 39"):
        decoder_vectors(autoencoder, [-1, 0, 40], model)
