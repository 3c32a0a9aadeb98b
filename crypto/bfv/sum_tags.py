"""The tags of one slot: what they are derived from, made at upload, checked at the sum.

Both follow from the shared key and T3, which names run, setup, slot, round, cohort and
parts: tags of another round or part do not add up. ``crypto.bfv.tags`` has the algebra.
"""

from collections.abc import Collection, Iterable, Iterator

from crypto import labels
from crypto.bfv.digits import Layout, values_in
from crypto.bfv.parameters import PLAIN_MODULUS, POLY_DEGREE, Slots
from crypto.bfv.tags import NUM_TAGS, pads, residuals
from crypto.encoding import Writer
from crypto.kdf import derive

TAG_SEED_BYTES = 32


class SumTags:
    """The tags of every part of one slot. SECRET.

    Args:
        secret_key: the shared key.
        slot_digest: T3.
    """

    def __init__(self, secret_key: bytes, slot_digest: bytes) -> None:
        self._key = derive(secret_key, labels.SUM_TAG_KEY, slot_digest, TAG_SEED_BYTES)

    def seed(self, part: int) -> bytes:
        """Return what the coefficients of a part are expanded from, 32 bytes."""
        place = Writer().integer(part, 4).to_bytes()
        return derive(self._key, labels.SUM_TAG_SEED, place, TAG_SEED_BYTES)

    def with_tags(
        self, blocks: Iterable[tuple[int, Slots]], layout: Layout, part: int, silo: int
    ) -> Iterator[Slots]:
        """Yield the blocks of a silo's part with its tags in the slots behind them.

        Args:
            blocks: of ``crypto.bfv.digits.slot_blocks``; changed in place.
        """
        num_values, seed = values_in(layout), self.seed(part)
        totals = self._pads(part, silo)
        for first, block in blocks:
            found = residuals(block, seed, first, num_values)
            totals = tuple(
                (total + more) % PLAIN_MODULUS
                for total, more in zip(totals, found, strict=True)
            )
            flat, begin = block.reshape(-1), first * POLY_DEGREE
            for tag in range(NUM_TAGS):
                if begin <= (place := num_values + tag) < begin + flat.size:
                    flat[place - begin] = totals[tag]
            yield block

    def is_sum(self, found: Collection[int], part: int, silos: Collection[int]) -> bool:
        """Return whether a part is the sum over just these silos.

        Args:
            found: the residuals of the whole part, as decrypted.
        """
        totals = list(found)
        for silo in silos:
            for tag, pad in enumerate(self._pads(part, silo)):
                totals[tag] += pad
        return all(total % PLAIN_MODULUS == 0 for total in totals)

    def _pads(self, part: int, silo: int) -> tuple[int, ...]:
        """Return what hides a silo's tags from the other silos' sums."""
        place = Writer().integer(part, 4).integer(silo, 2).to_bytes()
        return pads(derive(self._key, labels.SUM_TAG_PADS, place, TAG_SEED_BYTES))
