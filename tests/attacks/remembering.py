"""A federation that keeps silo 0's state as it was after each of its answers."""

from crypto.secagg.config import SecAggConfig
from tests.attacks.table import FIVE
from tests.crypto.secagg.federation import Federation


class Remembering(Federation):
    """Keeps silo 0's state as it was after each of its answers."""

    def __init__(self, config: SecAggConfig = FIVE) -> None:
        super().__init__(config)
        self.saved: dict[str, bytes] = {}

    def keep(self, name: str) -> None:
        self.saved[name] = self.silos[0].to_bytes()

    def advertise(self, silos=None):
        super().advertise(silos)
        self.keep("advertise")

    def share(self, silos=None):
        super().share(silos)
        self.keep("shares")

    def ready(self, silos=None):
        self.silos[0].receive_shares(self.frames["envelopes"][0])
        self.keep("envelopes")
        super().ready(silos)
        self.keep("ready")

    def mask(self, silos):
        super().mask(silos)
        self.keep("masked")

    def confirm(self, silos):
        super().confirm(silos)
        self.keep("confirm")

    def reveal(self, silos):
        total = super().reveal(silos)
        self.keep("reveal")
        return total


def revealed() -> Remembering:
    """Slot 0 of round 1 is over but for SUM."""
    f = Remembering().reach("confirms")
    f.reveal(f.everyone)
    return f
