"""Which silos are invited to a setup, and when a new one is worth its exchanges."""

from collections.abc import Collection, Iterable, Mapping

MAX_BACK_OFF_ROUNDS = 64


class Membership:
    """The silos of a plan, without those that must be left out.

    A silo that deals envelopes which do not open, or wrong shares, would spoil every
    setup. It is left out of the next ones once it is certain that it, and not an
    accuser, is at fault, as long as no more than ``max_colluding`` silos lie.

    A silo that was absent from a setup is invited again, but not at once in every
    round: after 1 round, then after 2, 4, … (at most 64), because a new setup costs
    every silo an exchange of keys. A silo that rests is absent from the setups of one
    round, whatever it says.

    Args:
        num_silos: of the plan.
        max_colluding: silos that may lie.
        excluded: silos left out before, in this run.
    """

    def __init__(
        self, num_silos: int, max_colluding: int, excluded: Iterable[int] = ()
    ) -> None:
        self._num_silos, self._max_colluding = num_silos, max_colluding
        self._excluded = set(excluded)
        self._convicted: set[int] = set()
        self._resting: set[int] = set()
        self._back_off, self._next_round = 1, 0

    @property
    def invited(self) -> tuple[int, ...]:
        """The silos that take part in the next setup, if they answer."""
        return tuple(s for s in self._welcome if s not in self._resting)

    def rest(self, silo: int) -> None:
        """Invite a silo to no further setup in this round: with it none came about."""
        self._resting.add(silo)

    def wake(self) -> None:
        """Invite those again that rested in the round before."""
        self._resting.clear()

    def convict(self, dealer: int | None) -> None:
        """Note the silo whose shares are certainly wrong, if it is known."""
        if dealer is not None and dealer not in self._excluded:
            self._convicted.add(dealer)

    def exclude_accused(
        self, accusations: Mapping[int, Collection[int]]
    ) -> list[tuple[int, str]]:
        """Leave out who is convicted, or accused by more silos than may be lying.

        Args:
            accusations: by silo, those that accuse it.

        Returns:
            The silos that were left out now, with the reason.
        """
        reasons = dict.fromkeys(self._convicted, "dealt wrong shares")
        for silo, accusers in accusations.items():
            count = len(set(accusers) - {silo})
            if count > self._max_colluding:
                reasons[silo] = f"dealt envelopes that do not open, say {count} others"
        news = sorted((s, why) for s, why in reasons.items() if s not in self._excluded)
        self._excluded.update(silo for silo, _ in news)
        self._convicted.clear()
        return news

    def wants_setup(
        self,
        joined: Collection[int],
        round_number: int,
        attempt: int,
        *,
        members: Collection[int] = (),
    ) -> bool:
        """Return whether a round should begin with a new setup.

        It should when a member was left out since; or when a silo of the plan is absent
        and either it is time to invite it again or an attempt at the round has failed.

        Args:
            joined: the members that hold the shares of the others.
            members: of the setup.
        """
        if self._excluded & {*members, *joined}:
            return True
        absent = set(self.invited) - set(joined)
        is_time = attempt > 1 or round_number >= self._next_round
        return bool(absent) and is_time

    def note_setup(self, members: Collection[int], round_number: int) -> None:
        """Take note of a setup: when all are in it, patience begins anew."""
        if set(self._welcome) <= set(members):
            self._back_off = 1
            return
        self._next_round = round_number + self._back_off
        self._back_off = min(2 * self._back_off, MAX_BACK_OFF_ROUNDS)

    @property
    def _welcome(self) -> tuple[int, ...]:
        """The silos that are not left out for good."""
        return tuple(s for s in range(self._num_silos) if s not in self._excluded)
