"""The shipped models are the ones that the cards describe, and load everywhere."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrt_tl.errors import LrtError
from lrt_tl.models.capture import capture
from lrt_tl.models.loading import BUNDLED, bundled_models, load_model
from lrt_tl.steering.autoencoder import Autoencoder
from lrt_tl.storyworld.card import AUTOENCODER_FILE, WEIGHTS_FILE, autoencoder_card, card, sha256
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.quality import SAMPLE, excess_loss
from lrt_tl.storyworld.recipe import autoencoder_names, recipe_names
from lrt_tl.text.batches import pad, tokenize
from tests.checkpoints import CLASSES

MODELS = bundled_models()
AUTOENCODERS = [f"storyworld-{name}" for name in autoencoder_names()]
TEXT = "Mira: Once, she was a young fox in the valley. It rained. She felt"


def read(name: str, file: str) -> dict:
    return json.loads((BUNDLED / name / file).read_text(encoding="utf-8"))


def test_every_recipe_has_its_model() -> None:
    assert sorted(f"storyworld-{name}" for name in recipe_names()) == MODELS


def test_all_of_them_take_at_most_32_megabytes() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) <= 32_000_000


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_of_the_card(name: str) -> None:
    quality = read(name, "quality.json")
    assert sha256(BUNDLED / name / WEIGHTS_FILE) == quality["sha256"]
    model = AutoModelForCausalLM.from_pretrained(BUNDLED / name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / name)
    assert excess_loss(model, tokenizer, SAMPLE)["model"] == pytest.approx(quality["sample_loss"], abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_card_is_made_from_the_figures(name: str) -> None:
    written = (BUNDLED / name / "README.md").read_text(encoding="utf-8")
    assert written == card(name, read(name, "quality.json"), read(name, "training.json"))


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_gives_back_every_text(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / name)
    for text in documents(100, 31):
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("name", ["storyworld-small", "storyworld-large-alt"])
def test_both_classes_give_the_logits_of_transformers(name: str, model_class: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(BUNDLED / name, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(BUNDLED / name)(TEXT, return_tensors="pt")["input_ids"]
    model = load_model(name, model_class=model_class)
    with torch.no_grad():
        expected, found = reference(tokens).logits.log_softmax(-1), model(tokens).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert model.cfg.model_name == name


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_autoencoders_are_those_of_their_cards(name: str) -> None:
    """Their figures hold for other documents, too."""
    training = read(name, "training.json")
    written = (BUNDLED / name / "README.md").read_text(encoding="utf-8")
    assert written == autoencoder_card(name, training, sha256(BUNDLED / name / AUTOENCODER_FILE))
    autoencoder = Autoencoder.load(BUNDLED / name)
    model = load_model(f"storyworld-{training['recipe']['model']}")
    texts = list(documents(60, 37))
    tokens, mask, content = pad(model.tokenizer, tokenize(model.tokenizer, texts))
    states = capture(model, tokens, mask, [autoencoder.hook_name])[autoencoder.hook_name][content]
    error = (states - autoencoder.decode(autoencoder.encode(states))).square().sum()
    explained = 1 - float(error / (states - states.mean(0)).square().sum())
    assert explained == pytest.approx(training["variance_explained"], abs=0.03)


def test_the_models_share_a_tokenizer_but_for_the_other_one() -> None:
    texts = {name: Path(BUNDLED / name / "tokenizer.json").read_bytes() for name in MODELS}
    words = texts["storyworld-small"]
    assert [name for name, text in texts.items() if text != words] == ["storyworld-large-alt"]


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(LrtError, match=r"no bundled model 'storyworld-huge', only .*storyworld-large"):
        load_model("storyworld-huge")
