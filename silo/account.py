"""A silo's privacy account: all ledgers whose data overlap, under the silo's limits.

A run has a ledger of its own. It composes with every other ledger that shares a privacy
unit with it (:mod:`silo.tags`), whether older or newer, so that adding or dropping
images opens no fresh account. Every unit's loss is then that of the ledgers it is in,
and no reservation of any of them passes the limit. What runs may take is decided under
an exclusive lock of the folder: two runs at once cannot overspend together.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from crypto.keys import IdentityKey
from privacy.accounting import Budget
from privacy.errors import BudgetExceeded
from privacy.events import Event, merged
from privacy.pricing import epsilon, would_exceed
from silo.data import ImageSet
from silo.entries import (
    Closed,
    Interrupted,
    LedgerHead,
    Opened,
    OpenRound,
    Released,
    Reserved,
    Taken,
)
from silo.errors import StateBroken
from silo.ledger import Ledger, LedgerContent
from silo.overlap import LedgerPurpose, OtherLedgers, open_ledger
from silo.partial import PartialRound, resume_point
from silo.units import PrivacyUnits

Events = tuple[Event, ...]


class PrivacyAccount:
    """One run's ledger, and what it may still spend.

    The order in a round: :meth:`begin`, then per checkpoint :meth:`take` before the
    checkpoint is saved, then :meth:`close_round`, then the round's update is saved.

    Guarantees: what :attr:`events` holds is never less than what was released, at
    any time and after a crash at any point; it is at most one checkpoint interval more
    for each crash. Nothing is reserved that would pass a limit.

    Args:
        run_budget: what this run may spend by itself; None for no limit.
        account_limit: what may ever be spent on a unit, over all ledgers.
        max_steps: how many steps the run may take, whoever asks; None for no limit.
    """

    def __init__(
        self,
        ledger: Ledger,
        others: OtherLedgers,
        *,
        run_budget: Budget | None,
        account_limit: Budget | None,
        max_steps: int | None = None,
    ) -> None:
        self._max_steps = max_steps
        self._ledger, self._others = ledger, others
        self._run_budget, self._account_limit = run_budget, account_limit
        self._is_inherited = self._uncertain_steps > 0

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        *,
        plan: str,
        delta: float,
        identity: IdentityKey,
        images: ImageSet,
        units: PrivacyUnits,
        run_budget: Budget | None,
        account_limit: Budget | None,
        max_steps: int | None = None,
        fresh: bool = False,
        is_secure: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> "PrivacyAccount":
        """Make this run's ledger, or go on with it.

        Args:
            folder: of all ledgers; made where it is missing.
            name: of the run's ledger; it names the run.
            plan: digest of the plan, hexadecimal.
            delta: of the plan; of each budget is its own.
            units: of ``images``; their kind is written into the ledger.
            fresh: leave all other ledgers out of account (``--new-ledger``). A ledger
                that was opened so stays so.
            is_secure: whether sampling and noise come from the operating system.

        Raises:
            AccountRefused: the ledger is of other data or another purpose, or an
                overlapping one protects less.
            LedgerBroken, StateBroken, KeyFileRejected: a ledger cannot be used.
        """
        purpose = LedgerPurpose(
            name=name,
            plan=plan,
            unit=units.kind,
            delta=delta,
            randomness="operating-system" if is_secure else "insecure-seed",
            fresh=fresh,
        )
        ledger, others = open_ledger(folder, purpose, identity, images, clock=clock)
        return cls(
            ledger,
            others,
            run_budget=run_budget,
            account_limit=account_limit,
            max_steps=max_steps,
        )

    def __enter__(self) -> Self:
        """Return the account."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the ledger."""
        self.close()

    def close(self) -> None:
        """Let another process have the ledger."""
        self._ledger.close()

    @property
    def ledger(self) -> LedgerContent:
        """The entries of this run's ledger; secret, for its first holds the nonce."""
        return self._ledger.content

    @property
    def opened(self) -> Opened:
        """The ledger's first entry: unit, relation, commitment, fresh, randomness."""
        return self.ledger.opened

    @property
    def head(self) -> LedgerHead:
        """Size and digest of the ledger; may leave the silo."""
        return self.ledger.head

    @property
    def fresh(self) -> bool:
        """Whether this run leaves other ledgers on the same data out of account."""
        return self.opened.fresh

    @property
    def commitment(self) -> str:
        """The hiding commitment to the units' tags (hex); may leave the silo."""
        return self.opened.commitment

    @property
    def events(self) -> Events:
        """All that this run is charged with, an open reservation included."""
        return self.ledger.spending.events

    @property
    def earlier_events(self) -> Events:
        """What the other overlapping ledgers are charged with, read anew.

        They count whether they are older than this one or not. Nothing for a fresh
        ledger.
        """
        with self._others.locked():
            return self._others.events()

    @property
    def open_round(self) -> OpenRound | None:
        """The round whose training is not over, if any."""
        return self.ledger.spending.open_round

    def begin(
        self,
        round_number: int,
        event: Event,
        *,
        checkpoint_steps: int,
        model: str,
        partial: PartialRound | None,
    ) -> int:
        """Settle what a crash left, and reserve the steps of a round that are not done.

        Call it before each training of a round, first or repeated; it counts the
        interruption of a training that ended without :meth:`close_round`.

        Args:
            event: all steps of the round.
            checkpoint_steps: :meth:`take` is called at least that often.
            model: digest of the round's model, hexadecimal.
            partial: the checkpoint on disk, of whatever round.

        Returns:
            How many steps the checkpoint has done; the others are reserved. All of
            them: nothing is left to train.

        Raises:
            BudgetExceeded: the remaining steps would pass a limit; nothing is reserved.
            LedgerBroken, CheckpointOutdated: see :func:`silo.partial.resume_point`;
                nothing is appended.
        """
        done = resume_point(partial, self.ledger, round_number, model)
        if done > event.steps:
            raise StateBroken(f"a checkpoint of step {done} of {event.steps}")
        self.interrupt()
        if self.open_round and self.open_round.round_number != round_number:
            self._ledger.append(Closed(round_number=self.open_round.round_number))
        if done < event.steps:
            remaining = event.times(event.steps - done)
            self.reserve(round_number, remaining, checkpoint_steps=checkpoint_steps)
        return done

    def reserve(
        self, round_number: int, event: Event, *, checkpoint_steps: int = 0
    ) -> None:
        """Reserve steps of a round before the first of them; on disk on return.

        A reservation of the same round that is settled (:meth:`interrupt`) is replaced;
        the same one, with nothing taken yet, stays.

        Args:
            checkpoint_steps: the most steps that a crash may lose; 0: all of them.

        Raises:
            BudgetExceeded: a limit would be passed; nothing is appended.
            RuntimeError: an interruption is not settled, or another round is open.
        """
        self._check_settled()
        entry = Reserved(
            round_number=round_number,
            event=event,
            checkpoint_steps=checkpoint_steps or event.steps,
        )
        if self.ledger.entries[-1] == entry:
            return
        spending = self.ledger.spending
        current = spending.open_round
        if current and (
            current.uncertain_steps or current.round_number != round_number
        ):
            raise RuntimeError(f"round {current.round_number} is open")
        with self._others.locked():
            others = self._others.events()
            what = f"round {round_number}"
            self._check_limits(spending.counted, others, event, what)
            self._ledger.append(entry)

    def take(self, steps: int) -> LedgerHead:
        """Write that steps were taken since the last entry; on disk on return.

        Raises:
            RuntimeError: no round is open, or more steps were taken than reserved or
                than a checkpoint interval has. Those are written nevertheless.
        """
        self._check_settled()
        current = self.open_round
        if current is None or current.is_settled:
            raise RuntimeError("steps of a round that is not reserved")
        head = self._ledger.append(
            Taken(round_number=current.round_number, steps=steps)
        )
        if steps > current.uncertain_steps:
            raise RuntimeError(
                f"{steps} steps were taken, {current.uncertain_steps} were permitted"
            )
        return head

    def interrupt(self) -> int:
        """Count the steps that an attempt may have taken and not written.

        These are one checkpoint interval, or what was still reserved. Called again, or
        with no round open, it changes nothing.

        Returns:
            How many were counted.
        """
        current = self.open_round
        self._is_inherited = False
        if current is None or not current.uncertain_steps:
            return 0
        steps = current.uncertain_steps
        self._ledger.append(Interrupted(round_number=current.round_number, steps=steps))
        return steps

    def close_round(self, round_number: int) -> None:
        """Write that a round's training is over; give back what is left reserved.

        Call it when every step that was taken is written. Called again, it changes
        nothing.

        Raises:
            RuntimeError: another round is open, or an interruption is not settled.
        """
        self._check_settled()
        current = self.open_round
        if current is None and self.ledger.spending.last_round == round_number:
            return
        if current is None or current.round_number != round_number:
            raise RuntimeError(f"round {round_number} is not open")
        self._ledger.append(Closed(round_number=round_number))

    def abandon(self) -> None:
        """Settle and close the open round, if any: it will not be trained further."""
        self.interrupt()
        if self.open_round:
            self.close_round(self.open_round.round_number)

    def release(self, event: Event, what: str) -> None:
        """Charge a release outside the rounds' training, before it is made.

        Raises:
            BudgetExceeded: a limit would be passed; nothing is appended.
        """
        with self._others.locked():
            self._check_limits(self.events, self._others.events(), event, what)
            self._ledger.append(Released(event=event, what=what))

    @property
    def _uncertain_steps(self) -> int:
        """Steps that may have been taken and are not written."""
        current = self.ledger.spending.open_round
        return current.uncertain_steps if current else 0

    def _check_settled(self) -> None:
        """Refuse to go on where another process stopped before that is counted."""
        if self._is_inherited:
            raise RuntimeError("an interrupted round is not settled; begin it anew")

    def _check_limits(
        self, spent: Events, others: Events, planned: Event, what: str
    ) -> None:
        """Raise :class:`BudgetExceeded` where a limit would be passed."""
        taken = sum(event.steps for event in spent)
        if self._max_steps is not None and taken + planned.steps > self._max_steps:
            raise BudgetExceeded(
                f"{what} needs {planned.steps:,} steps, {taken:,} of the plan's "
                f"{self._max_steps:,} are on account already; nothing was trained "
                "(privacy.spare_steps are for what crashes repeat)"
            )
        limits = (
            (self._run_budget, spent, "the plan's budget"),
            (self._account_limit, merged((*others, *spent)), "this silo's own limit"),
        )
        for budget, before, whose in limits:
            if budget is None or not would_exceed(budget, before, (planned,)):
                continue
            spent_so_far = epsilon(before, budget.delta)
            after = epsilon(merged((*before, planned)), budget.delta)
            raise BudgetExceeded(
                f"{what} needs {planned.steps:,} steps, which would bring epsilon from "
                f"{spent_so_far:.4g} to {after:.4g} at delta {budget.delta:g}, above "
                f"{whose} of {budget.epsilon:g}; nothing was trained"
            )
