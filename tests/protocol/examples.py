"""One small plan and its keys, the same in every test of the protocol."""

import copy
import hashlib
from typing import Any

from crypto.keys import IdentityKey
from protocol.encoding import from_table, to_table
from protocol.plan import RunPlan


def make_identity(name: str) -> IdentityKey:
    """Return the same identity key for a name in every test."""
    return IdentityKey.from_bytes(hashlib.sha256(name.encode()).digest())


AGGREGATOR_IDENTITY = make_identity("aggregator")
IDENTITIES = [make_identity(f"silo {index}") for index in range(20)]

DRAFT = {
    "name": "example",
    "num_rounds": 3,
    "seed": 7,
    "model": {
        "architecture": "residual",
        "dim": 16,
        "channels": 1,
        "dim_mults": [1, 2],
        "image_size": 8,
    },
    "training": {"local_steps": 4},
}


def draft_table(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the table of a draft; ``changes`` by dotted name, None removes a field."""
    table: dict[str, Any] = copy.deepcopy(DRAFT)
    for path, value in (changes or {}).items():
        *sections, name = path.split(".")
        section = table
        for part in sections:
            section = section.setdefault(part, {})
        if value is None:
            del section[name]
        else:
            section[name] = value
    return table


def parties(num_silos: int) -> dict[str, Any]:
    """Return the part of a plan's table that a draft lacks."""
    return {
        "nonce": "00" * 16,
        "aggregator": {"identity_key": AGGREGATOR_IDENTITY.public.hex()},
        "silos": [
            {"name": f"silo-{index}", "identity_key": IDENTITIES[index].public.hex()}
            for index in range(num_silos)
        ],
    }


def plan_table(
    changes: dict[str, Any] | None = None, *, num_silos: int = 3
) -> dict[str, Any]:
    """Return the table of a plan, unsigned."""
    return parties(num_silos) | draft_table(changes)


def make_example(
    changes: dict[str, Any] | None = None, *, num_silos: int = 3
) -> RunPlan:
    """Return a plan with fixed nonce and keys."""
    return from_table(RunPlan, plan_table(changes, num_silos=num_silos))


def with_change(plan: RunPlan, path: str, value: Any) -> RunPlan:
    """Return a plan with one field changed, by its dotted name."""
    table = to_table(plan)
    *sections, name = path.split(".")
    section = table
    for part in sections:
        section = section[part]
    section[name] = value
    return from_table(RunPlan, table)
