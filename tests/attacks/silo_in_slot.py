"""Rows: silo 1 lies to the aggregator in READY, MASKED, CONFIRM and REVEAL."""

from dataclasses import replace

from crypto.encoding import Writer
from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.messages import (
    Survivors,
)
from crypto.secagg.parts import Part, whole, words_of
from crypto.secagg.ready import Ready
from crypto.secagg.upload import Upload
from tests.attacks.forging import BODY, sign, six
from tests.attacks.table import NETWORK, SILO, SIX, Row
from tests.crypto.secagg.federation import MODEL, NUM_WORDS, OTHER_MODEL, Federation

FORGED, FORBIDDEN, MALFORMED = InvalidSignature, ProtocolViolation, MalformedMessage

# ------------------------------------------------------------------ READY


def say_ready(f, slot=0, round_number=1, model=MODEL) -> bytes:
    f.silos[1].receive_shares(f.frames["envelopes"][1])
    return f.silos[1].ready(slot, round_number, model)


def ready_for_another_model(f):
    return say_ready(f, model=OTHER_MODEL)


def ready_for_another_round(f):
    return say_ready(f, round_number=2)


def ready_for_another_slot(f):
    return say_ready(f, slot=1)


def ready_of_other_members(f):
    honest = Ready.from_bytes(say_ready(f)[BODY])
    return sign(f, Kind.READY, replace(honest, members_digest=bytes(32)).to_bytes())


def ready_with_another_head(f):
    honest = Ready.from_bytes(say_ready(f)[BODY])
    return sign(f, Kind.READY, replace(honest, head=bytes(range(104))).to_bytes())


def ready_in_silo_2s_name(f):
    return sign(f, Kind.READY, say_ready(f)[BODY], silo=2)


def advertise_again(f):
    return f.frames["advertise"][1]


# ------------------------------------------------------------------ MASKED


def masked(f, num_words=NUM_WORDS) -> bytes:
    """An upload of so many zeros."""
    upload, parts = Upload(num_words), whole(num_words, f.everyone)
    return bytes(f.silos[1].mask(f.frames["active"][1], upload, parts))


def masked_with_a_bit_changed(f):
    frame = masked(f)
    return frame[:100] + bytes([frame[100] ^ 1]) + frame[101:]


def masked_for_another_cohort(f):
    return sign(f, Kind.MASKED, bytes(32) + masked(f)[BODY][32:])


def masked_of_a_later_slot(f):
    return sign(f, Kind.MASKED, masked(f)[BODY], slot=1)


def a_word_more(f):
    return masked(f, NUM_WORDS + 1)


def a_word_less(f):
    return masked(f, NUM_WORDS - 1)


def words_that_are_not_there(f):
    """The right length, and another number of words stated."""
    body = masked(f)[BODY]
    number = Writer().integer(NUM_WORDS + 1, 8).to_bytes()
    return sign(f, Kind.MASKED, body[:32] + number + body[40:])


def two_to_the_sixty_words(f):
    body = masked(f)[BODY]
    number = Writer().integer(1 << 60, 8).to_bytes()
    return sign(f, Kind.MASKED, body[:32] + number + body[40:])


PARTS = (Part(100, tuple(range(6))), Part(157, (1, 2, 3, 4, 5)))
OTHER_PARTS = (Part(100, tuple(range(6))), Part(157, (0, 1, 2, 3, 4)))


def six_in_parts():
    f = Federation(SIX)
    f.parts = PARTS
    return f


def masked_for_another_dealing(f):
    """The same length and cohort; silo 1 deals the second part to others."""
    upload = Upload(words_of(OTHER_PARTS, 1))
    return bytes(f.silos[1].mask(f.frames["active"][1], upload, OTHER_PARTS))


def masked_without_its_second_part(f):
    parts = (PARTS[0], Part(157, (0, 2, 3, 4, 5)))
    upload = Upload(words_of(parts, 1))
    return bytes(f.silos[1].mask(f.frames["active"][1], upload, parts))


# ------------------------------------------------------------------ CONFIRM, REVEAL


def confirm(f, slot=0, **fields) -> bytes:
    message = Survivors.from_bytes(f.frames["survivors"][1][BODY], 6)
    return sign(f, Kind.CONFIRM, replace(message, **fields).to_bytes(6), slot)


def confirm_of_other_survivors(f):
    return confirm(f, survivors=(0, 1, 2, 3))


def confirm_of_another_cohort(f):
    return confirm(f, slot_digest=bytes(32))


def confirm_of_another_slot(f):
    return confirm(f, slot=1)


def confirm_beyond_the_roster(f):
    body = f.frames["survivors"][1][BODY][:32] + b"\xff"
    return sign(f, Kind.CONFIRM, body)


def honest_reveal(f) -> bytes:
    return f.silos[1].reveal(f.frames["confirms"][1])[BODY]


def reveal_with_a_share_missing(f):
    return sign(f, Kind.REVEAL, honest_reveal(f)[:-33])


def reveal_with_a_share_more(f):
    return sign(f, Kind.REVEAL, honest_reveal(f) + bytes(33))


def reveal_of_another_cohort(f):
    return sign(f, Kind.REVEAL, bytes(32) + honest_reveal(f)[32:])


def reveal_of_another_slot(f):
    return sign(f, Kind.REVEAL, honest_reveal(f), slot=1)


def reveal_in_silo_2s_name(f):
    return sign(f, Kind.REVEAL, honest_reveal(f), silo=2)


def row(stage, method):
    """Return what makes the rows of one stage."""

    def make(message, forge, raises, match, *, who=SILO, make=six):
        return Row(who, stage, message, forge, method, raises, match, make=make)

    return make


ready, masking = row("envelopes", "add_ready"), row("active", "add_masked")
confirming, revealing = row("survivors", "add_confirm"), row("confirms", "add_reveal")
ROWS = [
    ready("another model", ready_for_another_model, FORBIDDEN, "silo 1: "),
    ready("another round", ready_for_another_round, FORBIDDEN, "silo 1: "),
    ready("another slot", ready_for_another_slot, FORBIDDEN, "slot"),
    ready("another head", ready_with_another_head, FORBIDDEN, "silo 1: "),
    ready("other members", ready_of_other_members, FORBIDDEN, "silo 1: "),
    ready("READY in silo 2's name", ready_in_silo_2s_name, FORGED, "silo 2"),
    ready("ADVERTISE once more", advertise_again, FORBIDDEN, "kind", who=NETWORK),
    masking("a bit changed", masked_with_a_bit_changed, FORGED, "silo 1", who=NETWORK),
    masking("another cohort", masked_for_another_cohort, FORBIDDEN, "silo 1: "),
    masking("a later slot", masked_of_a_later_slot, FORBIDDEN, "slot"),
    masking("a word more", a_word_more, MALFORMED, "limit"),
    masking("a word less", a_word_less, MALFORMED, "silo 1: "),
    masking("another number of words", words_that_are_not_there, MALFORMED, "258"),
    masking("2^60 words", two_to_the_sixty_words, MALFORMED, "silo 1: "),
    masking(
        "another dealing",
        masked_for_another_dealing,
        FORBIDDEN,
        "silo 1: ",
        make=six_in_parts,
    ),
    masking(
        "a part left out",
        masked_without_its_second_part,
        MALFORMED,
        "silo 1: 100 words, 257 are expected",
        make=six_in_parts,
    ),
    confirming("other survivors", confirm_of_other_survivors, FORBIDDEN, "silo 1: "),
    confirming("another cohort", confirm_of_another_cohort, FORBIDDEN, "silo 1: "),
    confirming("another slot", confirm_of_another_slot, FORBIDDEN, "slot"),
    confirming("beyond the roster", confirm_beyond_the_roster, FORBIDDEN, "silo 1: "),
    revealing("a share missing", reveal_with_a_share_missing, MALFORMED, "silo 1: "),
    revealing("a share more", reveal_with_a_share_more, MALFORMED, "limit"),
    revealing("another cohort", reveal_of_another_cohort, FORBIDDEN, "silo 1: "),
    revealing("another slot", reveal_of_another_slot, FORBIDDEN, "slot"),
    revealing("REVEAL in silo 2's name", reveal_in_silo_2s_name, FORGED, "silo 2"),
]
