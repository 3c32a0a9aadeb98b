"""Secure aggregation a second time, slow and obvious, straight from docs/protocol.md.

Nothing here uses ``crypto``: the primitives are ``tests/crypto/references.py`` and the
``cryptography`` package. Silos are lists of indices, parts are lists of dictionaries
with ``num_words`` and ``contributors``, as in the JSON files of ``tests/vectors``.
"""

import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from tests.crypto.references import digest, hkdf, keystream, labelled

WORD = 1 << 64


def bitmap(silos, num_silos: int) -> bytes:
    """Bit i of byte i // 8, counted from the lowest, is silo i."""
    data = bytearray((num_silos + 7) // 8)
    for silo in silos:
        data[silo // 8] |= 1 << (silo % 8)
    return bytes(data)


def setup_digest(case: dict) -> bytes:
    """T0, over parameters, keys (the aggregator's first), run and setup number."""
    names = ("num_silos", "threshold", "min_cohort", "max_colluding", "slots_per_setup")
    numbers = [case[name] for name in names]
    config = struct.pack(">5IB", *numbers, case["trust"] == "malicious")
    keys = bytes.fromhex(case["aggregator"] + "".join(case["roster"]))
    name = bytes.fromhex(case["run"]) + struct.pack(">I", case["setup"])
    return digest(b"cloister/1/setup-digest", config, keys, name)


def keys_digest(t0: bytes, keys_body: bytes) -> bytes:
    """T1."""
    return digest(b"cloister/1/keys-digest", t0, keys_body)


def members_digest(t1: bytes, members, num_silos: int) -> bytes:
    """T2."""
    return digest(b"cloister/1/members-digest", t1, bitmap(members, num_silos))


def slot_digest(t2: bytes, slot: dict, num_silos: int) -> bytes:
    """T3, over slot and round, model, cohort, and the parts inside the cohort."""
    parts = struct.pack(">H", len(slot["parts"]))
    for part in slot["parts"]:
        inside = set(part["contributors"]) & set(slot["cohort"])
        parts += struct.pack(">Q", part["num_words"]) + bitmap(inside, num_silos)
    return digest(
        b"cloister/1/slot-digest",
        t2,
        struct.pack(">2I", slot["slot"], slot["round_number"]),
        bytes.fromhex(slot["model_digest"]),
        bitmap(slot["cohort"], num_silos),
        parts,
    )


def commitment(t0: bytes, silo: int, slot: int, mask_seed: bytes) -> bytes:
    """What a silo advertises of its mask seed."""
    place = struct.pack(">HI", silo, slot)
    return digest(b"cloister/1/mask-seed-commitment", t0, place, mask_seed)


def sum_digest(t3: bytes, words: list[int]) -> bytes:
    """What SUM says of a slot's sum."""
    return digest(b"cloister/1/sum-digest", t3, struct.pack(f"<{len(words)}Q", *words))


def public_of(agreement_key: bytes) -> bytes:
    """X25519 of a secret key and the base point."""
    key = X25519PrivateKey.from_private_bytes(agreement_key)
    return key.public_key().public_bytes_raw()


def exchange(agreement_key: bytes, public: bytes) -> bytes:
    """X25519 of a secret key and a peer's point."""
    key = X25519PrivateKey.from_private_bytes(agreement_key)
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def self_mask(mask_seed: bytes, t3: bytes, part: int, silo: int, num_words: int):
    """A silo's own mask of one part, as integers."""
    info = labelled(b"cloister/1/self-mask", t3 + struct.pack(">2H", part, silo))
    return keystream(hkdf(mask_seed, info, 32), num_words).tolist()


def pairwise_mask(secret: bytes, t3: bytes, part: int, pair, num_words: int):
    """The mask of one part between two silos, as integers."""
    place = struct.pack(">3H", part, min(pair), max(pair))
    info = labelled(b"cloister/1/pairwise-mask", t3 + place)
    return keystream(hkdf(secret, info, 32), num_words).tolist()


def masked_words(
    slot: dict,
    t3: bytes,
    silo: int,
    words: list[int],
    seed: bytes,
    key: bytes,
    publics: list[bytes],
) -> list[int]:
    """The silo's words of all its parts in a row, masked."""
    masked: list[int] = []
    for index, part in enumerate(slot["parts"]):
        group = sorted(set(part["contributors"]) & set(slot["cohort"]))
        if silo not in group:
            continue
        size = part["num_words"]
        own, words = words[:size], words[size:]
        terms = [own, self_mask(seed, t3, index, silo, size)]
        for peer in group:
            if peer != silo:
                secret = exchange(key, publics[peer])
                mask = pairwise_mask(secret, t3, index, (silo, peer), size)
                terms.append(mask if peer > silo else [-word for word in mask])
        masked += [sum(column) % WORD for column in zip(*terms, strict=True)]
    return masked
