"""Which of a silo's ledgers share data with one run's, and the making of a new one.

All of this happens under an exclusive lock of the folder of all ledgers.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crypto.keys import IdentityKey
from privacy.events import Event
from protocol.files import remove_leftovers
from silo.data import ImageSet
from silo.entries import EarlierLedger, Opened, Randomness, Spending
from silo.errors import SiloError
from silo.ledger import (
    Ledger,
    LedgerBroken,
    LedgerContent,
    load_ledger,
    load_ledger_tags,
    make_ledger,
)
from silo.tags import (
    TAG_BYTES,
    Tags,
    commitment,
    has_common,
    key_digest,
    load_or_make_key,
    tags_of,
)
from silo.units import UnitKind


class AccountRefused(SiloError):
    """This run cannot use that ledger, or not compose with another."""


@dataclass(frozen=True, kw_only=True)
class LedgerPurpose:
    """What a run's ledger is for; the same each time it is opened.

    Args:
        name: of the ledger's folder.
        plan: digest of the plan, in hexadecimal.
        unit, delta: of the plan's mechanism.
        randomness: where sampling and noise come from.
        fresh: leave all other ledgers out of account (``--new-ledger``).
    """

    name: str
    plan: str
    unit: UnitKind
    delta: float
    randomness: Randomness = "operating-system"
    fresh: bool = False

    def __post_init__(self) -> None:
        """Check that the name is that of one visible folder."""
        if (
            not self.name
            or self.name.startswith(".")
            or Path(self.name).name != self.name
        ):
            raise ValueError(f"name: {self.name!r} cannot be a ledger's")


class OtherLedgers:
    """The ledgers of a folder that share a privacy unit with those of one run.

    Args:
        folder: of all ledgers.
        name: of the run's own ledger.
        unit: of the run's mechanism.
        public: the silo's identity; all its ledgers are signed by it.
        tag_key: digest of the key of the tags.
        tags: of the run's units.
        is_composed: False for a ledger that leaves all others out of account.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        unit: UnitKind,
        *,
        public: bytes,
        tag_key: str,
        tags: Tags,
    ) -> None:
        self._folder, self._name, self._unit = folder, name, unit
        self._public, self._tag_key, self._tags = public, tag_key, tags
        self._overlaps: dict[str, bool] = {}
        self.is_composed = True

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder of all ledgers alone; waits for others."""
        return locked_alone(self._folder)

    def load(self) -> tuple[LedgerContent, ...]:
        """Return the overlapping ledgers as they are now, by name.

        Raises:
            LedgerBroken, StateBroken, KeyFileRejected: one of the folder's ledgers
                cannot be believed, so that nobody knows whether it counts.
        """
        found = []
        for name in ledger_names(self._folder):
            if name == self._name or self._overlaps.get(name) is False:
                continue
            content = load_ledger(self._folder / name, self._public)
            if name not in self._overlaps:
                self._overlaps[name] = self._overlap(content)
            if self._overlaps[name]:
                found.append(content)
        return tuple(found)

    def events(self) -> tuple[Event, ...]:
        """Return what the overlapping ledgers are charged with; call it locked.

        Raises:
            AccountRefused: another run spent on some of this one's images, and
                protected a unit from which nothing follows for this run's: single
                images where this one protects patients; a silo's updates as a whole
                where this one does not, or the other way round.
            LedgerBroken, StateBroken, KeyFileRejected: as :meth:`load`.
        """
        if not self.is_composed:
            return ()
        spending = []
        for content in self.load():
            spending.append(content.spending)
            if _composes(content.opened.unit, self._unit):
                continue
            if content.spending.events:
                raise AccountRefused(
                    f"ledger {content.name} spent on some of these images with the "
                    f"unit {content.opened.unit}, which does not compose to one for "
                    f"{self._unit}s; --new-ledger leaves it out of account"
                )
        return Spending.joined(spending).events

    def _overlap(self, content: LedgerContent) -> bool:
        """Return whether a ledger shares a unit with the run's."""
        opened = content.opened
        if opened.tag_key != self._tag_key:
            raise LedgerBroken(
                f"ledger {content.name}: was made with another tags.key; restore the "
                "key from a backup"
            )
        tags = load_ledger_tags(self._folder / content.name, opened)
        return has_common(tags, self._tags)


def _composes(earlier: UnitKind, unit: UnitKind) -> bool:
    """Return whether what protects one unit protects another at the same price.

    Only the same unit does. To remove one image of a patient who has others changes
    what the patient contributes, by up to twice the clipping norm; to change one image
    of a silo changes the silo's whole update.
    """
    return earlier == unit


def open_ledger(
    folder: Path,
    purpose: LedgerPurpose,
    identity: IdentityKey,
    images: ImageSet,
    *,
    clock: Callable[[], float] = time.time,
) -> tuple[Ledger, OtherLedgers]:
    """Return a run's ledger, made or continued, and those it composes with.

    Raises:
        AccountRefused: the ledger is of other data or another purpose, or does not
            compose with another.
        LedgerBroken, StateBroken, KeyFileRejected: a ledger cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked_alone(folder):
        remove_leftovers(folder)
        names = ledger_names(folder)
        key = load_or_make_key(folder, may_make=not names)
        tags = tags_of(images, key, whole_silo=purpose.unit == "silo")
        others = OtherLedgers(
            folder,
            purpose.name,
            purpose.unit,
            public=identity.public,
            tag_key=key_digest(key),
            tags=tags,
        )
        overlapping = others.load()
        if purpose.name not in names:
            others.is_composed = not purpose.fresh
            others.events()  # Refuses what cannot be composed before a ledger is made.
            opened = _opened(purpose, key, tags, overlapping)
            make_ledger(folder / purpose.name, identity, opened, tags, clock=clock)
        ledger = Ledger(folder / purpose.name, identity, clock=clock)
        try:
            opened = ledger.content.opened
            others.is_composed = not opened.fresh
            _check_purpose(opened, purpose, key_digest(key))
            _check_tags(folder / purpose.name, opened, tags)
            _check_earlier(opened, overlapping)
            others.events()
        except BaseException:
            ledger.close()
            raise
    return ledger, others


@contextlib.contextmanager
def locked_alone(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of a block; wait while another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ledger_names(folder: Path) -> list[str]:
    """Return the names of all ledgers in a folder, sorted."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _opened(
    purpose: LedgerPurpose,
    key: bytes,
    tags: Tags,
    overlapping: tuple[LedgerContent, ...],
) -> Opened:
    """Return the first entry of a new ledger, with a nonce of its own."""
    nonce = os.urandom(TAG_BYTES)
    return Opened(
        ledger=purpose.name,
        plan=purpose.plan,
        unit=purpose.unit,
        delta=purpose.delta,
        commitment=commitment(tags, nonce).hex(),
        nonce=nonce.hex(),
        tag_key=key_digest(key),
        fresh=purpose.fresh,
        randomness=purpose.randomness,
        relation="updates-or-zeros" if purpose.unit == "silo" else "add-or-remove-one",
        earlier=tuple(
            EarlierLedger(ledger=other.name, head=other.head) for other in overlapping
        ),
    )


def _check_purpose(opened: Opened, purpose: LedgerPurpose, tag_key: str) -> None:
    """Refuse a ledger that was opened for something else."""
    for name in ("plan", "unit", "delta"):
        if getattr(opened, name) != getattr(purpose, name):
            raise AccountRefused(
                f"ledger {purpose.name} belongs to another {name}: "
                f"{getattr(opened, name)}"
            )
    if opened.tag_key != tag_key:
        raise LedgerBroken(f"ledger {purpose.name}: was made with another tags.key")
    if opened.randomness != purpose.randomness:
        raise AccountRefused(
            f"ledger {purpose.name} says that its randomness is {opened.randomness}; "
            f"it cannot go on with {purpose.randomness}"
        )
    if purpose.fresh and not opened.fresh:
        raise AccountRefused(
            f"ledger {purpose.name} exists and composes with earlier ones; "
            "--new-ledger is for a run that has none yet"
        )


def _check_tags(folder: Path, opened: Opened, tags: Tags) -> None:
    """Refuse a ledger of another data set."""
    if not np.array_equal(load_ledger_tags(folder, opened), tags):
        raise AccountRefused(
            f"ledger {folder.name} is of another data set: images or patients were "
            "added, dropped or changed since it was opened"
        )


def _check_earlier(opened: Opened, overlapping: tuple[LedgerContent, ...]) -> None:
    """Refuse to go on where an earlier ledger is gone, or is older than it was."""
    now = {other.name: other for other in overlapping}
    for earlier in () if opened.fresh else opened.earlier:
        other = now.get(earlier.ledger)
        if other is None or not other.contains(earlier.head):
            raise LedgerBroken(
                f"ledger {earlier.ledger}, which this run's composes with, was "
                "removed, cut off or restored from a backup"
            )
