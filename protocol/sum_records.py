"""Records of a sum that silos decrypt; masks have ``Revealed`` in their place.

Part of the table in ``protocol.records``, whose rules they keep.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class KeyShared:
    """In a setup one silo has made the key that all its members share.

    ``commitment`` is a digest of it (``crypto.bfv.shared_key``); every member writes
    the same, and no two setups have the same.
    """

    kind: ClassVar[str] = "key-shared"
    setup: int
    maker: str
    commitment: str


@dataclass(frozen=True, kw_only=True)
class Decrypted:
    """The sum over the survivors of a slot was decrypted, by each of ``silos``.

    The aggregator names those that agree on the sum it took; a silo names itself.
    ``sum`` is the digest of the sum, which SUM announces.
    """

    kind: ClassVar[str] = "decrypted"
    round_number: int
    setup: int
    slot: int
    silos: tuple[str, ...]
    survivors: tuple[str, ...]
    sum: str
