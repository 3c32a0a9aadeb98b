"""Errors of the simulation.

SimulationError
├── EncryptionFailed   this machine cannot encrypt, as the plan wants it
├── SettingsRejected   the plan's [simulation] table, or the run folder, is wrong
└── SiloFailed         a silo's process ended before the run did
"""


class SimulationError(Exception):
    """Base of all errors of this package; one line for a person."""


class EncryptionFailed(SimulationError):
    """TenSEAL is not installed, or a process of it crashed."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f'protection.method "bfv" needs TenSEAL, which does not work here: {why}'
        )


class SettingsRejected(SimulationError):
    """The ``[simulation]`` table is wrong, or the run folder cannot be used."""


class SiloFailed(SimulationError):
    """A silo's process ended before the run did; says what it printed last."""
