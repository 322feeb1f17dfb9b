"""Registers trained encoders in MLflow's model registry and fetches them: safetensors and JSON, no pickled code.

A registered version is a model of MLflow's generic flavour, and this module is its loader: `mlflow.pyfunc.load_model`
of `models:/NAME@ALIAS` returns a model that maps segments to unit vectors. `bench run --checkpoint` takes the same
address.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import ConfigError, StoreError
from bench.logbook.journal import Journal
from bench.logbook.uploader import connect, first_line, store_uri, user_uri
from bench.store import Store, digest, read_json, write_json, write_text

SCHEME = "models:/"
FOLDER, FILES = "model", "encoder"  # the folder in a run's artefacts, and the folder of our files before packaging
DATA = f"data/{FILES}"  # where MLflow puts a loader's files in the model's folder
WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "card.md"
EXAMPLE_SEGMENTS = 2  # in the input example


@dataclass(frozen=True)
class Package:
    """A trained encoder to register."""

    encoder: str
    weights: Path

    settings: Mapping[str, Any]
    """The settings of its run, by dotted name."""

    card: str
    """Its model card, in Markdown."""

    rate_hz: int
    segment_s: float
    dim: int


@dataclass(frozen=True)
class RegisteredModel:
    """A fetched version: the file of its weights, and the settings of the run that trained it."""

    weights: Path
    settings: dict[str, Any]

    @property
    def encoder(self) -> str:
        """Return the name of the encoder."""
        return str(self.settings["encoder"])


def register(store: Store, run: str, package: Package, name: str, alias: str, tags: Mapping[str, str]) -> str:
    """Add a version of the model `name` from a run that MLflow has, point the alias, if any, to it; return its number.

    Raises: StoreError if MLflow does not have the run or cannot be reached; the run itself is not affected.
    """
    link = Journal(store.root / "runs" / run).load_link()
    target = link.targets.get(link.uri) if link else None
    if link is None or target is None or not target.run_id:
        raise StoreError(f"MLflow does not have the run {run} yet; upload it with `bench sync`, then promote again")
    try:
        client = connect(link.uri, store.root)
        with tempfile.TemporaryDirectory() as scratch:
            folder = _model_folder(Path(scratch), package)
            client.log_artifacts(target.run_id, str(folder), FOLDER)
        _ensure_model(client, name)
        source = f"{client.get_run(target.run_id).info.artifact_uri}/{FOLDER}"
        version = client.create_model_version(
            name, source, run_id=target.run_id, tags=dict(tags), description=package.card
        )
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    except Exception as error:
        raise StoreError(
            f"the model could not be registered in MLflow ({first_line(error)}); the run {run} is kept: promote again"
        ) from error
    return str(version.version)


def alias_tags(store: Store, name: str, alias: str) -> dict[str, str]:
    """Return the tags of the version that an alias points to; empty if there is none or MLflow does not answer."""
    try:
        return dict(connect(user_uri(), store.root).get_model_version_by_alias(name, alias).tags)
    except Exception:  # MLflow raises the same error type for a missing model as for other failures
        return {}


def fetch_model(uri: str, store: Store) -> RegisteredModel:
    """Return the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION`, copied into the store once.

    Raises: ConfigError if the address is wrong or there is no such model; StoreError if it is not a model of afp-bench.
    """
    name, version = _address(uri)
    try:
        client = connect(user_uri(), store.root)
        model_version = (
            client.get_model_version(name, version[1:])
            if version[0] == "/"
            else client.get_model_version_by_alias(name, version[1:])
        )
        source = str(model_version.source)
    except Exception as error:
        where = user_uri() or store_uri(store.root)
        raise ConfigError(
            f"no model at {uri} in {where} ({first_line(error)}); `bench sweep promote` registers one"
        ) from error

    def build(folder: Path) -> None:
        for file in (SETTINGS, WEIGHTS):
            _download(f"{source}/{DATA}/{file}", folder, store)

    try:
        folder = store.fetch("registered", digest(uri.partition("@")[0], str(model_version.version), source), build)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"the model {uri} was not registered by afp-bench, or its files are gone ({first_line(error)})"
        ) from error
    return RegisteredModel(folder / WEIGHTS, read_json(folder / SETTINGS))


def _address(uri: str) -> tuple[str, str]:
    """Return the name of a model, and "@ALIAS" or "/VERSION"."""
    address = uri.removeprefix(SCHEME)
    for mark in "@/":
        name, separator, version = address.partition(mark)
        if separator and name and version:
            return name, f"{mark}{version}"
    raise ConfigError(f"a registered model is named {SCHEME}NAME@champion or {SCHEME}NAME/3, got {uri}")


def _download(source: str, folder: Path, store: Store) -> None:
    import mlflow

    tracking = user_uri() or store_uri(store.root)
    mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=tracking)


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _model_folder(scratch: Path, package: Package) -> Path:
    """Return a folder in MLflow's model format: our files, and an MLmodel with signature and input example."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    files = scratch / FILES
    files.mkdir()
    shutil.copyfile(package.weights, files / WEIGHTS)
    write_json(files / SETTINGS, dict(package.settings))
    write_text(files / CARD, package.card)
    num_samples = round(package.segment_s * package.rate_hz)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_samples), "segments")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, package.dim))]),
    )
    example = np.random.default_rng(0).standard_normal((EXAMPLE_SEGMENTS, num_samples)).astype(np.float32) / 10
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    pyfunc.save_model(
        path=str(scratch / FOLDER),
        loader_module=__name__,
        data_path=str(files),
        signature=signature,
        input_example={"segments": example},
        pip_requirements=["afp-bench"],
    )
    return scratch / FOLDER


class _Fingerprinter:
    """The model that MLflow's generic flavour calls."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return unit vectors (B, D) float32 of segments (B, T) at the encoder's rate."""
        import torch

        wave_BT = np.asarray(model_input["segments"] if isinstance(model_input, dict) else model_input, np.float32)
        with torch.inference_mode():
            vector_BD: np.ndarray = self._encoder(torch.from_numpy(wave_BT)).numpy()
        return vector_BD


def _load_pyfunc(path: str) -> _Fingerprinter:
    """Return the encoder in a model's folder; MLflow calls this function by name."""
    from bench import registry
    from bench.config import restore_config
    from bench.train import checkpoint

    folder = Path(path)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    plugin = registry.load("encoder", settings["encoder"])
    encoder = plugin.build(restore_config(settings["encoder"], plugin, settings).model)
    checkpoint.load_weights(encoder, folder / WEIGHTS)
    return _Fingerprinter(encoder.eval())
