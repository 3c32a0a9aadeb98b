"""Where the aggregator's files lie."""

from dataclasses import dataclass
from pathlib import Path

from protocol.plan import RunPlan

IDENTITY_FILE = "identity.key"
PUBLIC_FILE = "identity.pub"
INITIAL_FILE = "initial.safetensors"
AUXILIARY_FILE = "auxiliary.npz"
RUNS_FOLDER = "runs"


@dataclass(frozen=True)
class AggregatorFolder:
    """The files of one aggregator, below one folder."""

    root: Path

    @property
    def identity(self) -> Path:
        """The identity key, readable by its owner alone."""
        return self.root / IDENTITY_FILE

    @property
    def public(self) -> Path:
        """The public key, which every plan of this aggregator names."""
        return self.root / PUBLIC_FILE

    @property
    def initial(self) -> Path:
        """The parameters that a plan begins with, where it names a file."""
        return self.root / INITIAL_FILE

    @property
    def auxiliary(self) -> Path:
        """Public auxiliary images, where a plan names some."""
        return self.root / AUXILIARY_FILE

    def run(self, plan: RunPlan) -> Path:
        """The folder of one run: transcript, checkpoints, the finished model."""
        return self.root / RUNS_FOLDER / f"{plan.name}-{plan.run.hex()}"
