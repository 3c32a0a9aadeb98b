"""Frames that were changed on their way, or by a sender who signs what it likes.

``on_the_way`` needs no key: flipped bits, cut or longer messages, two messages spliced,
fields exchanged, lengths at their limits. ``by_the_sender`` changes body or header and
signs again: any of the former, and what only a member can say, such as random sets of
silos, entries twice, keys of low order, shares that are no field elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from random import Random

from crypto.errors import CryptoError
from crypto.frame import NO_SLOT, Header, Kind, make_frame, read_header
from crypto.keys import IdentityKey
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import advertise_bytes, bitmap_bytes, sealed_shares_bytes

HEADER, SIGNATURE = 32, 64
Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
]
"""X25519 points whose shared secret is zero: 0, 1, -1, p, and one of order eight."""
NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1)


# ------------------------------------------------------------------ without a key


def flip_bits(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def cut_out(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.randint(1, 64) :]


def extend(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data + random.randbytes(random.choice((1, 8, 33, 64, 500)))


def repeat(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """A stretch of the message twice."""
    start = random.randrange(len(data) + 1)
    end = start + random.choice((1, 32, 33, 64, 96, 160))
    return data[:end] + data[start:]


def splice(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """The beginning of one message, the end of another."""
    other = random.choice(pool)
    return (
        data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other)) :]
    )


def cross_over(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Another message's bytes in the middle; the length stays."""
    other, start = random.choice(pool), random.randrange(len(data) + 1)
    end = min(len(data), start + random.choice((1, 4, 32, 64, 200)))
    piece = other[start:end]
    return data[:start] + piece + data[start + len(piece) :]


def swap_fields(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    size = random.choice((1, 2, 4, 8, 32, 33, 64))
    if len(data) < 2 * size:
        return data[::-1]
    places = sorted(random.randrange(len(data) - size + 1) for _ in range(2))
    changed = bytearray(data)
    first, second = (slice(place, place + size) for place in places)
    changed[first], changed[second] = data[second], data[first]
    return bytes(changed)


def set_number(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """A length, index or count at one of its limits."""
    size = random.choice((1, 2, 4, 8))
    number = random.choice(NUMBERS) % (1 << (8 * size))
    place = random.randrange(max(1, len(data) - size + 1))
    return data[:place] + number.to_bytes(size, "big") + data[place + size :]


def fill(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start, value = random.randrange(len(data) + 1), random.choice((b"\x00", b"\xff"))
    size = min(len(data) - start, random.choice((1, 16, 32, 64, 4096)))
    return data[:start] + value * size + data[start + size :]


def another(random: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return random.choice(pool)


ON_THE_WAY: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        flip_bits,
        cut,
        cut_out,
        extend,
        repeat,
        splice,
        cross_over,
        swap_fields,
        set_number,
        fill,
        another,
    )
}


def change_header(random: Random, header: Header) -> Header:
    """One field of a header, at random or at a limit."""
    name = random.choice([field.name for field in fields(Header)])
    if name == "run":
        return replace(header, run=random.randbytes(16))
    bits = {"kind": 7, "setup": 32, "slot": 32}.get(name, 16)
    value = random.choice((0, 1, 2, NO_SLOT, 0xFFFF, 0xFFFE, random.getrandbits(32)))
    value %= 1 << bits
    return replace(header, **{name: max(1, value) if name == "kind" else value})


# ------------------------------------------------------------------ with a key


class Sender:
    """The holder of one identity key, and of a colluding silo's.

    Args:
        key: of the aggregator, or of silo 1.
        colluder: silo 1's key.
    """

    def __init__(
        self, config: SecAggConfig, key: IdentityKey, colluder: IdentityKey
    ) -> None:
        self.config, self.key, self.colluder = config, key, colluder

    def mutate(self, random: Random, frame: bytes, pool: Sequence[bytes]) -> bytes:
        """Return a frame with another body or header, and a signature that holds."""
        try:
            header = read_header(frame)
        except CryptoError:
            return frame
        body = frame[HEADER:-SIGNATURE]
        choice = random.random()
        if choice < 0.15:
            header = change_header(random, header)
        elif choice < 0.55:
            bodies = [other[HEADER:-SIGNATURE] for other in pool]
            name = random.choice(sorted(ON_THE_WAY))
            body = ON_THE_WAY[name](random, body, bodies)
        else:
            body = self._reword(random, header, body)
        return make_frame(self.key, header, body)

    def _reword(self, random: Random, header: Header, body: bytes) -> bytes:
        """Return a body that is well formed, or nearly, and says something else."""
        reword = {
            Kind.ADVERTISE: self._advertise,
            Kind.KEYS: self._keys,
            Kind.SHARES: self._sealed,
            Kind.ENVELOPES: self._sealed,
            Kind.READY: self._digest,
            Kind.ACTIVE: self._signatures,
            Kind.MASKED: self._masked,
            Kind.SURVIVORS: self._set,
            Kind.CONFIRM: self._set,
            Kind.CONFIRMS: self._signatures,
            Kind.REVEAL: self._shares,
            Kind.SUM: self._set,
        }.get(header.kind)
        return reword(random, header, body) if reword else body

    def _some_set(self, random: Random) -> bytes:
        size = bitmap_bytes(self.config.num_silos)
        return random.getrandbits(8 * size).to_bytes(size, "little")

    def _set(self, random: Random, header: Header, body: bytes) -> bytes:
        """Another set of silos behind the digest, or another digest."""
        size = bitmap_bytes(self.config.num_silos)
        if random.random() < 0.3:
            return self._digest(random, header, body)
        return body[:32] + self._some_set(random) + body[32 + size :]

    def _digest(self, random: Random, header: Header, body: bytes) -> bytes:
        """Another digest, or the second one of a message that has two."""
        start = random.choice((0, max(0, len(body) - 32)))
        return body[:start] + random.randbytes(32) + body[start + 32 :]

    def _advertise(self, random: Random, header: Header, body: bytes) -> bytes:
        """A key of low order, or one key, commitment and slot in another's place."""
        words = _pieces(body, 32)
        place = random.randrange(len(words))
        new = [*LOW_ORDER, random.randbytes(32), random.choice(words)]
        words[place] = random.choice(new)
        return b"".join(words)

    def _keys(self, random: Random, header: Header, body: bytes) -> bytes:
        """Silo 1's entry changed and signed by it; or entries left out or repeated."""
        size = advertise_bytes(self.config.slots_per_setup) + SIGNATURE
        start = bitmap_bytes(self.config.num_silos)
        entries = _pieces(body[start:], size)
        if random.random() < 0.5 and len(entries) > 1:
            changed = self._advertise(random, header, entries[1][:-SIGNATURE])
            own = replace(header, kind=Kind.ADVERTISE, sender=1)
            entries[1] = changed + make_frame(self.colluder, own, changed)[-SIGNATURE:]
            return body[:start] + b"".join(entries)
        silos = self._some_set(random)
        count = sum(byte.bit_count() for byte in silos)
        return silos + b"".join(random.choice(entries) for _ in range(count))

    def _sealed(self, random: Random, header: Header, body: bytes) -> bytes:
        """Envelopes in another order, twice, or of noise."""
        size = sealed_shares_bytes(self.config.slots_per_setup)
        count = (len(body) - 32) // size
        start = len(body) - count * size
        sealed = [body[start + i * size :][:size] for i in range(count)]
        if not sealed:
            return body
        sealed[random.randrange(count)] = random.choice(
            (random.randbytes(size), random.choice(sealed))
        )
        random.shuffle(sealed)
        return body[:start] + b"".join(sealed)

    def _signatures(self, random: Random, header: Header, body: bytes) -> bytes:
        """Another set of signers with as many signatures, one of them silo 1's."""
        size = bitmap_bytes(self.config.num_silos)
        fixed = 68 if header.kind == Kind.ACTIVE else 32 + size
        said, table = body[:fixed], body[fixed + size :]
        signatures = _pieces(table, SIGNATURE)
        kind = Kind.READY if header.kind == Kind.ACTIVE else Kind.CONFIRM
        if random.random() < 0.5:
            said = self._set(random, header, said)
        own = replace(header, kind=kind, sender=1)
        signatures.append(make_frame(self.colluder, own, said)[-SIGNATURE:])
        silos = self._some_set(random)
        count = sum(byte.bit_count() for byte in silos)
        return said + silos + b"".join(random.choice(signatures) for _ in range(count))

    def _masked(self, random: Random, header: Header, body: bytes) -> bytes:
        """Other words, or another number of them."""
        if random.random() < 0.5:
            return body[:40] + random.randbytes(len(body[40:]))
        count = random.choice(NUMBERS)
        return body[:32] + count.to_bytes(8, "big") + body[40:]

    def _shares(self, random: Random, header: Header, body: bytes) -> bytes:
        """Shares that are wrong, no field elements, or another silo's."""
        shares = _pieces(body[32:], 33)
        place = random.randrange(len(shares))
        new = (b"\xff" * 33, bytes(33), random.randbytes(33), random.choice(shares))
        shares[place] = random.choice(new)
        return body[:32] + b"".join(shares)


def _pieces(data: bytes, size: int) -> list[bytes]:
    """Return the data in pieces; at least one, if an empty one."""
    return [data[i : i + size] for i in range(0, len(data), size)] or [b""]
