"""One step in pieces, on several processes, ahead of its time: always the numbers of the plain way."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as functional

from bench.degrade.waveform import transform_waves
from bench.errors import ConfigError
from bench.settings import TrainConfig, Transforms
from bench.train.loop import _sync_batch_norm
from bench.train.losses import build_loss
from bench.train.prefetch import PREFETCH_STEPS, Ready, _run_ahead, start_transform_workers
from bench.train.ranks import ALONE, Ranks, init_ranks
from bench.train.step import Stepper, TrainingError

CONFIG = TrainConfig(batch_pairs=6)


class Small(torch.nn.Module):
    """A linear encoder whose paths may be dropped at random."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.drop = torch.nn.Linear(20, 16), torch.nn.Linear(16, 8), drop

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(functional.elu(self.first(patch.flatten(1))), self.drop, self.training)
        return functional.normalize(self.last(hidden), dim=1)


def small(drop: float = 0.0) -> Small:
    torch.manual_seed(1)
    return Small(drop)


def stepper(
    piece: int = 0, drop: float = 0.0, config: TrainConfig = CONFIG, ranks: Ranks = ALONE,
    warn: Callable[[str], None] = pytest.fail,
) -> Stepper:  # fmt: skip
    return Stepper(small(drop), config, 3, ranks, warn, piece)


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(12, 1, 4, 5, generator=torch.Generator().manual_seed(seed))


def gradients(of: Stepper) -> list[torch.Tensor]:
    return [p.grad.clone() for p in of.encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", ["nt-xent", "nafp", "info-nce", "triplet", "semi-hard-triplet", "multi-positive"])
@pytest.mark.parametrize("piece", [1, 5, 6, 11])
def test_a_batch_in_pieces_has_the_loss_and_gradient_of_the_whole(piece: int, loss: str) -> None:
    config = replace(CONFIG, loss=loss, pairs_per_moment=2 if loss == "multi-positive" else 1)  # type: ignore[arg-type]
    whole, cut = stepper(config=config), stepper(piece, config=config)
    assert float(whole.backpropagate(features(), 0)) == pytest.approx(float(cut.backpropagate(features(), 0)), rel=1e-6)
    for wanted, found in zip(gradients(whole), gradients(cut), strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_step_is_that_of_its_vectors() -> None:
    of = stepper()
    with torch.no_grad():
        anchor, positive = of.encoder.embed(features()).chunk(2)
    wanted = build_loss(CONFIG)(anchor, positive, torch.arange(6))
    assert float(of.backpropagate(features(), 0)) == pytest.approx(float(wanted), rel=1e-6)


def test_paths_are_dropped_alike_both_times_a_piece_is_embedded_and_anew_each_step() -> None:
    """With dropped paths the gradient in pieces is that of the loss that is told: seen by a small difference."""
    of = stepper(piece=4, drop=0.5)
    loss = float(of.backpropagate(features(), 7).double())
    weight, slope = of.encoder.last.weight, of.encoder.last.weight.grad.clone()
    with torch.no_grad():
        weight += 1e-3 * slope / slope.norm()
    moved = float(of.backpropagate(features(), 7).double())
    assert moved - loss == pytest.approx(1e-3 * float(slope.norm()), rel=0.05)
    assert float(of.backpropagate(features(), 8)) != moved


class OwnAim(Small):
    """Has an objective of its own: the contrastive loss and the mean square of its features' first map."""

    def objective(self, patch: torch.Tensor, vector: torch.Tensor, contrastive: torch.Tensor) -> torch.Tensor:
        assert len(patch) == len(vector) == 12
        return contrastive + self.first(patch.flatten(1)).square().mean()


def with_own_aim(ranks: Ranks = ALONE) -> Stepper:
    torch.manual_seed(1)
    return Stepper(OwnAim(), CONFIG, 3, ranks, pytest.fail)


def test_an_encoder_s_own_objective_is_the_loss_of_a_step() -> None:
    plain, own = stepper(), with_own_aim()
    with torch.no_grad():
        more = float(own.encoder.first(features().flatten(1)).square().mean())
    loss = float(own.backpropagate(features(), 0))
    assert more > 0.1 and loss == pytest.approx(float(plain.backpropagate(features(), 0)) + more, rel=1e-5)
    last = [of.encoder.last.weight.grad for of in (plain, own)]
    torch.testing.assert_close(*last)  # which the added term does not reach
    assert (plain.encoder.first.weight.grad - own.encoder.first.weight.grad).abs().max() > 1e-3


def test_a_batch_with_an_objective_of_its_own_is_not_cut_when_memory_runs_out() -> None:
    of = with_own_aim()
    of.embed = Hungry(3).embed
    with pytest.raises(TrainingError, match="12 segments, 12 at a time, does not fit into memory"):
        of.backpropagate(features(), 0)


def test_an_objective_of_its_own_is_refused_on_several_processes() -> None:
    with pytest.raises(ConfigError, match=r"trains in one process, got 2; start it without torchrun"):
        with_own_aim(Ranks(0, 2))


class Hungry(Small):
    """Runs out of memory for more than `room` segments at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        if len(patch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().embed(patch)


def test_a_batch_larger_than_memory_is_halved_until_it_fits_and_keeps_its_loss() -> None:
    told: list[str] = []
    torch.manual_seed(1)
    tight = Stepper(Hungry(3), CONFIG, 3, Ranks(), told.append)
    assert float(tight.backpropagate(features(), 0)) == pytest.approx(
        float(stepper().backpropagate(features(), 0)), rel=1e-6
    )
    for wanted, found in zip(gradients(stepper_after()), gradients(tight), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert tight.chunk == 3 and len(told) == 2 and "12 segments" in told[1] and "3 at a time" in told[1]


def stepper_after() -> Stepper:
    of = stepper()
    of.backpropagate(features(), 0)
    return of


def test_a_segment_larger_than_memory_is_a_sentence() -> None:
    none = Stepper(Hungry(0), CONFIG, 3, Ranks(), lambda told: None)
    with pytest.raises(TrainingError, match=r"12 segments.*lower train.batch_pairs = 6"):
        none.backpropagate(features(), 0)


def test_another_error_of_an_encoder_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        stepper().backpropagate(torch.zeros(12, 1, 4, 4), 0)


# Several processes


def test_a_batch_is_shared_equally_or_refused() -> None:
    assert [Ranks(rank, 3).share(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(ConfigError, match=r"multiple of the 4 processes.*got 6"):
        Ranks(0, 4).share(6)


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert init_ranks(torch.device("cpu")) == Ranks(0, 1)


def work(rank: int, world: int, meeting: str, folder: str, loss: str) -> None:
    """Take one step as one of several processes, on its share of the batch, and keep what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    of = stepper(config=replace(CONFIG, loss=loss), ranks=ranks)  # type: ignore[arg-type]
    own = ranks.share(CONFIG.batch_pairs)
    anchors, positives = features().chunk(2)
    told = of.backpropagate(torch.cat([anchors[own], positives[own]]), 0)
    ranks.sum_gradients(of.encoder.parameters())
    agreed = ranks.broadcast_first(float(rank + 5), torch.device("cpu"))
    torch.save([told, torch.tensor(agreed), *gradients(of)], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("loss", ["nt-xent", "semi-hard-triplet"])
def test_two_processes_take_the_step_of_one_with_the_whole_batch(tmp_path: Path, loss: str) -> None:
    meeting = f"file://{tmp_path}/meeting"
    # Forked, as a spawned process could not import this file.
    torch.multiprocessing.start_processes(work, (2, meeting, str(tmp_path), loss), nprocs=2, start_method="fork")
    whole = stepper(config=replace(CONFIG, loss=loss))  # type: ignore[arg-type]
    wanted = [whole.backpropagate(features(), 0), torch.tensor(5.0), *gradients(whole)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


# Working ahead, and in workers


def test_workers_transform_the_positives_alone_and_by_their_seeds() -> None:
    draw = np.random.default_rng(0)
    wave = torch.from_numpy(draw.integers(-32_768, 32_767, (5, 4_000)).astype(np.int16))
    seeds = np.arange(5)
    with start_transform_workers(Transforms(), 1) as change:
        assert change is None
    with start_transform_workers(Transforms(tanh=1.0), 1) as change:
        assert change is not None
        whole, some = change(wave, seeds), change(wave[2:], seeds[2:])
    assert whole.dtype == torch.int16 and whole.shape == wave.shape
    assert torch.equal(whole[2:], some)  # whatever worker it went to
    alone = transform_waves(wave.numpy() / np.float32(32_768), Transforms(tanh=1.0), seeds)
    np.testing.assert_allclose(whole / 32_768, np.clip(alone, -1, 1), atol=0.6 / 32_768)
    assert not torch.equal(whole, wave)


def test_steps_made_ahead_come_in_order_each_once() -> None:
    made: list[int] = []

    def serve(step: int) -> Ready:
        made.append(step)
        return Ready(step, None, 0)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as thread:
        served = _run_ahead(thread, serve, 4, 12)
        assert next(served).step == 4
        assert len(made) <= 1 + PREFETCH_STEPS + 1
        assert [one.step for one in served] == list(range(5, 12))
    assert made == list(range(4, 12))
    assert not list(_run_ahead(ThreadPoolExecutor(1), serve, 3, 3))


def test_an_error_ahead_of_its_time_reaches_the_training() -> None:
    def serve(step: int) -> Ready:
        raise ValueError(f"step {step}")

    with ThreadPoolExecutor(1) as thread, pytest.raises(ValueError, match="step 0"):
        next(_run_ahead(thread, serve, 0, 10))


def test_numbers_of_a_seed_do_not_repeat_between_steps_ranks_and_pieces() -> None:
    drawn = set()
    for rank in (0, 1):
        for step in (0, 1, 256):
            of = Stepper(small(0.5), CONFIG, 3, Ranks(rank), pytest.fail)
            for piece in (0, 1):
                drawn.add(of.embed_chunk(torch.ones(2, 1, 4, 5), step, piece).detach().numpy().tobytes())
    assert len(drawn) == 12
    assert np.isfinite(float(stepper(drop=0.5).backpropagate(features(), 2**40)))


def test_batch_normalisation_on_cpus_is_said_to_stay_apart() -> None:
    told: list[str] = []
    normed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert _sync_batch_norm(normed, Ranks(0, 2), told.append) is normed and "own part of the batch" in told[0]
    assert _sync_batch_norm(normed, ALONE, pytest.fail) is normed
    assert isinstance(_sync_batch_norm(small(), Ranks(0, 2), pytest.fail), Small)
