"""One whole setup and its slots, computed a second time from given secrets.

``play(case)`` takes what ``tests/vectors/README.md`` calls the given part of a case and
adds every frame, digest, mask seed and sum. Nothing here uses ``crypto``; every formula
is docs/protocol.md's, written out.
"""

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.crypto.references import (
    PRIME,
    header,
    hkdf,
    interpolate_at_zero,
    keystream,
    labelled,
    polynomial,
)
from tests.crypto.secagg import references
from tests.crypto.secagg.references import bitmap, exchange, public_of

AGGREGATOR, EVERYONE, NO_SLOT = 0xFFFF, 0xFFFE, 0xFFFFFFFF
KINDS = {
    "advertise": 1,
    "keys": 2,
    "shares": 3,
    "envelopes": 4,
    "ready": 5,
    "active": 6,
    "masked": 7,
    "survivors": 8,
    "confirm": 9,
    "confirms": 10,
    "reveal": 11,
    "sum": 12,
}
PASSED_ON = ("advertise", "ready", "confirm")


def play(given: dict) -> dict:
    """Return the case with everything that follows from what is given."""
    return Run(given).play()


class Run:
    """The parties of one case; every method is one stage."""

    def __init__(self, given: dict) -> None:
        self.case, self.n = given, given["num_silos"]
        keys = [bytes.fromhex(silo["identity_key"]) for silo in given["silos"]]
        keys.append(bytes.fromhex(given["aggregator_key"]))
        self.identities = [Ed25519PrivateKey.from_private_bytes(key) for key in keys]
        publics = [key.public_key().public_bytes_raw().hex() for key in self.identities]
        *roster, aggregator = publics
        self.out = dict(given, roster=roster, aggregator=aggregator)
        self.t0 = references.setup_digest(self.out)
        self.t1 = self.t2 = b""
        self.dealt: list[list[dict[str, list[str]]]] = []

    def secret(self, silo: int, name: str, slot: int | None = None) -> bytes:
        value = self.case["silos"][silo][name]
        return bytes.fromhex(value if slot is None else value[slot])

    def frame(
        self, name: str, body: bytes, sender: int, slot=NO_SLOT, recipient=EVERYONE
    ) -> bytes:
        """Header, body, signature over the header and the body's SHA-256."""
        if sender != AGGREGATOR and name not in PASSED_ON:
            recipient = AGGREGATOR
        run, setup = bytes.fromhex(self.case["run"]), self.case["setup"]
        head = header(KINDS[name], run, setup, slot, sender, recipient)
        said = labelled(
            b"cloister/1/frame-signature", head + hashlib.sha256(body).digest()
        )
        signer = self.identities[-1 if sender == AGGREGATOR else sender]
        return head + body + signer.sign(said)

    def play(self) -> dict:
        """All stages of the setup, then every slot."""
        advertise = [self.advertise(silo) for silo in range(self.n)]
        keys = bitmap(range(self.n), self.n)
        keys += b"".join(frame[32:] for frame in advertise)
        self.t1 = references.keys_digest(self.t0, keys)
        self.dealt = [self.coefficients(silo) for silo in range(self.n)]
        shares = [self.shares(silo) for silo in range(self.n)]
        self.t2 = references.members_digest(self.t1, range(self.n), self.n)
        self.out |= {
            "setup_digest": self.t0.hex(),
            "keys_digest": self.t1.hex(),
            "members_digest": self.t2.hex(),
            "coefficients": self.dealt,
            "advertise": [frame.hex() for frame in advertise],
            "keys": self.frame("keys", keys, AGGREGATOR).hex(),
            "shares": [frame.hex() for frame in shares],
            "envelopes": [self.envelopes(i, shares).hex() for i in range(self.n)],
            "slots": [self.slot(slot) for slot in self.case["slots"]],
        }
        return self.out

    def advertise(self, silo: int) -> bytes:
        body = public_of(self.secret(silo, "channel_key"))
        for slot in range(self.case["slots_per_setup"]):
            seed = self.secret(silo, "mask_seeds", slot)
            body += public_of(self.secret(silo, "agreement_keys", slot))
            body += references.commitment(self.t0, silo, slot, seed)
        return self.frame("advertise", body, silo)

    def coefficients(self, silo: int) -> list[dict[str, list[str]]]:
        """By slot, the polynomials' coefficients but for the secrets themselves."""
        seed = self.secret(silo, "dealing_seed")
        info = labelled(b"cloister/1/dealing-seed", self.t1)
        count, num_slots = self.case["threshold"] - 1, self.case["slots_per_setup"]
        stream = keystream(hkdf(seed, info, 32), 7 * 2 * count * num_slots)
        data = stream.astype("<u8").tobytes()
        draws = [data[56 * k : 56 * k + 49] for k in range(2 * count * num_slots)]
        rest = [(int.from_bytes(draw, "big") % PRIME) for draw in draws]
        words = [value.to_bytes(33, "big").hex() for value in rest]
        return [
            {
                "mask_seed": words[2 * count * slot :][:count],
                "agreement_key": words[2 * count * slot + count :][:count],
            }
            for slot in range(num_slots)
        ]

    def share_of(self, dealer: int, holder: int, slot: int, name: str) -> bytes:
        """The dealer's polynomial at holder + 1, in 33 bytes."""
        secret = int.from_bytes(self.secret(dealer, f"{name}s", slot), "big")
        rest = [int(word, 16) for word in self.dealt[dealer][slot][name]]
        return polynomial([secret, *rest], holder + 1).to_bytes(33, "big")

    def pair(self, dealer: int, holder: int, slot: int) -> bytes:
        return self.share_of(dealer, holder, slot, "mask_seed") + self.share_of(
            dealer, holder, slot, "agreement_key"
        )

    def envelope(self, sender: int, recipient: int) -> bytes:
        """All slots' shares, sealed under a key for this one message."""
        slots = range(self.case["slots_per_setup"])
        shares = b"".join(self.pair(sender, recipient, slot) for slot in slots)
        peer = public_of(self.secret(recipient, "channel_key"))
        secret = exchange(self.secret(sender, "channel_key"), peer)
        place = struct.pack(">2H", sender, recipient)
        info = labelled(b"cloister/1/envelope-key", self.t1 + place)
        run, setup = bytes.fromhex(self.case["run"]), self.case["setup"]
        associated = header(3, run, setup, NO_SLOT, sender, recipient)
        key = ChaCha20Poly1305(hkdf(secret, info, 32))
        return key.encrypt(bytes(12), shares, associated)

    def shares(self, silo: int) -> bytes:
        peers = [peer for peer in range(self.n) if peer != silo]
        sealed = b"".join(self.envelope(silo, peer) for peer in peers)
        return self.frame("shares", self.t1 + sealed, silo)

    def envelopes(self, silo: int, shares: list[bytes]) -> bytes:
        peers = [peer for peer in range(self.n) if peer != silo]
        sealed = b"".join(self.envelope(peer, silo) for peer in peers)
        body = self.t1 + bitmap(range(self.n), self.n) + sealed
        return self.frame("envelopes", body, AGGREGATOR, recipient=silo)

    def slot(self, slot: dict) -> dict:
        """Every frame of one slot; who is lost stands in ``lost_before``."""
        number, cohort = slot["slot"], sorted(slot["cohort"])
        t3 = references.slot_digest(self.t2, slot, self.n)
        lost = slot["lost_before"]
        survivors = [i for i in cohort if i not in lost["masked"]]
        confirming = [i for i in survivors if i not in lost["confirm"]]
        revealing = [i for i in confirming if i not in lost["reveal"]]
        said = self.t2 + struct.pack(">I", slot["round_number"])
        said += bytes.fromhex(slot["model_digest"]) + bytes.fromhex(slot["head"])
        counted = t3 + bitmap(survivors, self.n)
        frames = {
            "ready": {i: self.frame("ready", said, i, number) for i in cohort},
            "masked": {i: self.masked(slot, t3, i) for i in survivors},
            "confirm": {
                i: self.frame("confirm", counted, i, number) for i in confirming
            },
            "reveal": {i: self.reveal(slot, t3, survivors, i) for i in revealing},
        }
        total = self.total(slot, survivors)
        sums = references.sum_digest(t3, total)
        bodies = {
            "active": said + self.signatures(frames["ready"]),
            "survivors": counted,
            "confirms": counted + self.signatures(frames["confirm"]),
            "sum": counted + sums,
        }
        return slot | {
            "slot_digest": t3.hex(),
            "total": [str(word) for word in total],
            "sum_digest": sums.hex(),
            "masks": self.masks(slot, t3),
            **{
                name: {str(i): frame.hex() for i, frame in table.items()}
                for name, table in frames.items()
            },
            **{
                name: self.frame(name, body, AGGREGATOR, number).hex()
                for name, body in bodies.items()
            },
        }

    def signatures(self, frames: dict[int, bytes]) -> bytes:
        table = b"".join(frame[-64:] for _, frame in sorted(frames.items()))
        return bitmap(frames, self.n) + table

    def masked(self, slot: dict, t3: bytes, silo: int) -> bytes:
        number = slot["slot"]
        publics = [
            public_of(self.secret(i, "agreement_keys", number)) for i in range(self.n)
        ]
        words = references.masked_words(
            slot,
            t3,
            silo,
            [int(word) for word in slot["words"][silo]],
            self.secret(silo, "mask_seeds", number),
            self.secret(silo, "agreement_keys", number),
            publics,
        )
        body = (
            t3 + struct.pack(">Q", len(words)) + struct.pack(f"<{len(words)}Q", *words)
        )
        return self.frame("masked", body, silo, number)

    def reveal(self, slot: dict, t3: bytes, survivors: list[int], silo: int) -> bytes:
        """One share of each contributor: of a survivor's seed, of a dropout's key."""
        body = t3
        for peer in sorted(contributors(slot)):
            name = "mask_seed" if peer in survivors else "agreement_key"
            body += self.share_of(peer, silo, slot["slot"], name)
        return self.frame("reveal", body, silo, slot["slot"])

    def total(self, slot: dict, survivors: list[int]) -> list[int]:
        """The plain sum of what survivors contribute, part by part."""
        total, left = [], {i: list(map(int, slot["words"][i])) for i in survivors}
        for part in slot["parts"]:
            columns = [0] * part["num_words"]
            for silo in set(part["contributors"]) & set(survivors):
                own, left[silo] = (
                    left[silo][: part["num_words"]],
                    left[silo][part["num_words"] :],
                )
                columns = [(a + b) % 2**64 for a, b in zip(columns, own, strict=True)]
            total += columns
        return total

    def masks(self, slot: dict, t3: bytes) -> list[dict]:
        """The seed of every keystream of the slot, part by part."""
        found, number = [], slot["slot"]
        for part, description in enumerate(slot["parts"]):
            group = sorted(set(description["contributors"]) & set(slot["cohort"]))
            own = {i: self.self_seed(t3, part, i, number) for i in group}
            pairs = {
                f"{i}-{j}": self.pair_seed(t3, part, i, j, number)
                for i in group
                for j in group
                if i < j
            }
            found.append({"self": {str(i): s for i, s in own.items()}, "pairs": pairs})
        return found

    def self_seed(self, t3: bytes, part: int, silo: int, slot: int) -> str:
        info = labelled(b"cloister/1/self-mask", t3 + struct.pack(">2H", part, silo))
        return hkdf(self.secret(silo, "mask_seeds", slot), info, 32).hex()

    def pair_seed(self, t3: bytes, part: int, one: int, other: int, slot: int) -> str:
        public = public_of(self.secret(other, "agreement_keys", slot))
        secret = exchange(self.secret(one, "agreement_keys", slot), public)
        place = struct.pack(">3H", part, one, other)
        info = labelled(b"cloister/1/pairwise-mask", t3 + place)
        return hkdf(secret, info, 32).hex()


def contributors(slot: dict) -> set[int]:
    """Those of the cohort that contribute to any part."""
    known = {silo for part in slot["parts"] for silo in part["contributors"]}
    return known & set(slot["cohort"])


def open_shares(shares: dict[int, bytes]) -> bytes:
    """The secret of some silos' shares, by Lagrange's formula."""
    points = [
        (silo + 1, int.from_bytes(share, "big")) for silo, share in shares.items()
    ]
    return interpolate_at_zero(points).to_bytes(32, "big")
