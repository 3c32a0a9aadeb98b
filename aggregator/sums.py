"""The sum of a round's updates: what is asked, what comes back, and the plain way.

The hidden ways are ``aggregator.masked_sum`` and ``aggregator.encrypted_sum``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from aggregator.averaging import Words
from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import READY, Exchanges, Stage
from aggregator.witnessing import Place, Request, Witnesses
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage
from crypto.frame import OVERHEAD_BYTES
from crypto.ring import add_into
from crypto.secagg.aggregator_base import AggregatorBase
from crypto.secagg.parts import Part, Parts, own_places, total_words, within, words_of
from protocol import records
from protocol.envelope import Kind, RoundRequest, model_digest, open_envelope
from protocol.float_form import weighted_sum, words_to_floats
from protocol.heads import Head, ShownHead
from protocol.plan import RunPlan
from protocol.stretches import (
    Agreed,
    Dealing,
    dealt_record,
    make_dealing,
    without_setup,
)


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

    def request(
        self, shown: ShownHead, attempt: int, *, sum_notice: bytes = b""
    ) -> Request:
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
        self, shown: ShownHead, attempt: int, *, sum_notice: bytes = b""
    ) -> RoundRequest:
        """Return the request to every silo."""
        return RoundRequest(
            round_number=self.round_number,
            attempt=attempt,
            shown=shown,
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


def agreed_in(side: AggregatorBase[Any]) -> Agreed:
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

    def __init__(self, exchanges: Exchanges, witnesses: Witnesses) -> None:
        self._exchanges, self._plan = exchanges, exchanges.plan
        self._witnesses = witnesses

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
        if dealing.is_dealt:
            self._exchanges.transcript.append(dealt_record(self._plan, place, dealing))
        total: _Total = _GridTotal(dealing.parts)
        if self._plan.update.form == "float32" and isinstance(task, RoundTask):
            weights = self._plan.relative_weights()
            total = _FloatTotal(dealing.parts, weights, task.num_values)
        survivors = self._ask(task, head, place, total)
        names = self._exchanges.names(survivors)
        self._exchanges.transcript.append(records.Survivors(**place, silos=names))
        return total.of(survivors)

    def _ask(
        self, task: Task, head: Head, place: Mapping[str, int], total: "_Total"
    ) -> tuple[int, ...]:
        """Take in every silo's update; return whose arrived.

        Raises:
            CohortTooSmall: too few did.
        """

        def take(silo: int, reply: BytesLike) -> int:
            _, body = open_envelope(self._plan, reply, sender=silo, kinds=(Kind.PLAIN,))
            total.add(silo, body)
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

        stage = Stage(
            name=task.stage,
            round_number=task.round_number,
            deadline_seconds=self._plan.deadlines.training_seconds,
            max_reply_bytes=8 * total_words(total.parts) + OVERHEAD_BYTES,
        )
        everyone = range(len(self._plan.silos))
        makers = dict.fromkeys(everyone, partial(task.request, attempt=1))
        survivors = self._witnesses.ask(stage, makers, head, take, Place(task.kind))
        if len(survivors) < self._plan.protection.min_cohort:
            raise CohortTooSmall(
                f"{len(survivors)} silos answered, the smallest cohort is "
                f"{self._plan.protection.min_cohort}"
            )
        return survivors


class _Total(Protocol):
    """Updates that arrive in the clear, as they are added up."""

    parts: Parts

    def add(self, silo: int, body: memoryview) -> None:
        """Add one silo's update."""
        ...

    def of(self, survivors: tuple[int, ...]) -> Sum:
        """Return the sum of all that was added."""
        ...


class _GridTotal:
    """Updates on a grid: fields are added as they come."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._words = np.zeros(total_words(parts), dtype=np.uint64)

    def add(self, silo: int, body: memoryview) -> None:
        """Add one silo's stretches."""
        words = _words(body, words_of(self.parts, silo))
        for _, own, whole in own_places(self.parts, silo):
            add_into(self._words[whole], words[own])

    def of(self, survivors: tuple[int, ...]) -> Sum:
        """Return the sum.

        Raises:
            RoundAborted: there is a stretch that none of the survivors fills.
        """
        parts = within(self.parts, survivors)
        if not all(part.contributors for part in parts):
            raise RoundAborted("nobody of the group of a part has answered")
        return Sum(self._words, survivors, parts)


class _FloatTotal:
    """Updates of form "float32": kept, and added up in the order of the silos."""

    def __init__(self, parts: Parts, weights: Sequence[float], num_values: int) -> None:
        self.parts, self._weights, self._num_values = parts, weights, num_values
        self._floats: dict[int, Words] = {}

    def add(self, silo: int, body: memoryview) -> None:
        """Keep one silo's values; NaN and infinity are refused."""
        self._floats[silo] = words = _words(body, words_of(self.parts, silo))
        words_to_floats(words, self._num_values)

    def of(self, survivors: tuple[int, ...]) -> Sum:
        """Return the weighted sum, in float64."""
        total = weighted_sum(self._floats, self._weights, self._num_values)
        return Sum(total, survivors, (Part(total.size, survivors),))


def _words(body: memoryview, num_words: int) -> Words:
    """Return the words of an update of this length.

    Raises:
        MalformedMessage: of another length.
    """
    if len(body) != 8 * num_words:
        raise MalformedMessage(f"an update of {len(body):,} bytes")
    return np.frombuffer(body, dtype="<u8")
