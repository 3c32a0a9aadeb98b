"""When FedDDPM+ corrects: once, in the first round in which learning has become slow.

The auxiliary loss L_t is measured after each round t with the same images, timesteps
and noise. With m_t = (L_(t-w+1) + … + L_t) / w, learning is slow when

    (m_(t-1) - m_t) / m_(t-1) < tau

for window w and tau = ``min_improvement``: so not before w + 1 rounds were measured,
and also when the loss rises. The papers name no rule; this one is ours.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class SlowLearning:
    """What the rule remembers from round to round.

    ``losses`` are the latest ones, at most window + 1; ``fired_in`` the round in which
    learning was found to be slow, 0 before. Once it has fired it never does so again.
    """

    losses: tuple[float, ...] = ()
    fired_in: int = 0

    def after(
        self, round_number: int, loss: float, *, window: int, min_improvement: float
    ) -> "SlowLearning":
        """Return what to remember after one more round; this one stays as it is.

        Args:
            loss: the auxiliary loss after the round, before any correction. One that is
                not finite is no improvement.
        """
        if self.fired_in:
            return self
        losses = (*self.losses, loss)[-(window + 1) :]
        is_slow = len(losses) == window + 1 and not (
            improvement(losses) >= min_improvement
        )
        return replace(self, losses=losses, fired_in=round_number if is_slow else 0)


def improvement(losses: tuple[float, ...]) -> float:
    """Return by what part of itself the moving average fell with the last loss.

    Args:
        losses: w + 1 of them, for a window of w.
    """
    before, now = math.fsum(losses[:-1]), math.fsum(losses[1:])
    return (before - now) / before if before > 0 else 0.0
