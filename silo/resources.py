"""What belongs to one silo alone, and goes into all its runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from crypto.bfv.workers import Workers
from crypto.keys import IdentityKey
from privacy.accounting import Budget
from silo.config import CanaryConfig, ComputeConfig
from silo.data import ImageSet
from silo.policy import Policy
from silo.training import Progress


@dataclass(frozen=True, kw_only=True)
class LocalPrivacy:
    """This silo's own matters of a privacy mechanism.

    ``ledgers`` is the folder of all its privacy ledgers; ``limit`` what may ever be
    spent on one privacy unit, None for no limit. ``new_ledger`` leaves earlier ledgers
    on the same data out of account, for all to see. ``insecure_seed`` makes sampling
    and noise predictable: for debugging only; the report fails.
    """

    ledgers: Path | None = None
    limit: Budget | None = None
    new_ledger: bool = False
    insecure_seed: int | None = None
    checkpoint_steps: int = ComputeConfig().checkpoint_steps


@dataclass(frozen=True, kw_only=True)
class LocalResources:
    """What belongs to this silo alone: its key, images, policy, device, eyes.

    ``initial`` is the file of the parameters that a plan may begin with;
    ``inception_weights`` what a plan may measure with; ``privacy`` what a plan with a
    privacy mechanism needs; ``canaries`` how many the silo plants. ``references`` is
    the folder that remembers whose images are in exact sums of features;
    ``repeat_reference`` lets them enter another one. ``make_workers`` gives the
    processes that encrypt and decrypt, where the plan has updates encrypted.
    """

    identity: IdentityKey
    images: ImageSet
    policy: Policy
    device: torch.device
    observe: Callable[[Progress], None] = lambda progress: None
    initial: Path | None = None
    inception_weights: Path | None = None
    privacy: LocalPrivacy = LocalPrivacy()
    canaries: CanaryConfig = CanaryConfig()
    references: Path | None = None
    repeat_reference: bool = False
    make_workers: Callable[[], Workers] = Workers
