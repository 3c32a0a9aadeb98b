"""Secure aggregation of a rehearsed round, by the code of silos and aggregator.

Every message of a setup and a slot passes among made-up parties; nothing is lost.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.messages import read_encrypted
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.frame import HEADER_BYTES
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.journal import Journal
from crypto.secagg.parts import whole
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload
from crypto.signatures import SIGNATURE_BYTES
from protocol.packing import layouts
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from simulation.encryption import lent_workers

Words = npt.NDArray[np.uint64]

ROUND, SETUP, SLOT = 1, 1, 0
PLACE = (SLOT, ROUND, hashlib.sha256(b"rehearsed model").digest())


@dataclass(frozen=True)
class Parties:
    """The made-up keys of a cohort."""

    aggregator: IdentityKey
    silos: tuple[IdentityKey, ...]

    @classmethod
    def of(cls, num_silos: int) -> "Parties":
        """Return fresh keys."""
        keys = tuple(IdentityKey.generate() for _ in range(num_silos))
        return cls(IdentityKey.generate(), keys)

    def plan(self, draft: PlanDraft) -> RunPlan:
        """Return the plan of a draft among these parties.

        Raises:
            PlanRejected: so few or so many silos cannot carry it out.
        """
        silos = [
            SiloParty(name=f"silo-{index + 1}", identity_key=key.public.hex())
            for index, key in enumerate(self.silos)
        ]
        return make_plan(draft, self.aggregator.public, silos)


def hidden_sum(
    plan: RunPlan, parties: Parties, updates: Sequence[Words]
) -> tuple[list[Words], Words]:
    """Carry out secure aggregation, by masks or by encryption as the plan says.

    Guarantees: the keys, shares, masks and ciphertexts are those of the real protocol,
    with every message of a setup and a slot.

    Args:
        updates: each silo's packed update, uint64 ``[w]``.

    Returns:
        What the aggregator holds of each silo: masked words ``[w]``, or the bytes of
        its ciphertexts as words; and the sum, ``[w]``.

    Raises:
        EncryptionFailed: TenSEAL is not installed, or a process of it crashed.
    """
    if not plan.protection.is_encrypted:
        return _masked_sum(plan, parties, updates)
    with lent_workers() as workers:
        return _encrypted_sum(plan, parties, updates, workers)


def _masked_sum(
    plan: RunPlan, parties: Parties, updates: Sequence[Words]
) -> tuple[list[Words], Words]:
    """Return each masked vector, and the sum."""
    config, run, roster = plan.secagg_config(), plan.run, plan.roster
    aggregator = AggregatorSide(config, roster, parties.aggregator, run, SETUP)
    public = parties.aggregator.public
    silos = [
        SiloSide(config, roster, public, key, index, run, SETUP, _journal(index))
        for index, key in enumerate(parties.silos)
    ]
    _set_up(aggregator, silos)
    slot = aggregator.open_slot(*PLACE, whole(updates[0].size, range(len(silos))))
    for side in silos:
        slot.add_ready(side.ready(*PLACE))
    active, masked = slot.active(), []
    for side, words in zip(silos, updates, strict=True):
        upload = Upload.of(words)
        slot.add_masked(side.mask(active, upload))
        masked.append(upload.words.copy())
    survivors = slot.survivors()
    answer = survivors
    if not plan.skips_confirm:
        for side in silos:
            slot.add_confirm(side.confirm(survivors))
        answer = slot.confirms()
    for side in silos:
        slot.add_reveal(side.reveal(answer))
    return masked, slot.unmask()


def _encrypted_sum(
    plan: RunPlan, parties: Parties, updates: Sequence[Words], workers: Workers
) -> tuple[list[Words], Words]:
    """Return each silo's ciphertexts as words, and the sum that silos decrypted."""
    config, run, roster = plan.secagg_config(), plan.run, plan.roster
    public, layouts_of = parties.aggregator.public, partial(layouts, plan)
    aggregator = BfvAggregatorSide(
        config,
        roster,
        parties.aggregator,
        run,
        SETUP,
        workers=workers,
        layouts_of=layouts_of,
    )
    silos = [
        BfvSiloSide(
            config,
            roster,
            public,
            key,
            index,
            run,
            SETUP,
            _journal(index),
            workers=workers,
            layouts_of=layouts_of,
        )
        for index, key in enumerate(parties.silos)
    ]
    _set_up(aggregator, silos)
    slot = aggregator.open_slot(*PLACE, whole(updates[0].size, range(len(silos))))
    for side in silos:
        slot.add_ready(side.ready(*PLACE))
    active, held = slot.active(), []
    for side, words in zip(silos, updates, strict=True):
        frame = side.encrypt(active, words)
        slot.add_encrypted(frame)
        held.append(ciphertext_words(frame, slot.num_ciphertexts))
    survivors = slot.survivors()
    for side in silos:
        slot.add_confirm(side.confirm(survivors))
    request = slot.decrypt_request()
    for side in silos[: slot.num_witnesses]:
        slot.add_decrypted(side.decrypt(request))
    return held, slot.decrypted_sum()


def ciphertext_words(frame: memoryview, num_ciphertexts: int) -> Words:
    """Return the ciphertexts of one ENCRYPTED frame, read as words.

    Returns:
        uint64 ``[3848 c]``, a copy: of each ciphertext the packed residues of its first
        polynomial, then the seed of its second one.

    Raises:
        MalformedMessage: another number of ciphertexts.
    """
    body = frame[HEADER_BYTES:-SIGNATURE_BYTES]
    _, ciphertexts = read_encrypted(body, num_ciphertexts)
    return np.frombuffer(ciphertexts, "<u8").astype(np.uint64)


def _set_up(
    aggregator: AggregatorSide | BfvAggregatorSide,
    silos: Sequence[SiloSide | BfvSiloSide],
) -> None:
    """Carry out the setup: every silo is a member."""
    for side in silos:
        aggregator.add_advertisement(side.advertise())
    public_keys = aggregator.keys()
    for side in silos:
        aggregator.add_shares(side.share(public_keys))
    for index, side in enumerate(silos):
        side.receive_shares(aggregator.envelopes(index))


def _journal(index: int) -> Journal:
    """Return a silo's journal, which ends with the rehearsal."""
    return Journal(None, b"rehearsal %d" % index)
