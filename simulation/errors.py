"""Errors of the simulation.

SimulationError
├── SettingsRejected   the plan's [simulation] table, or the run folder, is wrong
└── SiloFailed         a silo's process ended before the run did
"""


class SimulationError(Exception):
    """Base of all errors of this package; one line for a person."""


class SettingsRejected(SimulationError):
    """The ``[simulation]`` table is wrong, or the run folder cannot be used."""


class SiloFailed(SimulationError):
    """A silo's process ended before the run did; says what it printed last."""
