"""What an aggregator would hold of one round of a plan, and what it could make of it.

On public images, with the code of the parties (``simulation.rehearsed_round``), each of
the things that an aggregator may hold is attacked by gradient inversion
(``simulation.inversion``): in the worst case, one example and one step in every silo,
and with as many as the plan has.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.images import grid_png
from diffusion.initial import first_model
from diffusion.parameters import Vector, parameters_of
from diffusion.schedule import make_schedule
from protocol.mechanism import steps_per_round
from protocol.plan import PlanDraft, RunPlan
from protocol.rehearsal import FORMAT, Rehearsal, Setting, Tested, Uniformity, View
from protocol.rehearsal import Held as HeldName
from protocol.version import SOFTWARE
from silo.data import ImageSet
from silo.training import Tensors, TrainingState, num_local_steps, train
from simulation.encryption import check_encryption
from simulation.inversion import Clues, Held, Rule, invert, likely_timesteps
from simulation.known_draws import Sought, clues_of, images_of, sought_of
from simulation.likeness import best_match, psnr
from simulation.rehearsal_settings import (
    MAX_SILOS,
    RehearsalSettings,
    bare,
    cut_short,
    starting,
    warnings_about,
    with_mechanism,
    with_noise_in_sum,
    worst_case,
)
from simulation.rehearsed_round import CPU, RehearsedRound
from simulation.rehearsed_sum import Parties
from simulation.sources import subset
from simulation.uniformity import uniformity

HELD_BACK = 0.2
"""Share of the images that nobody trains on: their mean is the guess."""

PICTURE_PIXELS = 48

ATTACK = (
    "gradient matching (cosine, total variation), {iterations} steps, {restarts} "
    "attempts in the worst case, else one; of several images the best permutation"
)

OPEN = "timesteps and noise, as they follow from the plan's seed"
TOLD = "timesteps and noise, although they are secret"
READ = "no draws: the timestep is read off the update, the noise looked for"

Observe = Callable[[View], None]


@dataclass(frozen=True)
class Hiding:
    """The words for how updates are hidden: their view, and the tests of both forms."""

    view: HeldName
    tested: tuple[Tested, Tested]
    about_plain: str
    about_hidden: str


MASKS = Hiding(
    view="masked update",
    tested=("masked", "not masked"),
    about_plain="one silo's update, as it leaves without masks",
    about_hidden=(
        "one silo's update as secure aggregation sends it, taken for an update"
    ),
)
ENCRYPTION = Hiding(
    view="encrypted update",
    tested=("encrypted", "not encrypted"),
    about_plain="one silo's update, as it leaves without encryption",
    about_hidden=(
        "one silo's ciphertexts, as they leave, taken for an update as far as they "
        "reach"
    ),
)


class Rehearsing:
    """A rehearsal of one plan on public images.

    Args:
        plan: a draft, or a finished plan, whose parties are replaced by made-up ones.
        images: public ones, in a random order.
        words: what they are.
        num_silos: of the plan; at most ``MAX_SILOS`` are rehearsed, because fewer
            silos hide less.
        initial: the file of the parameters that the plan begins with, if it names one.

    Raises:
        SettingsRejected, PlanRejected: the plan cannot be rehearsed.
        EncryptionFailed: the plan encrypts, and this machine cannot.
        DiffusionError: the file of the first parameters is missing or another one.
    """

    def __init__(
        self,
        plan: PlanDraft,
        images: ImageSet,
        words: str,
        settings: RehearsalSettings,
        num_silos: int,
        initial: Path | None = None,
    ) -> None:
        self._plan, self._words, self._settings = plan, words, settings
        in_sum = plan.privacy.is_in_sum
        self._num_silos = num_silos if in_sum else min(num_silos, MAX_SILOS)
        self._bare = bare(plan, self._num_silos)
        self._hiding = ENCRYPTION if plan.protection.is_encrypted else MASKS
        if plan.protection.is_encrypted:
            check_encryption()
        held_back = max(1, int(HELD_BACK * len(images)))
        order = np.arange(len(images))
        self._guess = images.batch(order[:held_back]).mean(dim=0)
        self._shares = [
            subset(images, share)
            for share in np.array_split(order[held_back:], self._num_silos)
        ]
        self._parties = Parties.of(self._num_silos)
        self._start = self._first_parameters(subset(images, order[held_back:]), initial)
        self._images = images

    def run(self, observe: Observe) -> Rehearsal:
        """Carry out the round, attack what is held, and say what came of it.

        Args:
            observe: is told of every view as it is made.
        """
        views: list[View] = []

        def keep(view: View) -> None:
            views.append(view)
            observe(view)

        tests, warnings = self._worst_case(keep)
        self._own_setting(keep)
        settings = self._settings
        digest = self._plan.digest.hex() if isinstance(self._plan, RunPlan) else ""
        return Rehearsal(
            format=FORMAT,
            plan=self._plan.name,
            digest=digest,
            software=SOFTWARE,
            images=self._words,
            attack=ATTACK.format(
                restarts=settings.restarts, iterations=settings.iterations
            ),
            seed=settings.seed,
            views=tuple(views),
            uniformity=tests,
            num_silos=self._num_silos,
            is_quick=settings.is_quick,
            warnings=warnings,
        )

    def _first_parameters(self, images: ImageSet, initial: Path | None) -> Tensors:
        """Return the global parameters of the round: trained a little, in public."""
        plan, steps = self._plan, self._settings.start_steps
        seed = plan.seed_for("model")
        model = first_model(plan.model, seed, plan.initial.sha256, initial)
        if steps:
            train(
                model,
                images,
                make_schedule(plan.schedule),
                starting(self._bare, steps),
                TrainingState(),
                silo=0,
                round_number=1,
                device=CPU,
                observe=lambda _: None,
            )
        return parameters_of(model)

    def _round(self, draft: PlanDraft, shares: list[ImageSet]) -> RehearsedRound:
        """Return one round of a draft."""
        seed = self._settings.seed
        return RehearsedRound(draft, self._parties, self._start, shares, seed)

    def _worst_case(
        self, keep: Observe
    ) -> tuple[tuple[Uniformity, ...], tuple[str, ...]]:
        """Make the views of one example and one step; return tests and warnings."""
        alone = [subset(share, np.zeros(1, np.int64)) for share in self._shares]
        draft = worst_case(self._bare)
        part = self._round(draft, alone)
        updates = [part.words(silo) for silo in part.everyone]
        hidden, total = part.hidden_sum(updates)
        sought = [sought_of(part, silo, 1) for silo in part.everyone]
        plain = [part.mean(words, [silo]) for silo, words in enumerate(updates)]
        taken = [part.as_if_plain(words) for words in hidden]
        look = self._looking(part, "worst case", keep)
        about = self._hiding.about_plain
        look("plain update", plain, sought, OPEN, about)
        about = "the same, where the draws are not known"
        look("plain update", plain, sought, READ, about)
        about = self._hiding.about_hidden
        look(self._hiding.view, taken, sought, OPEN, about)
        mean = part.mean(total, part.everyone)
        look("mean", [mean], sought, OPEN, f"the mean over {self._num_silos} silos")
        if not self._plan.privacy.is_in_sum:
            noisy, words = with_mechanism(draft, self._plan, 1)
            self._look_at_mean(self._round(noisy, alone), "worst case", words, keep)
        is_hidden, is_plain = self._hiding.tested
        tests = (*uniformity(hidden[0], is_hidden), *uniformity(updates[0], is_plain))
        return tests, warnings_about(self._images, images_of(sought).numpy())

    def _own_setting(self, keep: Observe) -> None:
        """Make the views of as many examples and steps as the plan has."""
        draft = cut_short(self._bare) if self._settings.is_quick else self._bare
        part = self._round(draft, self._shares)
        count = self._settings.num_sought
        updates = [part.words(silo) for silo in part.everyone]
        look = self._looking(part, "the plan's own", keep)
        about = self._hiding.about_plain
        first = part.mean(updates[0], [0])
        look("plain update", [first], [sought_of(part, 0, count)], OPEN, about)
        mean = part.mean(part.plain_sum(updates), part.everyone)
        about = f"the mean over {self._num_silos} silos"
        look("mean", [mean], self._some(part), OPEN, about)
        if self._plan.privacy.is_in_sum:
            noisy = self._round(with_noise_in_sum(self._plan), self._shares)
            words = f'the plan\'s noise in the sum ("{noisy.plan.privacy.mechanism}")'
        else:
            fewest = min(map(len, self._shares))
            private, words = with_mechanism(draft, self._plan, fewest)
            noisy = self._round(private, self._shares)
        self._look_at_mean(noisy, "the plan's own", words, keep)

    def _look_at_mean(
        self, part: RehearsedRound, setting: Setting, words: str, keep: Observe
    ) -> None:
        """Make the view of a mean with a mechanism."""
        total = part.plain_sum([part.words(silo) for silo in part.everyone])
        mean = part.mean(total, part.everyone)
        look = self._looking(part, setting, keep)
        about = f"the mean over {self._num_silos} silos with {words}"
        look("mean under DP", [mean], self._some(part), TOLD, about)

    def _some(self, part: RehearsedRound) -> list[Sought]:
        """Return what is looked for in a mean: a few images of some silos."""
        count = self._settings.num_sought
        silos = list(part.everyone)[:count]
        return [sought_of(part, silo, max(1, count // len(silos))) for silo in silos]

    def _looking(
        self, part: RehearsedRound, setting: Setting, keep: Observe
    ) -> Callable[[HeldName, list[Vector], list[Sought], str, str], None]:
        """Return a function that attacks what is held, and keeps the view."""
        privacy, examples = part.plan.privacy, len(part.shares[0])
        is_private = privacy.is_private and privacy.mechanism != "silo"
        steps = num_local_steps(part.plan, examples)
        steps = steps_per_round(part.plan) if is_private else steps

        def look(
            name: HeldName,
            updates: list[Vector],
            sought: list[Sought],
            known: str,
            about: str,
        ) -> None:
            restarts = self._settings.restarts if examples == 1 else 1
            found, mismatch = self._attacked(part, updates, sought, known, restarts)
            originals = images_of(sought)
            guesses = self._guess.expand_as(originals)
            keep(
                View(
                    name=name,
                    setting=setting,
                    explanation=about,
                    num_examples=examples,
                    num_steps=steps,
                    known=known,
                    mismatch=mismatch,
                    psnr=psnr(found, originals),
                    psnr_guess=psnr(guesses, originals),
                    picture=_picture(originals, found),
                )
            )

        return look

    def _attacked(
        self,
        part: RehearsedRound,
        updates: list[Vector],
        sought: list[Sought],
        known: str,
        restarts: int,
    ) -> tuple[Tensor, float]:
        """Return the images that were found, in the order of those sought.

        Those of one update are put in the order that fits best.
        """
        rule: Rule = "adam"
        if part.plan.privacy.mechanism == "record-distributed":
            rule = "gradient"
        held = Held(
            part.model,
            part.layout,
            part.schedule,
            part.plan.training.loss,
            torch.from_numpy(np.stack(updates)),
            rule,
        )
        originals, clues = images_of(sought), clues_of(sought)
        if known == READ:
            clues = _unknown(held, clues)
        found = invert(
            held,
            clues,
            tuple(originals.shape[1:]),
            seed=self._settings.seed,
            iterations=self._settings.iterations,
            restarts=restarts,
        )
        groups = found.images.flatten(0, 1).chunk(len(updates))
        matched = [
            images[best_match(images, wanted)]
            for images, wanted in zip(
                groups, originals.chunk(len(updates)), strict=True
            )
        ]
        return torch.cat(matched), float(found.mismatch.mean())


def _unknown(held: Held, clues: Clues) -> Clues:
    """Return what an attacker knows who was told nothing of the draws of one example.

    Of several timesteps that an update may show it takes the middle one. Where it
    shows none (the encoder is not federated) it keeps the true one.
    """
    t = clues.t.clone()
    for silo in range(len(t)):
        likely = likely_timesteps(held, silo)
        if likely is not None:
            t[silo] = likely[len(likely) // 2]
    return replace(clues, noise=None, t=t)


def _picture(originals: Tensor, found: Tensor) -> str:
    """Return originals above and reconstructions below, as a PNG in base64."""
    enlarge = max(1, PICTURE_PIXELS // originals.shape[-1])
    images: Sequence[Tensor] = [*originals, *found]
    return base64.b64encode(grid_png(images, len(originals), enlarge)).decode()
