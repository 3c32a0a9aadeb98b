"""``python -m tests.crypto.secagg.make_vectors``: write ``tests/vectors/secagg``.

Everything is computed by ``references.py``, which shares no code with ``crypto``, from
secrets that are SHA-256 of their names. Run it when the protocol's version changes.
"""

import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.crypto.secagg import reference_run, references
from tests.crypto.secagg.refusals import make_refusals
from tests.crypto.vectors import FOLDER

SOURCE = (
    "Computed for Cloister, protocol version 1, by "
    "tests/crypto/secagg/reference_run.py, which shares no code with crypto/."
)


def secret(name: str) -> bytes:
    """Return 32 bytes that stand for a secret of this name."""
    return hashlib.sha256(name.encode()).digest()


def identity_public(name: str) -> str:
    """Return the public half of an identity key, in hexadecimal."""
    key = Ed25519PrivateKey.from_private_bytes(secret(name))
    return key.public_key().public_bytes_raw().hex()


def make_slot_case(num_silos: int, threshold: int, **fields) -> dict:
    """Return one slot from its parameters to one silo's masked vector."""
    agreement = [secret(f"agreement {silo}") for silo in range(num_silos)]
    case = {
        "num_silos": num_silos,
        "threshold": threshold,
        "min_cohort": 3,
        "max_colluding": 1,
        "slots_per_setup": 2,
        "trust": "malicious",
        "roster": [identity_public(f"silo {i}") for i in range(num_silos)],
        "aggregator": identity_public("aggregator"),
        "run": bytes(range(16)).hex(),
        "keys_body": b"body of KEYS".hex(),
        "model_digest": secret("model").hex(),
        "publics": [references.public_of(key).hex() for key in agreement],
        **fields,
    }
    silo, seed = case["silo"], secret("mask seed")
    t0 = references.setup_digest(case)
    t1 = references.keys_digest(t0, bytes.fromhex(case["keys_body"]))
    t2 = references.members_digest(t1, case["members"], num_silos)
    t3 = references.slot_digest(t2, case, num_silos)
    publics = [bytes.fromhex(public) for public in case["publics"]]
    words = [int(word) for word in case["words"]]
    masked = references.masked_words(
        case, t3, silo, words, seed, agreement[silo], publics
    )
    return case | {
        "digests": [t.hex() for t in (t0, t1, t2, t3)],
        "mask_seed": seed.hex(),
        "agreement_key": agreement[silo].hex(),
        "commitment": references.commitment(t0, silo, case["slot"], seed).hex(),
        "masked": [str(word) for word in masked],
    }


def slot_cases() -> list[dict]:
    """One part for three silos; three parts for nine silos, of whom one is lost."""
    dealt = [
        {"num_words": 2, "contributors": [0, 2, 4, 6, 8]},
        {"num_words": 3, "contributors": [1, 3, 5, 7]},
        {"num_words": 1, "contributors": [2, 3, 4, 8]},
    ]
    return [
        make_slot_case(
            3,
            3,
            setup=9,
            members=[0, 1, 2],
            slot=1,
            round_number=5,
            cohort=[0, 1, 2],
            parts=[{"num_words": 4, "contributors": [0, 1, 2]}],
            silo=1,
            words=["0", "1", "2", str(2**64 - 1)],
        ),
        make_slot_case(
            9,
            7,
            setup=2**32 - 1,
            members=list(range(9)),
            slot=0,
            round_number=2**32 - 1,
            cohort=[0, 1, 2, 3, 5, 6, 7, 8],
            parts=dealt,
            silo=8,
            words=["5", "6", "7"],
        ),
    ]


def given_run() -> dict:
    """Four silos, threshold three, two slots, with every secret that they draw.

    In slot 0 silo 3 is lost before its upload. In slot 1 the vector is dealt in two
    parts, silo 3 contributes to none, and silo 1 is lost before REVEAL.
    """
    return {
        "num_silos": 4,
        "threshold": 3,
        "min_cohort": 3,
        "max_colluding": 1,
        "slots_per_setup": 2,
        "trust": "malicious",
        "run": secret("run")[:16].hex(),
        "setup": 7,
        "aggregator_key": secret("aggregator").hex(),
        "silos": [given_silo(silo) for silo in range(4)],
        "slots": [
            {
                "slot": 0,
                "round_number": 1,
                "model_digest": secret("model of round 1").hex(),
                "head": given_head(1),
                "cohort": [0, 1, 2, 3],
                "lost_before": {"masked": [3], "confirm": [], "reveal": []},
                "parts": [{"num_words": 3, "contributors": [0, 1, 2, 3]}],
                "words": [given_words(silo, 0, 3) for silo in range(4)],
            },
            {
                "slot": 1,
                "round_number": 2,
                "model_digest": secret("model of round 2").hex(),
                "head": given_head(2),
                "cohort": [0, 1, 2, 3],
                "lost_before": {"masked": [], "confirm": [], "reveal": [1]},
                "parts": [
                    {"num_words": 2, "contributors": [0, 1, 2]},
                    {"num_words": 3, "contributors": [0, 1, 2]},
                ],
                "words": [*(given_words(silo, 1, 5) for silo in range(3)), []],
            },
        ],
    }


def given_silo(silo: int) -> dict:
    """What a silo draws in one setup, and its identity key."""
    agreement = [secret(f"agreement {silo} {slot}").hex() for slot in range(2)]
    return {
        "identity_key": secret(f"silo {silo}").hex(),
        "channel_key": secret(f"channel {silo}").hex(),
        "mask_seeds": [secret(f"mask seed {silo} {slot}").hex() for slot in range(2)],
        "agreement_keys": agreement,
        "dealing_seed": secret(f"dealing seed {silo}").hex(),
    }


def given_head(size: int) -> str:
    """What silos are shown of a transcript: 104 bytes, opaque here."""
    names = (f"root {size}", f"head {size}", f"signature {size}")
    return (size.to_bytes(8, "big") + b"".join(map(secret, names))).hex()


def given_words(silo: int, slot: int, num_words: int) -> list[str]:
    """Packed words of one silo, as decimal numbers."""
    return [
        str(int.from_bytes(secret(f"word {silo} {slot} {word}")[:8], "big"))
        for word in range(num_words)
    ]


def save(name: str, cases: list[dict]) -> None:
    """Write one file of cases."""
    content = {"source": SOURCE, "cases": cases}
    path = FOLDER / "secagg" / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Write every file."""
    save("generate", slot_cases())
    whole_run = reference_run.play(given_run())
    save("whole_run", [whole_run])
    save("invalid", make_refusals(whole_run))


if __name__ == "__main__":
    main()
