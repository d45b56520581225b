"""What a training run needs to go on after it was killed: one safetensors file, written whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.storyworld.recipe import Recipe


@dataclass
class Progress:
    """Where a run stands, as it is written into its checkpoints."""

    step: int = 0
    chunk: int = 0
    batch: int = 0
    tokens: int = 0
    documents: int = 0
    documents_left_out: int = 0
    loss: float | None = None
    seconds: float = 0.0


def save_checkpoint(
    path: Path, recipe: Recipe, model: Any, optimizers: Mapping[str, torch.optim.Optimizer], progress: Progress
) -> None:
    """Write all that a run needs to go on, whole or not at all."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}.{number}.{key}": value for key, value in state.items()}
    header = {"recipe": json.dumps(recipe.as_dict()), "progress": json.dumps(vars(progress))}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
    partial.replace(path)


def load_checkpoint(
    path: Path, recipe: Recipe, model: Any, optimizers: Mapping[str, torch.optim.Optimizer]
) -> Progress:
    """Put model and optimizers where the last checkpoint left them; a fresh start where there is none.

    Raises:
        LrtError: the checkpoint is of another recipe.
    """
    if not path.is_file():
        return Progress()
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    found = json.loads(header["recipe"])
    if changed := sorted(key for key, value in recipe.as_dict().items() if found.get(key) != value):
        raise LrtError(
            f"{path} is of a run with other values of {', '.join(changed)}: remove it, or use another --work"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for kind, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"{kind}."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads(header["progress"]))
