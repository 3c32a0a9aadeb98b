"""``python -m tests.crypto.bfv.make_vectors``: write ``tests/vectors/bfv``.

Everything is computed by ``references.py``, which shares no code with ``crypto``. Run
it when the protocol's version changes.
"""

import hashlib
import json

from tests.crypto.bfv import references
from tests.crypto.secagg.make_vectors import identity_public, secret
from tests.crypto.vectors import FOLDER

SOURCE = (
    "Computed for Cloister, protocol version 1, by tests/crypto/bfv/references.py, "
    "which shares no code with crypto/."
)


def drawn(name: str, bits: int) -> int:
    """Return a number below 2^bits that stands for anything."""
    return int.from_bytes(secret(name), "big") % (1 << bits)


def drawn_word(name: str, stretch: dict, num_silos: int) -> int:
    """Return a word whose digits have room for the sum of so many."""
    bits = stretch["digit_bits"]
    most = min(bits, stretch["sum_bits"] - (num_silos - 1).bit_length())
    planes = range(64 // bits)
    return sum(drawn(f"{name} {p}", most) << p * bits for p in planes)


def digit_case(num_silos: int, *stretches: tuple[int, int, int]) -> dict:
    """Return vectors of some silos as slots, and their sum."""
    names = ("num_words", "digit_bits", "sum_bits")
    layout = [dict(zip(names, stretch, strict=True)) for stretch in stretches]
    words = [
        [
            drawn_word(f"{silo} {index} {number}", stretch, num_silos)
            for index, stretch in enumerate(layout)
            for number in range(stretch["num_words"])
        ]
        for silo in range(num_silos)
    ]
    slots = [references.slots_of(own, layout) for own in words]
    total = [sum(column) % 2**64 for column in zip(*words, strict=True)]
    return {
        "stretches": layout,
        "words": [list(map(str, own)) for own in words],
        "slots": [list(map(str, own)) for own in slots],
        "num_ciphertexts": references.num_ciphertexts(len(slots[0])),
        "total": list(map(str, total)),
    }


def digit_cases() -> list[dict]:
    """Every width of a field, halves of whole words, and two stretches in a row."""
    return [
        digit_case(2, (2, 8, 8)),
        digit_case(3, (2, 10, 9)),
        digit_case(4, (3, 12, 11)),
        digit_case(5, (3, 16, 14), (1, 32, 35)),
        digit_case(2, (2, 21, 21)),
        digit_case(2, (3, 32, 30)),
        digit_case(3, (2, 32, 34)),
    ]


def residue_cases() -> list[dict]:
    """Polynomials whose residue i is i times a factor, modulo q."""
    cases = []
    for factor in (0, 1, 2**47 + 3, references.Q - 1):
        residues = [i * factor % references.Q for i in range(references.N)]
        packed = references.pack_residues(residues)
        cases.append(
            {
                "factor": str(factor),
                "first_bytes": packed[:70].hex(),
                "last_bytes": packed[-16:].hex(),
                "packed_sha256": hashlib.sha256(packed).hexdigest(),
            }
        )
    return cases


def tag_case(part: int, silo: int, values: list[int]) -> dict:
    """Return the two tags of one silo's part."""
    key, t3 = secret("shared key"), secret("T3")
    found = references.tags(key, t3, part, silo, values)
    return {
        "secret_key": key.hex(),
        "slot_digest": t3.hex(),
        "part": part,
        "silo": silo,
        "slots": list(map(str, values)),
        "tags": list(map(str, found)),
    }


def tag_cases() -> list[dict]:
    """No values but zero, one, small ones and the largest, in other places."""
    largest = references.T - 1
    return [
        tag_case(0, 0, [0]),
        tag_case(0, 0, [1]),
        tag_case(0, 1, [1, 2, 3]),
        tag_case(1, 999, [drawn(f"slot {i}", 44) for i in range(9)]),
        tag_case(255, 3, [largest, 0, largest]),
    ]


def setup_case(num_silos: int, threshold: int, key_maker: int) -> dict:
    """Return the digests of a setup whose members share a key."""
    case = {
        "num_silos": num_silos,
        "threshold": threshold,
        "min_cohort": 3,
        "max_colluding": 1,
        "slots_per_setup": 16,
        "key_maker": key_maker,
        "roster": [identity_public(f"silo {i}") for i in range(num_silos)],
        "aggregator": identity_public("aggregator"),
        "run": bytes(range(16)).hex(),
        "setup": 7,
        "keys_body": b"body of KEYS".hex(),
        "secret_key": secret("shared key").hex(),
        "members": list(range(num_silos - 1)),
    }
    digests, commitment = references.setup_digests(case)
    return case | {
        "digests": [digest.hex() for digest in digests],
        "commitment": commitment.hex(),
    }


def size_cases() -> list[dict]:
    """The longest frame of every kind, for a few silos and for many."""
    return [
        {
            "num_silos": n,
            "num_words": num_words,
            "num_ciphertexts": c,
            "kind": kind,
            "max_bytes": size,
        }
        for n, num_words, c in ((3, 10, 1), (9, 8_750_000, 2849))
        for kind, size in references.longest_frames(n, num_words, c).items()
    ]


def all_cases() -> dict[str, list[dict]]:
    """Return the cases of every file."""
    return {
        "digits": digit_cases(),
        "residues": residue_cases(),
        "tags": tag_cases(),
        "setup": [setup_case(4, 3, 0), setup_case(9, 6, 8)],
        "sizes": size_cases(),
    }


def main() -> None:
    """Write every file."""
    folder = FOLDER / "bfv"
    folder.mkdir(exist_ok=True)
    for name, cases in all_cases().items():
        content = {"source": SOURCE, "cases": cases}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
