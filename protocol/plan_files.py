"""Drafts and plans as TOML files: read strictly, written whole, signatures verified."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from crypto import labels
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.signatures import sign, verify
from protocol.encoding import from_table, to_table
from protocol.errors import EncodingError, PlanRejected
from protocol.files import save_bytes
from protocol.plan import PlanDraft, RunPlan

MAX_PLAN_BYTES = 1 << 20


Draft = TypeVar("Draft", bound="PlanDraft")


def load_draft(path: Path) -> tuple[PlanDraft, Mapping[str, Any]]:
    """Return a draft from its TOML file, and its ``[simulation]`` table as it stands.

    Raises:
        PlanRejected: unreadable, or a field is unknown, missing or wrong; one line
            that names file and field.
    """
    table = dict(_read_toml(path))
    simulation = table.pop("simulation", {})
    for name in ("silos", "aggregator", "nonce", "signature"):
        if name in table:
            raise PlanRejected(f"{path}: {name}: belongs to a finished plan, not here")
    return _build(PlanDraft, table, path), simulation


def save_plan(path: Path, plan: RunPlan, identity: IdentityKey) -> None:
    """Write a plan with its signature, whole or not at all.

    Raises:
        PlanRejected: the identity is not the aggregator of the plan.
    """
    if identity.public != plan.aggregator_key:
        raise PlanRejected("the plan names another aggregator's identity key")
    table = to_table(plan)
    signature = sign(identity, labels.PLAN, plan.digest)
    table["signature"] = {"aggregator": signature.hex()}
    save_bytes(path, tomli_w.dumps(_without_none(table)).encode())


def load_unsigned_plan(path: Path) -> RunPlan:
    """Return a plan from its TOML file, whatever its signature.

    Raises:
        PlanRejected: unreadable or malformed; one line that names file and field.
    """
    table = dict(_read_toml(path))
    table.pop("signature", None)
    return _build(RunPlan, table, path)


def load_plan(path: Path) -> RunPlan:
    """Return a plan from its TOML file, its signature verified.

    Raises:
        PlanRejected: unreadable, malformed, or not signed by the aggregator that it
            names; one line that names file and field.
    """
    table = dict(_read_toml(path))
    if "silos" not in table and "aggregator" not in table:
        raise PlanRejected(
            f"{path}: is a draft without parties; make a plan of it with "
            "`aggregator plan make`"
        )
    signature = table.pop("signature", None)
    plan = _build(RunPlan, table, path)
    try:
        verify(
            plan.aggregator_key,
            labels.PLAN,
            plan.digest,
            bytes.fromhex(signature["aggregator"]),
        )
    except (TypeError, KeyError, ValueError, InvalidSignature):
        raise PlanRejected(
            f"{path}: the signature of the aggregator is missing or wrong"
        ) from None
    return plan


def describe(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every field of a plan's table with its dotted name, for people to read."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from describe(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, item in enumerate(value):
            yield from describe(item, f"{where}[{index}]")
    else:
        yield where, str(value)


def _read_toml(path: Path) -> Mapping[str, Any]:
    """Return the tables of a TOML file of bounded size."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise PlanRejected(f"{path}: {error.strerror}") from None
    if len(data) > MAX_PLAN_BYTES:
        raise PlanRejected(f"{path}: larger than {MAX_PLAN_BYTES:,} bytes")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise PlanRejected(f"{path}: not valid TOML: {error}") from None


def _build(kind: type[Draft], table: Mapping[str, Any], path: Path) -> Draft:
    """Return the draft or plan of a table, errors prefixed with the file."""
    try:
        return from_table(kind, table)
    except EncodingError as error:
        raise PlanRejected(f"{path}: {error}") from None


def _without_none(table: Any) -> Any:
    """Return a table without its empty optional fields, which TOML cannot write."""
    if isinstance(table, Mapping):
        items = table.items()
        return {name: _without_none(item) for name, item in items if item is not None}
    if isinstance(table, list):
        return [_without_none(item) for item in table]
    return table
