"""The losses against their equations written out as loops, and by hand."""

import math
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from bench.settings import TrainConfig
from bench.train.losses import (
    Loss,
    build_loss,
    info_nce,
    multi_positive,
    nafp,
    nt_xent,
    semi_hard_triplet,
    triplet,
)

NAMES = get_args(get_type_hints(TrainConfig)["loss"])
ON_GROUPS = ("triplet", "semi-hard-triplet", "multi-positive")
GROUPS = {"apart": [0, 1, 2, 3, 4, 5], "shared": [7, 3, 7, 5, 3, 7], "one": [2, 2, 2, 2, 2, 2]}
Groups = Literal["apart", "shared", "one"]


def named(name: str, temperature: float = 0.2, margin: float = 0.4) -> Loss:
    return build_loss(TrainConfig(loss=name, temperature=temperature, margin=margin))  # type: ignore[arg-type]


def views(pairs: int = 6, dim: int = 5, seed: int = 0, spread: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return anchors and positives near them, so that hardest, semi-hard and easy negatives all occur."""
    draw = torch.Generator().manual_seed(seed)
    anchor = functional.normalize(torch.randn(pairs, dim, generator=draw, dtype=torch.float64), dim=1)
    noise = torch.randn(pairs, dim, generator=draw, dtype=torch.float64)
    return anchor, functional.normalize(anchor + spread * noise, dim=1)


def rows(anchor: torch.Tensor, positive: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    one, two = anchor.double().numpy(), positive.double().numpy()
    return one, two, np.concatenate([one, two])


# The equations, one term at a time


def slow_cross_entropy(own: float, others: list[float], temperature: float) -> float:
    return -math.log(math.exp(own / temperature) / sum(math.exp(s / temperature) for s in others))


def slow_nafp(anchor: torch.Tensor, positive: torch.Tensor, temperature: float) -> float:
    """Return the cross entropy of the original side plus that of the replica side."""
    originals, replicas, _ = rows(anchor, positive)
    pairs, total = len(originals), 0.0
    for ours, theirs in ((originals, replicas), (replicas, originals)):
        side = 0.0
        for i in range(pairs):
            candidates = [ours[i] @ theirs[k] for k in range(pairs)] + [
                ours[i] @ ours[k] for k in range(pairs) if k != i
            ]
            side += slow_cross_entropy(ours[i] @ theirs[i], candidates, temperature)
        total += side / pairs
    return total


def slow_info_nce(anchor: torch.Tensor, positive: torch.Tensor, temperature: float) -> float:
    one, two, _ = rows(anchor, positive)
    terms = [slow_cross_entropy(one[i] @ two[i], [one[i] @ v for v in two], temperature) for i in range(len(one))]
    return sum(terms) / len(terms)


def slow_multi_positive(anchor: torch.Tensor, positive: torch.Tensor, group: list[int], temperature: float) -> float:
    _, _, both = rows(anchor, positive)
    labels, total = group + group, 0.0
    for i, vector in enumerate(both):
        others = [k for k in range(len(both)) if k != i]
        scores = [vector @ both[k] for k in others]
        terms = [slow_cross_entropy(vector @ both[k], scores, temperature) for k in others if labels[k] == labels[i]]
        total += sum(terms) / len(terms)
    return total / len(both)


def slow_triplet(anchor: torch.Tensor, positive: torch.Tensor, group: list[int], margin: float) -> float:
    one, two, both = rows(anchor, positive)
    labels, total = group + group, 0.0
    for i, vector in enumerate(one):
        hardest = max(float(np.linalg.norm(vector - two[k])) for k in range(len(two)) if group[k] == group[i])
        terms = [
            max(0.0, hardest - float(np.linalg.norm(vector - both[k])) + margin)
            for k in range(len(both))
            if labels[k] != group[i]
        ]
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(one)


def slow_semi_hard(anchor: torch.Tensor, positive: torch.Tensor, group: list[int], margin: float) -> float:
    _, _, both = rows(anchor, positive)
    labels, total = group + group, 0.0
    for i, vector in enumerate(both):
        far = {k: float(((vector - both[k]) ** 2).sum()) for k in range(len(both)) if k != i}
        hardest = max(d for k, d in far.items() if labels[k] == labels[i])
        negatives = [d for k, d in far.items() if labels[k] != labels[i]]
        between = [d for d in negatives if hardest < d < hardest + margin]
        if negatives:
            total += max(0.0, hardest - (min(between) if between else min(negatives)) + margin)
    return total / len(both)


SLOW = {"triplet": slow_triplet, "semi-hard-triplet": slow_semi_hard, "multi-positive": slow_multi_positive}


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_cross_entropies_are_their_equations(pairs: int, temperature: float) -> None:
    anchor, positive = views(pairs, seed=pairs)
    wanted = slow_nafp(anchor, positive, temperature)
    assert float(nafp(anchor, positive, temperature)) == pytest.approx(wanted, rel=1e-9)
    assert float(nt_xent(anchor, positive, temperature)) == pytest.approx(wanted / 2, rel=1e-9)
    one_way = slow_info_nce(anchor, positive, temperature)
    assert float(info_nce(anchor, positive, temperature)) == pytest.approx(one_way, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("parameter", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", ON_GROUPS)
def test_losses_on_groups_are_their_equations(name: str, groups: Groups, parameter: float) -> None:
    group = GROUPS[groups]
    for seed in range(4):
        anchor, positive = views(seed=seed, spread=0.3 + 0.3 * seed)
        found = named(name, parameter, parameter)(anchor, positive, torch.tensor(group))
        assert float(found) == pytest.approx(SLOW[name](anchor, positive, group, parameter), rel=1e-9, abs=1e-12)


def test_cases_of_mining_all_occur_in_these_views() -> None:
    # Without this the test above might never meet a view that has no semi-hard negative.
    kinds = set()
    for seed in range(4):
        _, _, both = rows(*views(seed=seed, spread=0.3 + 0.3 * seed))
        for i in range(12):
            own = ((both[i] - both[(i + 6) % 12]) ** 2).sum()
            others = [((both[i] - both[k]) ** 2).sum() for k in range(12) if k % 6 != i % 6]
            between = any(own < d < own + 0.4 for d in others)
            kinds.add((between, min(others) < own))
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


# By hand


def plane(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_one_way_loss_of_two_pairs_by_hand() -> None:
    # Each anchor sees its positive at 1 and the other at 0; the other anchor is no candidate.
    axes = torch.eye(2)
    assert float(info_nce(axes, axes, 1.0)) == pytest.approx(math.log(1 + 1 / math.e))
    assert float(info_nce(axes, axes.flip(0), 0.5)) == pytest.approx(math.log(1 + math.e**2))


def test_one_way_loss_has_a_direction() -> None:
    anchor, positive = plane(0, 40), plane(10, 90)
    assert abs(float(info_nce(anchor, positive, 0.2) - info_nce(positive, anchor, 0.2))) > 0.01


def test_triplet_by_hand() -> None:
    # Anchors at 0 and 180 degrees, positives 60 degrees on. A chord is 2 sin(angle / 2).
    # Anchor 0: positive 1; negatives are the other anchor at 2 and its positive, 120 degrees away, at sqrt 3.
    anchor, positive = plane(0, 180), plane(60, 240)
    own = (max(0, 1 - 2 + 1.1) + max(0, 1 - math.sqrt(3) + 1.1)) / 2
    assert own == pytest.approx(0.2339746)
    found = triplet(anchor, positive, torch.arange(2), 1.1)
    assert float(found) == pytest.approx(own)


def test_triplet_takes_the_hardest_positive_of_the_group() -> None:
    # Both pairs of a group: positives at 60 and 180 degrees, the hardest at 2. The one negative pair is at 90.
    anchor, positive = plane(0, 0, 90), plane(60, 180, 90)
    first = 2 - math.sqrt(2) + 0.4
    # The third anchor has its positive at 0 and four negatives: at 90, 90, 30 and 90 degrees.
    third = max(0.0, 0.001 - 2 * math.sin(math.radians(15)) + 0.4) / 4
    found = triplet(anchor, positive, torch.tensor([0, 0, 1]), 0.4)
    assert float(found) == pytest.approx((2 * first + third) / 3, abs=1e-9)


def test_semi_hard_triplet_by_hand() -> None:
    # Squared chords: 60 degrees 1, 90 degrees 2, 120 degrees 3, 150 degrees 2 + sqrt 3, 30 degrees 2 - sqrt 3.
    # Views at 0, 90 and their positives at 60, 240: the partners are 60 and 150 degrees apart.
    anchor, positive = plane(0, 90), plane(60, 240)
    wide = 2 + math.sqrt(3)
    # 0: own 1, negatives 2 (90) and 3 (240); semi-hard within 1.5 is 2. 60: own 1, negatives 2 - sqrt 3 and 4:
    # none between 1 and 2.5, so the nearest. 90: own 2 + sqrt 3, negatives 2, 2 - sqrt 3: the nearest.
    # 240: own 2 + sqrt 3, negatives 3 (0) and 4 (60): 4 lies between.
    near = 2 - math.sqrt(3)
    terms = [1 - 2 + 1.5, 1 - near + 1.5, wide - near + 1.5, wide - 4 + 1.5]
    found = semi_hard_triplet(anchor, positive, torch.arange(2), 1.5)
    assert float(found) == pytest.approx(sum(terms) / 4)


def test_easy_negatives_cost_nothing() -> None:
    anchor = positive = plane(0, 180)
    group = torch.arange(2)
    assert float(triplet(anchor, positive, group, 1.9)) == 0
    assert float(semi_hard_triplet(anchor, positive, group, 3.9)) == 0
    assert float(semi_hard_triplet(anchor, positive, group, 4.5)) == pytest.approx(0.5)


def test_multi_positive_by_hand() -> None:
    # Four equal vectors of one group: each has three positives among three candidates, all at 1.
    same = plane(0, 0)
    assert float(multi_positive(same, same, torch.tensor([3, 3]), 0.1)) == pytest.approx(math.log(3))
    # A group of two pairs on one axis and one pair on the other: positives at 1, the two others at 0.
    anchor = plane(0, 0, 90)
    many, alone = math.log(3 + 2 / math.e), math.log(1 + 4 / math.e)
    found = multi_positive(anchor, anchor, torch.tensor([0, 0, 1]), 1.0)
    assert float(found) == pytest.approx((4 * many + 2 * alone) / 6)


# What holds between them


def test_nafp_is_twice_nt_xent_and_so_is_its_gradient() -> None:
    gradients = []
    for loss in (nt_xent, nafp):
        anchor, positive = (v.float().requires_grad_() for v in views())
        value = loss(anchor, positive, 0.05)
        value.backward()
        gradients.append((value.detach(), anchor.grad, positive.grad))
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(2 * one, two)


def test_one_positive_each_makes_multi_positive_nt_xent() -> None:
    anchor, positive = views()
    found = multi_positive(anchor, positive, torch.arange(6), 0.05)
    assert float(found) == pytest.approx(float(nt_xent(anchor, positive, 0.05)), rel=1e-12)


def test_names_of_groups_do_not_matter_and_their_sharing_does() -> None:
    anchor, positive = views()
    for name in ON_GROUPS:
        loss = named(name)
        shared = loss(anchor, positive, torch.tensor(GROUPS["shared"]))
        renamed = loss(anchor, positive, torch.tensor([10, -4, 10, 0, -4, 10]))
        apart = loss(anchor, positive, torch.arange(6))
        assert torch.equal(shared, renamed) and abs(float(shared - apart)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_order_of_pairs_does_not_matter(name: str) -> None:
    anchor, positive = views()
    group = torch.tensor(GROUPS["shared"])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    found = named(name)(anchor[order], positive[order], group[order])
    assert float(found) == pytest.approx(float(named(name)(anchor, positive, group)), rel=1e-12)


# As a part of training


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes(name: str, groups: Groups) -> None:
    group, loss = torch.tensor(GROUPS[groups]), named(name)
    anchor, positive = (v.requires_grad_() for v in views(dim=3, seed=2))
    assert torch.autograd.gradcheck(lambda a, p: loss(a, p, group), (anchor, positive))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_equal_vectors_give_finite_gradients(name: str, groups: Groups) -> None:
    anchor, positive = (torch.eye(6)[[0, 0, 0, 1, 1, 2]].requires_grad_() for _ in range(2))
    loss = named(name, 0.05)(anchor, positive, torch.tensor(GROUPS[groups]))
    loss.backward()
    assert loss.isfinite() and anchor.grad.isfinite().all() and positive.grad.isfinite().all()
    assert float(anchor.grad.abs().max()) < 100


@pytest.mark.parametrize("name", NAMES)
def test_lower_precision_around_it_does_not_reach_the_loss(name: str) -> None:
    anchor, positive = (v.float() for v in views())
    group, loss = torch.tensor(GROUPS["shared"]), named(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(anchor, positive, group)
        assert (anchor @ positive.T).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(anchor, positive, group))
    halved = loss(anchor.bfloat16(), positive.bfloat16(), group)
    assert torch.equal(halved, loss(anchor.bfloat16().float(), positive.bfloat16().float(), group))


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_one_graph_whatever_the_groups(name: str) -> None:
    # A value fetched from the device or a shape that hangs on values would break the graph, which is an error here.
    loss = named(name)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    anchor, positive = (v.float() for v in views())
    for group in GROUPS.values():
        numbers = torch.tensor(group)
        assert torch.equal(compiled(anchor, positive, numbers), loss(anchor, positive, numbers))


@pytest.mark.parametrize("name", NAMES)
def test_descent_brings_pairs_together(name: str) -> None:
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(2, 8, 4))
    optimiser = torch.optim.Adam([weights], lr=0.05)
    loss, group = named(name, 0.1, 0.5), torch.arange(8)
    for _ in range(150):
        anchor, positive = functional.normalize(weights, dim=2)
        optimiser.zero_grad()
        loss(anchor, positive, group).backward()
        optimiser.step()
    nearest = (anchor @ positive.T).argmax(dim=1)
    assert torch.equal(nearest, group)
