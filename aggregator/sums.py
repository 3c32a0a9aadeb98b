"""The sum of a round's updates: what is asked, what comes back, and the plain way.

The masked way is ``aggregator.secure_sum``.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aggregator.averaging import Words
from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import READY, Exchanges, Stage
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage
from crypto.frame import OVERHEAD_BYTES
from crypto.ring import add_into
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.parts import Part, Parts, own_places, total_words, within, words_of
from protocol import records
from protocol.envelope import Kind, RoundRequest, model_digest, open_envelope
from protocol.float_form import weighted_sum, words_to_floats
from protocol.plan import RunPlan
from protocol.stretches import (
    Agreed,
    Dealing,
    dealt_record,
    make_dealing,
    without_setup,
)
from protocol.transcript import Head


class Request(Protocol):
    """What goes to every silo, to be answered with READY."""

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        ...


class Task(Protocol):
    """What one slot asks of every silo, and how long its vectors are.

    ``kind`` and ``stage`` are those of its request.
    """

    @property
    def kind(self) -> Kind: ...  # noqa: D102

    @property
    def stage(self) -> str: ...  # noqa: D102

    @property
    def round_number(self) -> int: ...  # noqa: D102

    @property
    def field_bits(self) -> int: ...  # noqa: D102

    def request(self, head: Head, attempt: int, *, sum_notice: bytes = b"") -> Request:
        """Return the request to every silo."""
        ...

    def dealing(self, plan: RunPlan, agreed: Agreed) -> Dealing:
        """Return which silos fill which stretch of the vector."""
        ...

    def model_digest(self) -> bytes:
        """Return the digest of all that silos must have received alike."""
        ...


@dataclass(frozen=True, kw_only=True)
class RoundTask:
    """What a round asks of every silo: to train the model from these parameters.

    ``is_held`` says that silos hold the model, which is not sent then. ``lengths`` are
    the words of each stretch of the vector (``protocol.stretches``).
    """

    round_number: int
    parameters: bytes
    ranges: bytes
    lengths: tuple[int, ...]
    field_bits: int
    is_held: bool = False
    kind: Kind = Kind.ROUND
    stage: str = READY

    @property
    def num_values(self) -> int:
        """The number of shared parameters."""
        return len(self.parameters) // 4

    def request(
        self, head: Head, attempt: int, *, sum_notice: bytes = b""
    ) -> RoundRequest:
        """Return the request to every silo."""
        return RoundRequest(
            round_number=self.round_number,
            attempt=attempt,
            head=head,
            model=self.model_digest().hex(),
            parameters=b"" if self.is_held else self.parameters,
            ranges=self.ranges,
            sum_notice=sum_notice,
        )

    def dealing(self, plan: RunPlan, agreed: Agreed) -> Dealing:
        """Return which silos fill which stretch of the vector."""
        return make_dealing(plan, agreed, self.round_number, self.lengths)

    def model_digest(self) -> bytes:
        """Return the digest of parameters and grid that silos sign."""
        return model_digest(self.parameters, self.ranges)


def agreed_in(side: AggregatorSide) -> Agreed:
    """Return what the dealings of a setup follow from."""
    return Agreed(side.members_digest, side.members)


@dataclass(frozen=True)
class Sum:
    """Packed words of the sum, and the silos whose updates it holds.

    ``parts`` are its stretches, each with the survivors that fill it.
    """

    words: Words
    survivors: tuple[int, ...]
    parts: Parts


class Summation(Protocol):
    """How a round's updates become one sum."""

    def sum_round(self, task: Task) -> Sum:
        """Return the sum of a round.

        Raises:
            CohortTooSmall: too few silos, nothing was revealed.
            RoundAborted: the round is closed without a sum.
        """
        ...

    def sum_notice(self) -> bytes:
        """Return what silos are told of the latest sum, if anything."""
        ...


class PlainSum:
    """The sum of updates that arrive in the clear: for comparisons only.

    The silos' policies refuse it unless their operators permit it.
    """

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges, self._plan = exchanges, exchanges.plan

    def sum_notice(self) -> bytes:
        """Return nothing: silos are told of sums in secure aggregation only."""
        return b""

    def sum_round(self, task: Task) -> Sum:
        """Return the sum of a round."""
        head = self._exchanges.transcript.sign_head()
        place = {"round_number": task.round_number, "setup": 0, "slot": 0}
        self._exchanges.transcript.append(
            records.RoundOpened(
                **place,
                attempt=1,
                model=task.model_digest().hex(),
                field_bits=task.field_bits,
            )
        )
        dealing = task.dealing(self._plan, without_setup(self._plan))
        parts = dealing.parts
        if dealing.is_dealt:
            self._exchanges.transcript.append(dealt_record(self._plan, place, dealing))
        total = np.zeros(total_words(parts), dtype=np.uint64)
        floats: dict[int, Words] = {}
        num_values = task.num_values if isinstance(task, RoundTask) else 0
        is_float = num_values > 0 and self._plan.update.form == "float32"

        def take(silo: int, reply: BytesLike) -> int:
            _, body = open_envelope(self._plan, reply, sender=silo, kinds=(Kind.PLAIN,))
            if len(body) != 8 * words_of(parts, silo):
                raise MalformedMessage(f"an update of {len(body):,} bytes")
            words = np.frombuffer(body, dtype="<u8")
            if is_float:
                words_to_floats(words, num_values)  # Refuses NaN and infinity.
                floats[silo] = words
            for _, own, whole in own_places(parts, silo) if not is_float else ():
                add_into(total[whole], words[own])
            self._exchanges.transcript.append(
                records.Masked(
                    **place,
                    silo=self._plan.silos[silo].name,
                    upload=hashlib.sha256(reply).hexdigest(),
                    size_bytes=len(reply),
                    protection="none",
                )
            )
            return len(body)

        request = self._exchanges.envelope(
            task.kind, task.request(head, 1).to_body(), setup=0, slot=0
        )
        stage = Stage(
            name=task.stage,
            round_number=task.round_number,
            deadline_seconds=self._plan.deadlines.training_seconds,
            max_reply_bytes=8 * total_words(parts) + OVERHEAD_BYTES,
        )
        everyone = range(len(self._plan.silos))
        survivors = self._exchanges.ask(stage, dict.fromkeys(everyone, request), take)
        if len(survivors) < self._plan.protection.min_cohort:
            raise CohortTooSmall(
                f"{len(survivors)} silos answered, the smallest cohort is "
                f"{self._plan.protection.min_cohort}"
            )
        names = self._exchanges.names(survivors)
        self._exchanges.transcript.append(records.Survivors(**place, silos=names))
        parts = within(parts, survivors)
        if not all(part.contributors for part in parts):
            raise RoundAborted("nobody of the group of a part has answered")
        if is_float:
            weights = self._plan.relative_weights()
            total = weighted_sum(floats, weights, num_values)
            parts = (Part(total.size, parts[0].contributors),)
        return Sum(total, survivors, parts)
