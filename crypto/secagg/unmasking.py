"""From the revealed shares to the sum: open what was committed, take the masks away."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from crypto.keys import AgreementKey
from crypto.secagg.digests import commit_to_seed
from crypto.secagg.masks import unmask
from crypto.secagg.messages import Advertise, Reveal
from crypto.secagg.parts import Parts, contributors_of
from crypto.secagg.recovery import open_secrets
from crypto.secagg.setup import Setup

Words = npt.NDArray[np.uint64]


def take_masks_away(
    setup: Setup,
    total: Words,
    slot: int,
    *,
    advertised: Mapping[int, Advertise],
    survivors: tuple[int, ...],
    parts: Parts,
    slot_digest: bytes,
    reveals: Mapping[int, bytes],
) -> None:
    """Open what was revealed and unmask the sum, in place.

    Args:
        total: uint64 ``[w]``, the masked sum; overwritten.
        advertised: of the whole cohort.
        parts: with their contributors in the cohort.
        reveals: bodies of REVEAL, by silo.

    Raises:
        MalformedMessage: a REVEAL of another length; the sum is unchanged.
        InvalidShare: shares do not give what a silo committed to; the sum is unchanged.
    """
    concerned = contributors_of(parts, tuple(advertised))
    publics = {silo: advertised[silo].slot_publics[slot] for silo in concerned}
    shares = {
        silo: Reveal.from_bytes(body, len(concerned)).shares
        for silo, body in reveals.items()
    }
    checks = {
        silo: _seed_check(setup, silo, slot, advertised[silo].commitments[slot])
        if silo in survivors
        else _key_check(publics[silo])
        for silo in concerned
    }
    opened = open_secrets(
        shares, setup.config.threshold, checks, max_lying=setup.config.max_colluding
    )
    unmask(
        total,
        {silo: secret for silo, secret in opened.items() if silo in survivors},
        {
            silo: AgreementKey.from_bytes(secret)
            for silo, secret in opened.items()
            if silo not in survivors
        },
        publics,
        slot_digest,
        parts,
    )


def _seed_check(
    setup: Setup, silo: int, slot: int, commitment: bytes
) -> Callable[[bytes], bool]:
    """Return whether a value is the mask seed that a survivor committed to."""
    return lambda secret: commit_to_seed(setup.digest, silo, slot, secret) == commitment


def _key_check(public: bytes) -> Callable[[bytes], bool]:
    """Return whether a value is the agreement key that a dropout advertised."""
    return lambda secret: AgreementKey.from_bytes(secret).public == public
