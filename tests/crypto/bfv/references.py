"""What encryption computes without SEAL a second time, slow, from docs/protocol.md.

Nothing here uses ``crypto``; parameters are written out.
"""

import struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from tests.crypto.references import digest, hkdf, labelled
from tests.crypto.secagg.references import bitmap, keys_digest

N = 4096
Q = 1_152_921_504_606_830_593
T = 35_184_371_884_033
SLOT_BITS = 44


def pack_residues(residues: list[int]) -> bytes:
    """Seven low bytes of each, then four bits of each, the first of two lower."""
    low = b"".join(residue.to_bytes(8, "little")[:7] for residue in residues)
    top = [residue >> 56 for residue in residues]
    pairs = zip(top[0::2], top[1::2], strict=True)
    return low + bytes(first | second << 4 for first, second in pairs)


def slots_of(words: list[int], stretches: list[dict]) -> list[int]:
    """The slots of all stretches in a row, digit by digit."""
    slots: list[int] = []
    for stretch in stretches:
        own, words = words[: stretch["num_words"]], words[stretch["num_words"] :]
        bits, per_slot = stretch["digit_bits"], SLOT_BITS // stretch["sum_bits"]
        digits = [
            word >> plane * bits & (1 << bits) - 1
            for plane in range(64 // bits)
            for word in own
        ]
        size = -(-len(digits) // per_slot)
        made = [0] * size
        for number, digit in enumerate(digits):
            made[number % size] += digit << number // size * (SLOT_BITS // per_slot)
        slots += made
    return slots


def num_ciphertexts(num_slots: int) -> int:
    """Slots of values and of two tags, 4096 in each."""
    return (num_slots + 2 + N - 1) // N


def tag_key(secret_key: bytes, t3: bytes) -> bytes:
    """What all tags of a slot follow from."""
    return hkdf(secret_key, labelled(b"cloister/1/sum-tag-key", t3), 32)


def weights(key: bytes, part: int, num_slots: int) -> list[tuple[int, int]]:
    """Of each slot v_0 and v_1: AES-256 of one counter block for both."""
    info = labelled(b"cloister/1/sum-tag-seed", struct.pack(">I", part))
    seed = hkdf(key, info, 32)
    stream_key = hkdf(seed, labelled(b"cloister/1/bfv-tag-weights", b""), 32)
    encryptor = Cipher(AES256(stream_key), ECB()).encryptor()
    found = []
    for slot in range(num_slots):
        first, second = struct.unpack("<2Q", encryptor.update(slot.to_bytes(16, "big")))
        found.append((weight(first), weight(second)))
    return found


def weight(word: int) -> int:
    """The 22 highest bits and the 22 lowest: 44 bits."""
    return (word >> 42) << 22 | word & (1 << 22) - 1


def pads(key: bytes, part: int, silo: int) -> tuple[int, int]:
    """What hides a silo's two tags."""
    info = labelled(b"cloister/1/sum-tag-pads", struct.pack(">IH", part, silo))
    data = hkdf(hkdf(key, info, 32), labelled(b"cloister/1/bfv-tag-pads", b""), 32)
    return int.from_bytes(data[:16], "big") % T, int.from_bytes(data[16:], "big") % T


def tags(secret_key: bytes, t3: bytes, part: int, silo: int, slots: list[int]):
    """The two tags of one silo's part."""
    key = tag_key(secret_key, t3)
    found = weights(key, part, len(slots))
    own = pads(key, part, silo)
    return [
        (sum(v[tag] * w for v, w in zip(found, slots, strict=True)) + own[tag]) % T
        for tag in (0, 1)
    ]


def setup_digest(case: dict) -> bytes:
    """T0: as with masks, and the index of the silo that is to make the key."""
    names = ("num_silos", "threshold", "min_cohort", "max_colluding", "slots_per_setup")
    numbers = [case[name] for name in names]
    config = struct.pack(">5IBH", *numbers, 1, case["key_maker"])
    keys = bytes.fromhex(case["aggregator"] + "".join(case["roster"]))
    name = bytes.fromhex(case["run"]) + struct.pack(">I", case["setup"])
    return digest(b"cloister/1/setup-digest", config, keys, name)


def setup_digests(case: dict) -> tuple[list[bytes], bytes]:
    """T0, T1 and T2 of a setup, and the commitment that T2 covers."""
    t0 = setup_digest(case)
    t1 = keys_digest(t0, bytes.fromhex(case["keys_body"]))
    commitment = digest(
        b"cloister/1/key-commitment", t1, bytes.fromhex(case["secret_key"])
    )
    members = bitmap(case["members"], case["num_silos"])
    t2 = digest(b"cloister/1/members-digest", t1, members, commitment)
    return [t0, t1, t2], commitment


def longest_frames(n: int, num_words: int, c: int) -> dict[int, int]:
    """By kind, the bytes of a frame when all silos take part."""
    sets = (n + 7) // 8
    sealed_key = 12 + 30_720 + 16
    bodies = {
        1: 32,
        2: sets + n * (32 + 64),
        5: 172,
        6: 172 + sets + 64 * n,
        8: 32 + sets,
        9: 32 + sets,
        12: 64 + sets,
        13: 64 + (n - 1) * sealed_key,
        14: 64 + sets + sealed_key,
        15: 36 + c * (30_720 + 64),
        16: 36 + 2 * sets + 64 * n + c * 61_440,
        17: 40 + 8 * num_words,
    }
    return {kind: 32 + body + 64 for kind, body in bodies.items()}
