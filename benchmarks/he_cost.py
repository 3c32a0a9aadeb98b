"""What one round costs under a protection, and how it is clocked.

A round is what lies between updates at the silos and the mean at all of them: one
silo encrypts, the aggregator adds up all uploads, one silo decrypts. Training, sockets
and TLS are the same everywhere and left out.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

STAGES = ("encrypt", "add", "decrypt")
"""By a silo, by the aggregator for all silos, by a silo."""
Rows = list[tuple[str, float, str, str]]


@dataclass
class Seconds:
    """Seconds of CPU, of this process and its children, and of the wall."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Add what happens inside."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.cpu += cpu_seconds() - cpu
        self.wall += time.perf_counter() - wall

    def times(self, factor: float) -> "Seconds":
        """Return a multiple, for linear extrapolation."""
        return Seconds(self.cpu * factor, self.wall * factor)


@dataclass(frozen=True, kw_only=True)
class RoundCost:
    """Seconds by stage, and bytes of one silo's upload and of the protected sum.

    Attributes:
        num_openers: how many silos are sent the sum in its protected form.
        opened_bytes: what each of them sends back, if the aggregator asks.
        max_error: largest error of a value of the mean against exact arithmetic on
            what was protected (integers, or real numbers with CKKS), in its own unit.
    """

    stages: dict[str, Seconds]
    num_silos: int
    upload_bytes: float
    sum_bytes: float
    num_openers: int
    opened_bytes: float
    max_error: float

    @property
    def cpu(self) -> float:
        """Return seconds of CPU from the update to the mean: the three stages."""
        return sum(each.cpu for each in self.stages.values())

    @property
    def wall(self) -> float:
        """Return the same in seconds of the wall."""
        return sum(each.wall for each in self.stages.values())

    @property
    def all_bytes(self) -> float:
        """Return the bytes of all silos and both directions, but for the new model."""
        opening = self.num_openers * (self.sum_bytes + self.opened_bytes)
        return self.num_silos * self.upload_bytes + opening

    def with_stages(self, stages: dict[str, Seconds], max_error: float) -> "RoundCost":
        """Return the cost with other seconds and another error."""
        return replace(self, stages=stages, max_error=max_error)

    def times(self, factor: float) -> "RoundCost":
        """Return the cost of a vector so many times as long."""
        return replace(
            self,
            stages={name: each.times(factor) for name, each in self.stages.items()},
            upload_bytes=self.upload_bytes * factor,
            sum_bytes=self.sum_bytes * factor,
            opened_bytes=self.opened_bytes * factor,
        )

    def rows(self, name: str, num_parameters: int) -> Rows:
        """Return the cost as rows."""
        rows: Rows = []
        for stage, each in self.stages.items():
            rows.append((f"{name}: {stage}", each.cpu, "CPU s", ""))
            rows.append((f"{name}: {stage}, wall", each.wall, "s", ""))
        return [
            *rows,
            (f"{name}: whole round", self.cpu, "CPU s", ""),
            (f"{name}: whole round, wall", self.wall, "s", ""),
            (f"{name}: upload", self.upload_bytes / 1e6, "MB", ""),
            (
                f"{name}: upload, each",
                self.upload_bytes / num_parameters,
                "B/parameter",
                "",
            ),
            (f"{name}: protected sum", self.sum_bytes / 1e6, "MB", ""),
            (f"{name}: all silos, both ways", self.all_bytes / 1e6, "MB", ""),
            (f"{name}: largest error of the mean", self.max_error * 1e9, "1e-9", ""),
        ]


def cpu_seconds() -> float:
    """Return seconds of CPU of this process and of its living children.

    Children are counted in ticks of the kernel, usually 10 ms.
    """
    return time.process_time() + sum(map(_ticks, _children())) / os.sysconf(
        "SC_CLK_TCK"
    )


def _children() -> list[int]:
    """Return the process numbers of the living children."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(number) for each in lists for number in each.read_text().split()]


def _ticks(process: int) -> int:
    """Return user and system time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
