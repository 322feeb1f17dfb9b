"""Checkpoints: one safetensors file each, with the state in its header, replaced atomically. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.errors import StoreError

FORMAT = "1"
WEIGHTS = "model.safetensors"  # the best weights of a training run, in its folder


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a state of JSON types as one file; if it is interrupted, the old file stays intact."""
    temporary = path.with_name(f".{path.name}.tmp")
    contiguous = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata={"format": FORMAT, "state": json.dumps(state)})
    except SafetensorError as error:  # such as for a full disk
        raise StoreError(f"cannot write the checkpoint {path} ({error}); free some space and run again") from error
    os.replace(temporary, path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state of a checkpoint.

    Raises: StoreError if the file is missing, truncated, or not a checkpoint of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if header.get("format") != FORMAT:
            raise ValueError(f"it has format {header.get('format')}, this version reads format {FORMAT}")
        return tensors, json.loads(header["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); delete it and train again, "
            f"or give the folder of another one"
        ) from error


def load_weights(encoder: nn.Module, path: Path) -> dict[str, Any]:
    """Put the weights of a checkpoint into an encoder and return the checkpoint's state.

    Raises: StoreError if they are of another architecture: names or shapes differ.
    """
    tensors, state = load(path)
    expected = {name: tuple(t.shape) for name, t in encoder.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise StoreError(
            f"checkpoint {path} is of another architecture: {name} is {found.get(name, 'absent')} there and "
            f"{expected.get(name, 'absent')} in this encoder; give the --model and --set model.* that "
            f"it was trained with"
        )
    encoder.load_state_dict(tensors)
    return state


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors, such as `0.exp_avg` of its first parameter."""
    return {
        f"{i}.{name}": value for i, state in optimiser.state_dict()["state"].items() for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore an optimiser of the same parameters from the named tensors of `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, part = name.partition(".")
        state.setdefault(int(number), {})[part] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
