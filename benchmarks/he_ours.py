"""The same round under exact BFV, with the real messages and no silo lost.

Everything between an update's integers and the mean's is done and clocked: packing,
slots and tags, encryption in child processes, signatures and digests, reading and
adding at the aggregator, confirmations, the checks of noise budget and tags,
decryption by one silo. Others that the aggregator asks decrypt at the same time.
"""

import numpy as np

from benchmarks.he_cost import STAGES, RoundCost, Seconds
from benchmarks.secagg_federation import ROUND, RUN
from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.aggregator_slot import BfvSlot
from crypto.bfv.digits import Digits, Layout
from crypto.bfv.parameters import POLY_DEGREE
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.keys import IdentityKey
from crypto.prg import num_processors
from crypto.ring import field_bits_for, pack, unpack, words_needed
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.parts import Parts, whole


class EncryptedFederation:
    """Silos and an aggregator in one process, up to ACTIVE; they share the workers."""

    def __init__(self, num_silos: int, layout: Layout, workers: Workers) -> None:
        def layouts_of(round_number: int, parts: Parts) -> tuple[Layout, ...]:
            return (layout,) * len(parts)

        config = SecAggConfig(
            num_silos=num_silos, threshold=2 * num_silos // 3 + 1, protection="bfv"
        )
        identities = [IdentityKey.generate() for _ in range(num_silos)]
        aggregator = IdentityKey.generate()
        roster = [identity.public for identity in identities]
        self.silos = [
            BfvSiloSide(
                config,
                roster,
                aggregator.public,
                identity,
                index,
                RUN,
                1,
                Journal(None, b"silo %d" % index),
                workers=workers,
                layouts_of=layouts_of,
            )
            for index, identity in enumerate(identities)
        ]
        self.aggregator = BfvAggregatorSide(
            config, roster, aggregator, RUN, 1, workers=workers, layouts_of=layouts_of
        )
        self.num_words = sum(digits.num_words for digits in layout)

    def activate(self) -> tuple[BfvSlot, bytes]:
        """Hand the key out and open a slot; return it, and ACTIVE for all silos."""
        for silo in self.silos:
            self.aggregator.add_advertisement(silo.advertise())
        keys = self.aggregator.keys()
        for silo in self.silos:
            self.aggregator.add_shares(silo.share(keys))
        self.aggregator.close_members()
        for index, silo in enumerate(self.silos):
            silo.receive_shares(self.aggregator.envelopes(index))
        parts = whole(self.num_words, range(len(self.silos)))
        slot = self.aggregator.open_slot(*ROUND, parts)
        for silo in self.silos:
            slot.add_ready(silo.ready(*ROUND))
        return slot, slot.active()


def start_children(workers: Workers) -> None:
    """Have every child process started, which a run does once."""
    blocks = [np.zeros((1, POLY_DEGREE), np.uint64)] * (2 * num_processors())
    for _ in workers.encrypt(workers.make_key(), blocks):
        pass


def ours_round(
    num_parameters: int,
    num_silos: int,
    value_bits: int,
    num_children: int | None = None,
) -> RoundCost:
    """Return the cost of a round with so many child processes a side (all cores).

    All silos upload the same values, of which one vector is made.
    """
    randomness = np.random.default_rng(0)
    values = randomness.integers(0, 1 << value_bits, num_parameters, np.uint64)
    vector = values.astype(np.uint32)
    field_bits = field_bits_for(value_bits, num_silos)
    num_words = words_needed(num_parameters, field_bits)
    sum_bits = value_bits + (num_silos - 1).bit_length()
    layout = (Digits(num_words, field_bits, sum_bits),)
    stages = {stage: Seconds() for stage in STAGES}
    with Workers(num_children) as workers:
        start_children(workers)
        federation = EncryptedFederation(num_silos, layout, workers)
        slot, active = federation.activate()
        for index, silo in enumerate(federation.silos):
            clocked = stages["encrypt"] if index == 0 else Seconds()
            with clocked.count():
                upload = silo.encrypt(active, pack(vector, field_bits))
            with stages["add"].count():
                slot.add_encrypted(upload)
        with stages["add"].count():
            survivors = slot.survivors()
            for silo in federation.silos:
                slot.add_confirm(silo.confirm(survivors))
            request = slot.decrypt_request()
        with stages["decrypt"].count():
            answer = federation.silos[0].decrypt(request)
        slot.add_decrypted(answer)
        for silo in federation.silos[1 : slot.num_witnesses]:
            slot.add_decrypted(silo.decrypt(request))
        total = unpack(slot.decrypted_sum(), field_bits, num_parameters)
    difference = np.abs(total.astype(np.int64) - num_silos * values.astype(np.int64))
    return RoundCost(
        stages=stages,
        num_silos=num_silos,
        upload_bytes=len(upload),
        sum_bytes=len(request),
        num_openers=slot.num_witnesses,
        opened_bytes=len(answer),
        max_error=float(difference.max()) / num_silos,
    )
