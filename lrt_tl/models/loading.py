"""A name on the Hugging Face hub, or a local folder → a TransformerLens model.

TransformerLens and Transformers take seconds to import, so they are imported on use.
"""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from lrt_tl.errors import LrtError
from lrt_tl.models.conversion import hooked_from_folder
from lrt_tl.models.protocol import HookedModel

BUNDLED = Path(__file__).parents[1] / "storyworld" / "weights"
"""The folders of the models that come with the package."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer*", "vocab*", "*.model")


def load_model(
    name_or_folder: str | Path,
    *,
    model_class: Literal["bridge", "hooked"] = "bridge",
    processed: bool = False,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> HookedModel:
    """Load a language model, ready to be read and steered (in evaluation mode).

    Args:
        name_or_folder: one of the bundled models (`storyworld-small`, …), a name on the hub, or a folder that
            Transformers' `save_pretrained` wrote, with a tokenizer. Of a folder, the name without its path becomes
            `model.cfg.model_name`.
        model_class: "bridge" for `TransformerBridge`, "hooked" for `HookedTransformer`, which ends with
            TransformerLens 3.
        processed: fold the norms' weights into what reads them, and centre what can be centred without
            changing a prediction, as `HookedTransformer.from_pretrained` does. The residual stream changes.
        device: by default a GPU if there is one.
        dtype: of weights and activations, whatever the checkpoint has.
        revision: branch, tag or commit of a hub name; kept as `model.cfg.revision`. (HookedTransformer takes
            the tokenizer from the main branch all the same.)

    Raises:
        LrtError: the folder does not exist or lacks its configuration, weights or tokenizer; the name cannot
            be loaded from the hub; a folder is given a revision; "hooked" is asked of TransformerLens 4, or
            of an architecture or a setting that cannot be converted. What the libraries raised is chained.

    Examples:
        >>> import lrt_tl as lrt
        >>> model = lrt.load_model("storyworld-small")
        >>> model.cfg.n_layers, model.cfg.d_model
        (4, 64)
        >>> _, cache = model.run_with_cache("The capital of Norvia is")
        >>> cache["blocks.1.hook_resid_post"].shape
        torch.Size([1, 6, 64])
    """
    if model_class not in ("bridge", "hooked"):
        raise LrtError(f'model_class is "bridge" or "hooked", not {model_class!r}')
    folder = _local_folder(name_or_folder)
    if folder is not None and revision is not None:
        raise LrtError(f"{folder} is a local folder and has no revisions: leave out revision={revision!r}")
    if model_class == "hooked":
        _require_hooked_transformer()
    with _failure_named(name_or_folder, folder), _deprecation_of_hooked_ignored():
        if model_class == "bridge":
            model = _bridge(folder or str(name_or_folder), processed, device, dtype, revision)
        elif folder is not None:
            model = hooked_from_folder(folder, processed=processed, device=device, dtype=dtype)
        else:
            model = _hooked_from_hub(str(name_or_folder), processed, device, dtype, revision)
    if revision is not None:
        model.cfg.revision = revision
    loaded: HookedModel = model.eval()
    return loaded


def _bridge(source: str | Path, processed: bool, device: str | None, dtype: torch.dtype, revision: str | None) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(source), device=device, dtype=dtype, revision=revision)
    if not getattr(model.original_model.config, "scale_attn_weights", True):
        raise LrtError(f"{source} cannot be a Bridge, since a Bridge ignores scale_attn_weights=False of GPT-2")
    if isinstance(source, Path):
        model.cfg.model_name = source.name
    if processed:
        model.enable_compatibility_mode()
    return model


def _hooked_from_hub(name: str, processed: bool, device: str | None, dtype: torch.dtype, revision: str | None) -> Any:
    from transformer_lens import HookedTransformer

    load = HookedTransformer.from_pretrained if processed else HookedTransformer.from_pretrained_no_processing
    options = {} if revision is None else {"revision": revision}
    return load(name, device=device, dtype=dtype, **options)


def _require_hooked_transformer() -> None:
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError as error:
        raise LrtError(
            'HookedTransformer is gone from TransformerLens 4: use model_class="bridge", with processed=True '
            "for the numbers that HookedTransformer gives by default, or install transformer-lens 3"
        ) from error


def _local_folder(name_or_folder: str | Path) -> Path | None:
    """The folder, complete and absolute; None for what can only be a name on the hub.

    Absolute, since TransformerLens takes a folder called `pythia-70m` for its alias of a model on the hub.
    """
    if isinstance(name_or_folder, str) and name_or_folder.startswith("storyworld-"):
        return _bundled_folder(name_or_folder)
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        if isinstance(name_or_folder, Path) or folder.exists() or _looks_like_a_path(name_or_folder):
            raise LrtError(f"{name_or_folder} is not a folder: give one that holds a model, or a hub name")
        return None
    if not (folder / "config.json").is_file():
        raise LrtError(
            f"{name_or_folder} is a folder without config.json: save a model in it with save_pretrained, or, "
            "if a model on the hub is meant, run this where no folder has its name"
        )
    for what, patterns in (("weights", _WEIGHTS), ("tokenizer", _TOKENIZER)):
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise LrtError(
                f"{name_or_folder} has no {what} ({', '.join(patterns)}): save it there with save_pretrained"
            )
    return folder.resolve()


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(config.parent.name for config in BUNDLED.glob("*/config.json"))


def _bundled_folder(name: str) -> Path:
    if name not in bundled_models():
        raise LrtError(
            f"there is no bundled model {name!r}, only {', '.join(bundled_models()) or 'none'}: train it with python "
            f"-m lrt_tl.storyworld.train {name.removeprefix('storyworld-')} (your own folder of that name is ./{name})"
        )
    return BUNDLED / name


def _looks_like_a_path(name: str) -> bool:
    """Hub names are `model` or `owner/model`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


@contextmanager
def _failure_named(name_or_folder: str | Path, folder: Path | None) -> Iterator[None]:
    """Say which model failed to load: what is raised below, which can be anything, often does not."""
    try:
        yield
    except LrtError:
        raise
    except Exception as error:
        place = "" if folder else " from the hub (and there is no folder of that name here)"
        # Shortened, for TransformerLens answers an unknown name with the list of all names that it knows.
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise LrtError(f"cannot load {name_or_folder}{place}: {type(error).__name__}: {reason}") from error


@contextmanager
def _deprecation_of_hooked_ignored() -> Iterator[None]:
    """Whoever asks for a `HookedTransformer` need not hear at each load that it will go."""
    message = r"HookedTransformer(\.from_pretrained)? is deprecated"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, DeprecationWarning)
        yield
