"""The entries of a privacy ledger, and what they come to: pure values.

A round's entries, in their order (``[ … ]*`` may repeat after crashes)::

    Reserved(n)  Taken* [ Interrupted  Reserved(m)  Taken* ]*  Closed

What was reserved and is not yet taken counts as spent until the round is closed, so a
crash at any point leaves at least as much charged as was really taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from privacy.events import Event, merged
from protocol.encoding import check_hex

DIGEST_BYTES = 32

Randomness: TypeAlias = Literal["operating-system", "insecure-seed"]
"""Where sampling and noise come from; the second is for debugging only."""


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """The number of a ledger's entries, and the SHA-256 of the last line (hex)."""

    size: int
    digest: str

    def __post_init__(self) -> None:
        """Check both."""
        if self.size < 0:
            raise ValueError("size: must not be negative")
        check_hex("digest", self.digest, DIGEST_BYTES)


@dataclass(frozen=True, kw_only=True)
class EarlierLedger:
    """Another ledger on overlapping data, as it was when this one was opened."""

    ledger: str
    head: LedgerHead


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The first entry: whose ledger this is, and what it is about.

    ``commitment`` may leave the silo; ``nonce``, which opens it, must not.
    ``tag_key`` tells with which key the tags were made. ``fresh`` means that the
    operator left ``earlier`` out of this run's account (``--new-ledger``).
    """

    kind: ClassVar[str] = "opened"
    ledger: str
    plan: str
    unit: Literal["example", "patient", "silo"]
    delta: float
    commitment: str
    nonce: str
    tag_key: str
    fresh: bool
    randomness: Randomness
    earlier: tuple[EarlierLedger, ...] = ()
    relation: Literal["add-or-remove-one", "updates-or-zeros"] = "add-or-remove-one"

    def __post_init__(self) -> None:
        """Check the digests."""
        for name in ("commitment", "nonce", "tag_key"):
            check_hex(name, getattr(self, name), DIGEST_BYTES)
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: must be in (0, 1), is {self.delta}")


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """All steps that a round will take from now on, before the first of them.

    The process writes :class:`Taken` at least every ``checkpoint_steps``.
    """

    kind: ClassVar[str] = "reserved"
    round_number: int
    event: Event
    checkpoint_steps: int

    def __post_init__(self) -> None:
        """Check the interval."""
        if self.checkpoint_steps < 1:
            raise ValueError("checkpoint_steps: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Steps really taken, before anything that depends on them is kept or leaves."""

    kind: ClassVar[str] = "taken"
    round_number: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """Steps that may have been taken before a crash, and are counted as taken."""

    kind: ClassVar[str] = "interrupted"
    round_number: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A round's training is over; what is left of its reservation is given back."""

    kind: ClassVar[str] = "closed"
    round_number: int


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release outside the training of a round, e.g. ``central images``."""

    kind: ClassVar[str] = "released"
    event: Event
    what: str


Entry: TypeAlias = Opened | Reserved | Taken | Interrupted | Closed | Released
ENTRY_KINDS: dict[str, type[Entry]] = {
    kind.kind: kind for kind in (Opened, Reserved, Taken, Interrupted, Closed, Released)
}


@dataclass(frozen=True)
class OpenRound:
    """A round whose training is not over.

    ``left`` steps are reserved and not counted as taken yet. ``is_settled`` after
    :class:`Interrupted`: nothing was, and nothing may be, trained since.
    """

    round_number: int
    event: Event
    left: int
    checkpoint_steps: int
    is_settled: bool = False

    @property
    def uncertain_steps(self) -> int:
        """Steps that a process which wrote nothing more may have taken."""
        return 0 if self.is_settled else min(self.left, self.checkpoint_steps)


@dataclass(frozen=True)
class Spending:
    """What a ledger's entries come to.

    ``counted`` is what they say was released; ``open_round`` what may yet be;
    ``last_round`` the highest round that was ever reserved; 0 is what a silo trains for
    auxiliary images, before the rounds.
    """

    counted: tuple[Event, ...] = ()
    open_round: OpenRound | None = None
    last_round: int = 0
    is_opened: bool = False

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Spending":
        """Return what some entries come to.

        Raises:
            ValueError: an entry does not fit those before it.
        """
        result = cls()
        for entry in entries:
            result = result.after(entry)
        return result

    @classmethod
    def joined(cls, many: Sequence["Spending"]) -> "Spending":
        """Return the composition of several ledgers' spending, open rounds included."""
        return cls(merged(event for one in many for event in one.events))

    @property
    def events(self) -> tuple[Event, ...]:
        """All that is charged: what was counted, and what is still reserved."""
        reserved = self.open_round
        if reserved is None or not reserved.left:
            return self.counted
        return merged((*self.counted, reserved.event.times(reserved.left)))

    def after(self, entry: Entry) -> "Spending":
        """Return the spending with one more entry.

        Raises:
            ValueError: the entry does not fit what came before.
        """
        if isinstance(entry, Opened) == self.is_opened:
            raise ValueError("a ledger is opened once, by its first entry")
        if isinstance(entry, Opened):
            return replace(self, is_opened=True)
        if isinstance(entry, Released):
            return self._with(entry.event)
        if isinstance(entry, Reserved):
            return self._reserved(entry)
        current = self.open_round
        if current is None or current.round_number != entry.round_number:
            raise ValueError(f"round {entry.round_number} is not open")
        if isinstance(entry, Closed):
            return replace(self, open_round=None)
        return self._counted(entry, current)

    def _reserved(self, entry: Reserved) -> "Spending":
        """Open a round, or reserve anew for one whose interruption was counted."""
        if entry.round_number < self.last_round:
            raise ValueError(
                f"round {entry.round_number} after round {self.last_round}"
            )
        current = self.open_round
        if current and current.round_number != entry.round_number:
            raise ValueError(f"round {current.round_number} is not closed")
        if current and current.uncertain_steps:
            raise ValueError(f"round {entry.round_number} is reserved already")
        opened = OpenRound(
            entry.round_number, entry.event, entry.event.steps, entry.checkpoint_steps
        )
        return replace(self, open_round=opened, last_round=entry.round_number)

    def _counted(self, entry: Taken | Interrupted, current: OpenRound) -> "Spending":
        """Count steps; more than were reserved count, too."""
        if entry.steps < 1:
            raise ValueError(f"{entry.steps} steps")
        if current.is_settled:
            raise ValueError("steps before they were reserved anew")
        left = max(0, current.left - entry.steps)
        is_settled = isinstance(entry, Interrupted)
        changed = replace(current, left=left, is_settled=is_settled)
        counted = self._with(current.event.times(entry.steps))
        return replace(counted, open_round=changed)

    def _with(self, event: Event) -> "Spending":
        """Return the spending with an event more."""
        return replace(self, counted=merged((*self.counted, event)))


def most_taken_in_one_attempt(entries: Sequence[Entry]) -> int:
    """Return how many :class:`Taken` follow each other without a crash, at most."""
    most = current = 0
    for entry in entries:
        if isinstance(entry, Taken):
            current += 1
        elif isinstance(entry, (Reserved, Interrupted)):
            current = 0
        most = max(most, current)
    return most
