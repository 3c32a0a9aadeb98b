"""One membership attack on one model: tuned on the control, carried out, counted."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.schedule import make_schedule
from privacy.attack_statistics import (
    CONFIDENCE,
    at_false_positive_rate,
    auc,
    auc_interval,
    roc,
)
from protocol.probe_report import AttackResult, Target
from silo.attacks import (
    AttackName,
    Scores,
    Setting,
    make_attack,
    score_images,
    settings,
)
from silo.control import network_of
from silo.data import ImageSet
from silo.memorisation import share

FALSE_POSITIVE_RATES = (0.01, 0.001)

Guarantee: TypeAlias = tuple[float, float]
"""Epsilon and delta; (0, 0) for none."""
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sides:
    """The images that members are drawn from, and those held out."""

    images: ImageSet
    held_out: ImageSet
    with_labels: bool
    device: torch.device


def attack_scores(
    setting: Setting,
    model: Checkpoint,
    sides: Sides,
    members: Indices,
    others: Indices,
    seed: int,
) -> tuple[Scores, Scores]:
    """Return the scores of members and of held-out images.

    Raises:
        ScoresNotFinite: the model gives none.
        DataError: the model has classes and the images no labels.
    """
    size = model.model.image_size
    attack = make_attack(
        setting,
        network_of(model, sides.device),
        make_schedule(model.schedule).to(sides.device),
        seed=seed,
        image_shape=(model.model.channels, size, size),
    )
    pairs = ((sides.images, members), (sides.held_out, others))
    first, second = (
        score_images(
            attack, images, chosen, device=sides.device, with_labels=sides.with_labels
        )
        for images, chosen in pairs
    )
    return first, second


def tune(
    name: AttackName,
    control: Checkpoint,
    sides: Sides,
    members: Indices,
    others: Indices,
    seed: int,
) -> Setting:
    """Return the setting of an attack with the largest AUC on the control.

    Of equal ones it is the first. The target is not asked.
    """
    possible = settings(name, control.schedule.num_timesteps)
    return max(
        possible,
        key=lambda one: auc(*attack_scores(one, control, sides, members, others, seed)),
    )


def attack_model(
    setting: Setting,
    target: Target,
    model: Checkpoint,
    sides: Sides,
    members: Indices,
    others: Indices,
    guarantee: Guarantee,
    seed: int,
) -> AttackResult:
    """Carry out one attack; return its curve and counts, with intervals."""
    inside, outside = attack_scores(setting, model, sides, members, others, seed)
    counts = [at_false_positive_rate(inside, outside, r) for r in FALSE_POSITIVE_RATES]
    area = auc(inside, outside)
    interval = auc_interval(inside, outside, np.random.default_rng([seed, 3]))
    roc_fpr, roc_tpr = roc(inside, outside)
    return AttackResult(
        attack=setting.attack,
        target=target,
        settings=setting.in_words(),
        num_members=len(inside),
        num_held_out=len(outside),
        confidence=CONFIDENCE,
        auc=area,
        auc_low=min(area, interval.low),
        auc_high=max(area, interval.high),
        at_fpr=FALSE_POSITIVE_RATES,
        tpr_at=tuple(share(one.true_positives, len(inside)) for one in counts),
        false_positives_at=tuple(one.false_positives for one in counts),
        roc_fpr=roc_fpr,
        roc_tpr=roc_tpr,
        ceiling_epsilon=guarantee[0],
        ceiling_delta=guarantee[1],
    )
