"""Silos and an aggregator in one process, with the real messages, for benchmarks.

Every call goes through :meth:`Federation.silo_calls` or ``aggregator_calls``, which a
benchmark replaces to take times or profiles; what passes between the sides is counted.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from crypto.frame import Kind
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.parts import whole
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload

RUN = bytes(range(16))
MODEL = hashlib.sha256(b"model of round 1").digest()
ROUND = (0, 1, MODEL)
"""Slot, round number and model digest."""


class Federation:
    """All sides of one setup. After every reply a side makes the state that it saves.

    Attributes:
        sent: by kind of message and silo, bytes between that silo and the aggregator;
            of MASKED without the vector.
    """

    def __init__(self, num_silos: int, slots_per_setup: int = 1) -> None:
        config = SecAggConfig(
            num_silos=num_silos,
            threshold=2 * num_silos // 3 + 1,
            slots_per_setup=slots_per_setup,
        )
        identities = [IdentityKey.generate() for _ in range(num_silos)]
        aggregator = IdentityKey.generate()
        roster = [identity.public for identity in identities]
        self.silos = [
            SiloSide(
                config,
                roster,
                aggregator.public,
                identity,
                index,
                RUN,
                1,
                Journal(None, b"silo %d" % index),
            )
            for index, identity in enumerate(identities)
        ]
        self.aggregator = AggregatorSide(config, roster, aggregator, RUN, 1)
        self.silo_calls: Callable[[], AbstractContextManager[object]] = nullcontext
        self.aggregator_calls: Callable[[], AbstractContextManager[object]] = (
            nullcontext
        )
        self.sent: dict[Kind, dict[int, int]] = defaultdict(dict)

    @property
    def everyone(self) -> range:
        """The indices of all silos."""
        return range(len(self.silos))

    @property
    def slot(self) -> AggregatorSlot:
        """The aggregator's slot."""
        return self.aggregator.slot

    def set_up(self) -> None:
        """Exchange keys and shares."""
        for i in self.everyone:
            frame = self._reply(Kind.ADVERTISE, i, self.silos[i].advertise)
            self._take(self.aggregator.add_advertisement, frame)
        keys = self._broadcast(self.aggregator.keys)
        for i in self.everyone:
            self.sent[Kind.KEYS][i] = len(keys)
            frame = self._reply(Kind.SHARES, i, self.silos[i].share, keys)
            self._take(self.aggregator.add_shares, frame)
        for i in self.everyone:
            with self.aggregator_calls():
                envelopes = self.aggregator.envelopes(i)
            self.sent[Kind.ENVELOPES][i] = len(envelopes)
            with self.silo_calls():
                self.silos[i].receive_shares(envelopes)
        with self.aggregator_calls():
            self.aggregator.to_bytes()

    def activate(self, num_words: int) -> bytes:
        """Open slot 0 for a vector of so many words; return ACTIVE for all silos."""
        with self.aggregator_calls():
            self.aggregator.open_slot(*ROUND, whole(num_words, self.everyone))
        for i in self.everyone:
            frame = self._reply(Kind.READY, i, self.silos[i].ready, *ROUND)
            self._take(self.slot.add_ready, frame)
        active = self._broadcast(self.slot.active)
        self.sent[Kind.ACTIVE] = dict.fromkeys(self.everyone, len(active))
        return active

    def mask(self, silo: int, active: bytes, upload: Upload) -> memoryview:
        """Return one silo's MASKED frame."""
        num_bytes = upload.words.nbytes
        with self.silo_calls():
            frame = self.silos[silo].mask(active, upload)
            self.silos[silo].to_bytes()
        self.sent[Kind.MASKED][silo] = len(frame) - num_bytes
        return frame

    def add_masked(self, frame: memoryview) -> None:
        """Let the aggregator take one MASKED frame."""
        self._take(self.slot.add_masked, frame)

    def finish(self, survivors: Iterable[int]) -> None:
        """Confirm, reveal, unmask and announce the sum."""
        silos = tuple(survivors)
        list_ = self._broadcast(self.slot.survivors)
        for i in silos:
            self.sent[Kind.SURVIVORS][i] = len(list_)
            frame = self._reply(Kind.CONFIRM, i, self.silos[i].confirm, list_)
            self._take(self.slot.add_confirm, frame)
        confirms = self._broadcast(self.slot.confirms)
        for i in silos:
            self.sent[Kind.CONFIRMS][i] = len(confirms)
            frame = self._reply(Kind.REVEAL, i, self.silos[i].reveal, confirms)
            self._take(self.slot.add_reveal, frame)
            with self.aggregator_calls():
                self.slot.to_bytes()
        with self.aggregator_calls():
            self.slot.unmask()
        notice = self._broadcast(self.slot.sum_notice)
        for i in silos:
            self.sent[Kind.SUM][i] = len(notice)
            with self.silo_calls():
                self.silos[i].close_slot(notice)
                self.silos[i].to_bytes()

    def _reply(
        self, kind: Kind, silo: int, method: Callable[..., bytes], *arguments: object
    ) -> bytes:
        """Let a silo answer and make the state that it saves before."""
        with self.silo_calls():
            frame = method(*arguments)
            self.silos[silo].to_bytes()
        self.sent[kind][silo] = len(frame)
        return frame

    def _take(
        self, method: Callable[[bytes | memoryview], None], frame: bytes | memoryview
    ) -> None:
        """Let the aggregator take a frame."""
        with self.aggregator_calls():
            method(frame)

    def _broadcast(self, method: Callable[[], bytes]) -> bytes:
        """Let the aggregator close a stage and make the state that it saves before."""
        with self.aggregator_calls():
            frame = method()
            if self.aggregator.has_slot:
                self.slot.to_bytes()
            return frame
