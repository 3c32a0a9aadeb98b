"""A whole secure aggregation in memory, driven stage by stage, for tests only.

``reach(stage)`` plays everything honestly up to and including what the aggregator sends
in that stage. The frames of every stage are kept, so that a test can replace one.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from crypto.frame import AGGREGATOR, NO_SLOT, Header, Kind, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.parts import Parts, own_places, whole
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload

RUN = bytes(range(16))
OTHER_RUN = bytes(16)
MODEL = hashlib.sha256(b"model of round 1").digest()
OTHER_MODEL = hashlib.sha256(b"another model").digest()
NUM_WORDS = 257
STAGES = ("keys", "envelopes", "active", "survivors", "confirms")


def make_identities(num_silos: int) -> list[IdentityKey]:
    """Return the same identity keys in every test; the aggregator's is the last."""
    return [
        IdentityKey.from_bytes(hashlib.sha256(b"identity %d" % index).digest())
        for index in range(num_silos + 1)
    ]


class Federation:
    """Silos, an aggregator, and every frame that passed between them."""

    def __init__(self, config: SecAggConfig, *, run: bytes = RUN, setup: int = 1):
        self.config, self.run, self.setup = config, run, setup
        *self.identities, self.aggregator_identity = make_identities(config.num_silos)
        self.roster = [identity.public for identity in self.identities]
        self.journals = [Journal(None, b"silo %d" % i) for i in self.everyone]
        self.parts: Parts = whole(NUM_WORDS, self.everyone)
        self.silos = [
            SiloSide(*self.silo_arguments(index)) for index in range(config.num_silos)
        ]
        self.aggregator = AggregatorSide(*self.aggregator_arguments())
        rng = np.random.default_rng(7)
        self.words = [
            rng.integers(0, 1 << 63, NUM_WORDS, dtype=np.uint64) for _ in self.silos
        ]
        self.slot, self.round_number, self.model = 0, 1, MODEL
        self.frames: dict[str, dict[int, bytes]] = {}

    def silo_arguments(self, index: int) -> tuple:
        return (
            self.config,
            self.roster,
            self.aggregator_identity.public,
            self.identities[index],
            index,
            self.run,
            self.setup,
            self.journals[index],
        )

    def aggregator_arguments(self) -> tuple:
        return (
            self.config,
            self.roster,
            self.aggregator_identity,
            self.run,
            self.setup,
        )

    @property
    def everyone(self) -> range:
        return range(self.config.num_silos)

    def reach(
        self,
        stage: str,
        *,
        lost_before_upload: Iterable[int] = (),
        lost_after_upload: Iterable[int] = (),
    ) -> "Federation":
        """Play honestly until the aggregator has made the broadcast of a stage."""
        gone = set(lost_before_upload)
        late = gone | set(lost_after_upload)
        steps = {
            "keys": lambda: self.advertise(),
            "envelopes": lambda: self.share(),
            "active": lambda: self.ready(),
            "survivors": lambda: self.mask(set(self.everyone) - gone),
            "confirms": lambda: self.confirm(set(self.everyone) - late),
        }
        for name in STAGES[: STAGES.index(stage) + 1]:
            steps[name]()
        return self

    def advertise(self, silos: Iterable[int] | None = None) -> None:
        chosen = self.everyone if silos is None else silos
        sent = {i: self.silos[i].advertise() for i in chosen}
        for frame in sent.values():
            self.aggregator.add_advertisement(frame)
        self.frames["advertise"] = sent
        self.frames["keys"] = dict.fromkeys(self.everyone, self.aggregator.keys())

    def share(self, silos: Iterable[int] | None = None) -> None:
        chosen = self.everyone if silos is None else silos
        sent = {i: self.silos[i].share(self.frames["keys"][i]) for i in chosen}
        for frame in sent.values():
            self.aggregator.add_shares(frame)
        self.frames["shares"] = sent
        self.frames["envelopes"] = {i: self.aggregator.envelopes(i) for i in sent}

    def ready(self, silos: Iterable[int] | None = None) -> None:
        """Deliver the shares if need be, open the slot, collect READY."""
        chosen = list(self.everyone if silos is None else silos)
        for i in chosen:
            self.silos[i].receive_shares(self.frames["envelopes"][i])
        arguments = (self.slot, self.round_number, self.model)
        slot = self.aggregator.open_slot(*arguments, self.parts)
        sent = {i: self.silos[i].ready(*arguments) for i in chosen}
        for frame in sent.values():
            slot.add_ready(frame)
        self.frames["ready"] = sent
        self.frames["active"] = dict.fromkeys(chosen, slot.active())

    def mask(self, silos: Iterable[int]) -> None:
        sent = {i: self.masked(i, self.frames["active"][i]) for i in silos}
        for frame in sent.values():
            self.aggregator.slot.add_masked(frame)
        self.frames["masked"] = sent
        survivors = self.aggregator.slot.survivors()
        self.frames["survivors"] = dict.fromkeys(self.everyone, survivors)

    def masked(
        self, silo: int, active: bytes, words: np.ndarray | None = None
    ) -> bytes:
        """Have a silo mask a copy of its words, or of others."""
        upload = Upload.of(self.own_words(silo) if words is None else words)
        return bytes(self.silos[silo].mask(active, upload, self.parts))

    def own_words(self, silo: int) -> np.ndarray:
        """Return what a silo contributes: its parts of its words, in a row."""
        places = [whole for _, _, whole in own_places(self.parts, silo)]
        return np.concatenate(
            [self.words[silo][:0], *map(self.words[silo].__getitem__, places)]
        )

    def confirm(self, silos: Iterable[int]) -> None:
        sent = {i: self.silos[i].confirm(self.frames["survivors"][i]) for i in silos}
        for frame in sent.values():
            self.aggregator.slot.add_confirm(frame)
        self.frames["confirm"] = sent
        confirms = self.aggregator.slot.confirms()
        self.frames["confirms"] = dict.fromkeys(self.everyone, confirms)

    def reveal(self, silos: Iterable[int]) -> np.ndarray:
        sent = {i: self.silos[i].reveal(self.frames["confirms"][i]) for i in silos}
        for frame in sent.values():
            self.aggregator.slot.add_reveal(frame)
        self.frames["reveal"] = sent
        total = self.aggregator.slot.unmask()
        notice = self.aggregator.slot.sum_notice()
        self.frames["sum"] = dict.fromkeys(self.everyone, notice)
        return total

    def plain_sum(self, silos: Iterable[int]) -> np.ndarray:
        """The slow, obvious reference: Python integers, part by part, modulo 2^64."""
        summed, total, start = set(silos), [], 0
        for part in self.parts:
            for word in range(start, start + part.num_words):
                values = [
                    int(self.words[i][word]) for i in summed & set(part.contributors)
                ]
                total.append(sum(values) % 2**64)
            start += part.num_words
        return np.array(total, np.uint64)

    def silo_state(self, silo: int) -> tuple[bytes, dict]:
        """Return all that a silo remembers: its state, and what it has promised."""
        return self.silos[silo].to_bytes(), dict(self.journals[silo]._promises)

    def aggregator_state(self) -> tuple:
        """Return all that the aggregator remembers, the sum so far included."""
        side = self.aggregator
        if not side.has_slot:
            return (side.to_bytes(),)
        slot = side.slot
        summed = dict(slot._state.masked)
        return side.to_bytes(), slot.to_bytes(), slot.total.tobytes(), summed

    def sign_as_aggregator(
        self, kind: Kind, body: bytes, *, slot: int = NO_SLOT, **fields
    ) -> bytes:
        """What a dishonest aggregator can always do: sign any body it likes."""
        header = Header(kind, self.run, self.setup, slot, AGGREGATOR, **fields)
        return make_frame(self.aggregator_identity, header, body)
