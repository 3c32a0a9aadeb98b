"""A decrypted vector whose slots stay in the child processes until asked for."""

from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from crypto.bfv.lanes import IN_FLIGHT, Lane, in_order
from crypto.bfv.parameters import PLAIN_MODULUS, POLY_DEGREE, Slots
from crypto.bfv.pipes import Code
from crypto.bfv.process import Answer
from crypto.errors import WorkerFailed


class Decrypted:
    """What may be known of a vector before it is known to be the confirmed sum.

    ``residuals`` are those of :mod:`crypto.bfv.tags`, summed over all blocks modulo t;
    ``noise_budget_bits`` is the smallest of all ciphertexts, 0 where one is too noisy.
    """

    def __init__(
        self, number: int, lanes: list[Lane], answers: list[Answer], sizes: list[int]
    ) -> None:
        """Take what the lanes' children said of each block, and hold its number."""
        self.residuals = (
            sum(answer.numbers[0] for answer in answers) % PLAIN_MODULUS,
            sum(answer.numbers[1] for answer in answers) % PLAIN_MODULUS,
        )
        self.noise_budget_bits = min(answer.numbers[2] for answer in answers)
        self._number = number
        self._lanes = lanes
        self._sizes = sizes
        self._is_held = True

    def slots(self) -> Iterator[Slots]:
        """Have the children give the slots out, block for block, once.

        Yields:
            uint64 ``[c, N]``, each below t, in the order of the blocks.

        Raises:
            RuntimeError: they were given out or discarded before.
            WorkerFailed: a child has died since.
        """
        if not self._is_held:
            raise RuntimeError("these slots were given out or discarded")
        self._is_held = False
        return self._release()

    def discard(self) -> None:
        """Have the children forget the slots that they still hold."""
        self._is_held = False
        for lane in set(self._lanes):
            lane.tell(Code.DISCARD, self._number)

    def _release(self) -> Iterator[Slots]:
        """Yield the blocks; have the rest forgotten if nobody wants it."""
        jobs = ((lane, self._ask(lane)) for lane in self._lanes)
        num_in_flight = IN_FLIGHT * len(set(self._lanes))
        try:
            for (_, answer), num in zip(
                in_order(jobs, num_in_flight), self._sizes, strict=True
            ):
                yield polynomials(answer, num)
        finally:
            self.discard()

    def _ask(self, lane: Lane) -> Future[Answer]:
        """Ask for the next block that a lane's child holds."""
        return lane.submit_to_holder(
            self._number, lambda child: child.request(Code.RELEASE, self._number)
        )


def polynomials(answer: Answer, num: int) -> npt.NDArray[np.uint64]:
    """Return the residues or slots ``[num, N]`` of an answer.

    Raises:
        WorkerFailed: the answer has another length.
    """
    if answer.body.size != num * POLY_DEGREE * 8:
        raise WorkerFailed("a child process gave an answer of another length")
    return answer.body.view("<u8").reshape(num, POLY_DEGREE)
