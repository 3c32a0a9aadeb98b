"""A whole secure aggregation by encryption in memory, driven stage by stage.

The stages have the names of ``tests.crypto.secagg.federation``, so that what is done
and said there holds here: "envelopes" are HANDED, "confirms" is DECRYPT.
"""

from collections.abc import Iterable

import numpy as np

from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.decrypted import Decrypted
from crypto.bfv.digits import Digits, Layout
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.parts import Parts, whole
from tests.crypto.secagg.federation import MODEL, RUN, Federation, make_identities

FIVE = SecAggConfig(
    num_silos=5, threshold=4, slots_per_setup=3, protection="bfv", key_maker=2
)
NUM_WORDS = 12
TWO_CHUNKS = 2100
"""Whole words whose slots do not fit into one ciphertext."""


def layouts_of(round_number: int, parts: Parts) -> tuple[Layout, ...]:
    """Fields of 16 bits with sums of 14, and one word that is summed whole."""
    return tuple(
        (Digits(part.num_words - 1, 16, 14), Digits.of_whole_words(1, 5))
        for part in parts
    )


def whole_words(round_number: int, parts: Parts) -> tuple[Layout, ...]:
    """Words that are summed whole."""
    return tuple((Digits.of_whole_words(part.num_words, 5),) for part in parts)


class Watched:
    """Workers that note whether any decrypted value was let out."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.num_let_out = workers, 0
        self.opened: list[Decrypted] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.workers, name)

    def decrypt(self, *arguments, **fields) -> Decrypted:
        found = self.workers.decrypt(*arguments, **fields)
        give_out = found.slots

        def slots():
            self.num_let_out += 1
            return give_out()

        found.slots = slots
        self.opened.append(found)
        return found


class BfvFederation(Federation):
    """Silos, an aggregator, and every frame that passed between them."""

    def __init__(
        self,
        workers: Workers,
        config: SecAggConfig = FIVE,
        *,
        run: bytes = RUN,
        setup: int = 1,
        parts: Parts | None = None,
        layouts=layouts_of,
        journals: list[Journal] | None = None,
    ):
        self.config, self.run, self.setup = config, run, setup
        self.workers, self.layouts = Watched(workers), layouts
        *self.identities, self.aggregator_identity = make_identities(config.num_silos)
        self.roster = [identity.public for identity in self.identities]
        new = [Journal(None, b"silo %d" % i) for i in self.everyone]
        self.journals = journals or new
        self.parts = parts or whole(NUM_WORDS, self.everyone)
        self.silos = [
            BfvSiloSide(*self.silo_arguments(i), **self.tools) for i in self.everyone
        ]
        arguments = self.aggregator_arguments()
        self.aggregator = BfvAggregatorSide(*arguments, **self.tools)
        self.words = [self.draw_words(silo) for silo in self.everyone]
        self.slot, self.round_number, self.model = 0, 1, MODEL
        self.frames: dict[str, dict[int, bytes]] = {}

    @property
    def tools(self) -> dict:
        return {"workers": self.workers, "layouts_of": self.layouts}

    def draw_words(self, seed: int) -> np.ndarray:
        """Draw the words of the whole vector, such as one silo may have."""
        rng, words = np.random.default_rng(seed), []
        for layout in self.layouts(1, self.parts):
            for digits in layout:
                bits = min(digits.digit_bits, digits.sum_bits - 3)
                fields = rng.integers(
                    0, 1 << bits, (64 // digits.digit_bits, digits.num_words)
                )
                shifts = digits.digit_bits * np.arange(len(fields))[:, None]
                words.append((fields << shifts).sum(0).astype(np.uint64))
        return np.concatenate(words)

    def masked(
        self, silo: int, active: bytes, words: np.ndarray | None = None
    ) -> bytes:
        """Have a silo encrypt its words, or others."""
        own = self.own_words(silo) if words is None else words
        return bytes(self.silos[silo].encrypt(active, own, self.parts))

    def mask(self, silos: Iterable[int]) -> None:
        sent = {i: self.masked(i, self.frames["active"][i]) for i in silos}
        for frame in sent.values():
            self.aggregator.slot.add_encrypted(frame)
        self.frames["masked"] = sent
        survivors = self.aggregator.slot.survivors()
        self.frames["survivors"] = dict.fromkeys(self.everyone, survivors)

    def confirm(self, silos: Iterable[int]) -> None:
        super().confirm(silos)
        request = bytes(self.aggregator.slot.decrypt_request())
        self.frames["confirms"] = dict.fromkeys(self.everyone, request)

    def reveal(self, silos: Iterable[int] = (0, 1)) -> np.ndarray:
        sent = {i: self.silos[i].decrypt(self.frames["confirms"][i]) for i in silos}
        for frame in sent.values():
            self.aggregator.slot.add_decrypted(frame)
        self.frames["reveal"] = sent
        total = self.aggregator.slot.decrypted_sum()
        notice = self.aggregator.slot.sum_notice()
        self.frames["sum"] = dict.fromkeys(self.everyone, notice)
        return total

    def restart_silo(self, silo: int, saved: bytes | None = None) -> BfvSiloSide:
        """Load what was saved at some time, beside the journal of now."""
        data = self.silos[silo].to_bytes() if saved is None else saved
        arguments = self.silo_arguments(silo)
        self.silos[silo] = BfvSiloSide(*arguments, **self.tools).restore(data)
        return self.silos[silo]

    def restart_aggregator(self) -> None:
        """Load what it saved: the sum once the survivors are closed, no uploads."""
        old, arguments = self.aggregator, self.aggregator_arguments()
        side = BfvAggregatorSide(*arguments, **self.tools).restore(old.to_bytes())
        if old.has_slot:
            is_closed = bool(old.slot.survivor_indices)
            total = old.slot.total.copy() if is_closed else None
            side.resume_slot(old.slot.to_bytes(), total)
        self.aggregator = side
