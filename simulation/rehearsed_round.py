"""One round of a plan with public images, by the code that silos and aggregator run.

Training, update, masks or encryption, sum and mean are those of ``silo``, ``crypto``
and ``aggregator``. Only keys and images are made up, and two secrets are not secret:
the rounding is to the nearest level, and what DP-SGD draws follows from a debugging
seed, so that a rehearsal can be repeated. Masks, and what encryption draws, come from
the operating system as ever.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from aggregator.averaging import mean_update
from crypto.prg import SecretRandom
from crypto.ring import WORD_BITS, add_into, unpack, words_needed
from diffusion.model import make_model
from diffusion.parameters import (
    Vector,
    difference,
    load_parameters,
    parameters_of,
    selected_layout,
)
from diffusion.schedule import make_schedule
from privacy.rotation import rotate_back
from protocol.grids import first_numbers, round_grid, sign_seed
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.noisy_update import noisy_words
from silo.one_step import gradient_sum
from silo.private_training import train_privately
from silo.proximal import proximal_term
from silo.randomness import PrivateRandom
from silo.training import Progress, Tensors, TrainingState, train
from silo.units import PrivacyUnits, units_of
from silo.update import make_update
from simulation.rehearsed_sum import ROUND, Parties, hidden_sum

Words = npt.NDArray[np.uint64]

CPU = torch.device("cpu")


class RehearsedRound:
    """One round: what each silo sends, in the clear and hidden, and the mean.

    Args:
        start: the global parameters of the round.
        shares: each silo's images.
        seed: of what DP-SGD and the noise in a sum draw.

    Raises:
        PlanRejected: the parties cannot carry out the draft.
    """

    def __init__(
        self,
        draft: PlanDraft,
        parties: Parties,
        start: Tensors,
        shares: Sequence[ImageSet],
        seed: int,
    ) -> None:
        self.plan, self._parties = parties.plan(draft), parties
        self._start, self.shares, self._seed = start, shares, seed
        self.model = make_model(draft.model, 0)
        load_parameters(self.model, start)
        update = self.plan.update
        self.layout = selected_layout(self.model, update.selection, update.parts)
        self.schedule = make_schedule(draft.schedule)
        numbers = first_numbers(self.plan, self.layout.segments)
        self.grid = round_grid(self.plan, self.layout.segments, ROUND, numbers)

    @property
    def everyone(self) -> range:
        """The indices of the silos."""
        return range(len(self.shares))

    def random(self, silo: int) -> PrivateRandom:
        """Return what a silo's mechanism draws from, from its beginning."""
        return PrivateRandom(insecure_seed=self._seed_of("mechanism", silo))

    def units(self, silo: int) -> PrivacyUnits:
        """Return a silo's privacy units: its images."""
        return units_of(self.shares[silo], "example")

    def words(self, silo: int) -> Words:
        """Let a silo train, and return what it would send in the clear, packed."""
        if self.plan.privacy.is_in_sum:
            return self._noisy_words(silo)
        return make_update(
            self.plan,
            self.layout,
            self.grid,
            silo=silo,
            round_number=ROUND,
            field_bits=self.plan.field_bits(ROUND),
            num_examples=len(self.shares[silo]),
            local=self._trained(silo),
            global_=self._start,
        )

    def mean(self, words: Words, silos: Sequence[int]) -> Vector:
        """Return the mean update, float32 ``[d]``, of a sum over these silos."""
        grid, survivors = self.grid.grid, tuple(silos)
        return mean_update(self.plan, self.layout, grid, words, survivors, ROUND)

    def plain_sum(self, updates: Sequence[Words]) -> Words:
        """Return the sum of packed updates, as it is in the clear."""
        total = np.zeros_like(updates[0])
        for words in updates:
            add_into(total, words)
        return total

    def hidden_sum(self, updates: Sequence[Words]) -> tuple[list[Words], Words]:
        """Carry out secure aggregation; return what is held of each silo, and the sum.

        Raises:
            EncryptionFailed: the plan encrypts, and this machine cannot.
        """
        return hidden_sum(self.plan, self._parties, updates)

    def as_if_plain(self, words: Words) -> Vector:
        """Return hidden words read as if they were an update, float32 ``[d]``.

        Ciphertexts are longer or shorter than the fields of an update: what is too much
        is left out, and where there are none the update is zero.
        """
        grid, bits = self.grid.grid, self.plan.field_bits(ROUND)
        reach = min(grid.length, words.size * (WORD_BITS // bits))
        fields = unpack(words[: words_needed(reach, bits)], bits, reach)
        levels = np.zeros(grid.length)
        levels[:reach] = fields.astype(np.float64) - grid.max_level
        vector = np.empty(grid.length, np.float32)
        for part, segment in grid.parts(0, grid.length):
            vector[part] = levels[part] * grid.steps[segment]
        if self.plan.update.rotation:
            rotate_back(vector, SecretRandom(sign_seed(self.plan, ROUND)))
        return vector[: self.layout.size]

    def _trained(self, silo: int) -> Tensors:
        """Return a silo's parameters after its training."""
        model = self.model
        load_parameters(model, self._start)
        images, state = self.shares[silo], TrainingState()
        if self.plan.privacy.mechanism == "dp-sgd":
            train_privately(
                model,
                images,
                self.units(silo),
                self.schedule,
                self.plan,
                state,
                round_number=ROUND,
                device=CPU,
                random=self.random(silo),
                observe=_nobody,
                keep=_nobody,
                checkpoint_steps=1 << 30,
            )
        else:
            mu = self.plan.training.proximal_mu
            train(
                model,
                images,
                self.schedule,
                self.plan,
                state,
                silo=silo,
                round_number=ROUND,
                device=CPU,
                observe=_nobody,
                proximal=proximal_term(model, self.layout.names, mu),
            )
        local = parameters_of(model)
        load_parameters(model, self._start)
        return local

    def _noisy_words(self, silo: int) -> Words:
        """Return a silo's noisy fields: its gradients, or with "silo" its update."""
        if self.plan.privacy.mechanism == "silo":
            vector = difference(self._trained(silo), self._start, self.layout)
        else:
            vector = gradient_sum(
                self.model,
                self.shares[silo],
                self.units(silo),
                self.schedule,
                self.plan,
                self.layout,
                round_number=ROUND,
                device=CPU,
                random=self.random(silo),
                observe=_nobody,
            )
        dither, noise = (
            SecretRandom(hashlib.sha256(b"%d" % self._seed_of(purpose, silo)).digest())
            for purpose in ("dither", "noise")
        )
        return noisy_words(self.plan, self.grid, vector, dither=dither, noise=noise)

    def _seed_of(self, purpose: str, silo: int) -> int:
        """Return a debugging seed of one purpose and silo."""
        draft = replace(self.plan, seed=self._seed)
        return draft.seed_for(f"rehearsal-{purpose}", silo)


def _nobody(_: Progress | object) -> None:
    """Show nobody how the training goes."""
