"""Order of calls, arguments, and state of the silo's side. Attacks: tests/attacks."""

import numpy as np
import pytest

from crypto.errors import MalformedMessage
from crypto.secagg.config import SecAggConfig
from crypto.secagg.silo_side import SiloSide
from tests.crypto.secagg.federation import MODEL, Federation

CONFIG = SecAggConfig(num_silos=5, threshold=4, slots_per_setup=2)
WORDS = np.zeros(3, np.uint64)

ORDER = [
    ("nothing", lambda s: s.share(b"")),
    ("nothing", lambda s: s.receive_shares(b"")),
    ("nothing", lambda s: s.ready(0, 1, MODEL)),
    ("keys", lambda s: s.receive_shares(b"")),
    ("keys", lambda s: s.ready(0, 1, MODEL)),
    ("envelopes", lambda s: s.ready(0, 1, MODEL)),
    ("envelopes", lambda s: s.mask(b"", WORDS)),
    ("envelopes", lambda s: s.confirm(b"")),
    ("envelopes", lambda s: s.reveal(b"")),
]


@pytest.mark.parametrize(("stage", "call"), ORDER)
def test_a_call_out_of_order_is_the_callers_bug(stage, call):
    federation = Federation(CONFIG)
    if stage != "nothing":
        federation.reach(stage)
    with pytest.raises(RuntimeError):
        call(federation.silos[0])


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(257, np.int64),
        np.zeros((1, 257), np.uint64),
        np.zeros(0, np.uint64),
    ],
)
def test_vectors_that_are_none(words):
    federation = Federation(CONFIG).reach("active")
    with pytest.raises(ValueError, match="words"):
        federation.silos[0].mask(federation.frames["active"][0], words)


def test_a_model_digest_has_32_bytes():
    federation = Federation(CONFIG).reach("active")
    with pytest.raises(ValueError, match="model_digest"):
        federation.silos[0].ready(1, 1, MODEL[:-1])


def test_an_identity_belongs_to_its_index():
    arguments = list(Federation(CONFIG).silo_arguments(0))
    arguments[4] = 1
    with pytest.raises(ValueError, match="index"):
        SiloSide(*arguments)


def test_a_strided_vector_masks_like_its_copy():
    federation = Federation(CONFIG).reach("active")
    silo, words = federation.silos[0], federation.words[0]
    strided = np.repeat(words, 2)[::2]
    frame = silo.mask(federation.frames["active"][0], strided)
    assert silo.mask(federation.frames["active"][0], words) == frame


@pytest.mark.parametrize("stage", ["keys", "envelopes", "active", "confirms"])
def test_states_that_are_torn_or_of_others(stage):
    federation = Federation(CONFIG).reach(stage)
    saved = federation.silos[0].to_bytes()
    SiloSide.from_bytes(saved, *federation.silo_arguments(0))
    flipped = saved[:60] + bytes([saved[60] ^ 1]) + saved[61:]
    torn = [b"", saved[:40], saved[:-1], saved + b"\x00", flipped]
    for data in torn:
        with pytest.raises(MalformedMessage):
            SiloSide.from_bytes(data, *federation.silo_arguments(0))
    with pytest.raises(MalformedMessage):
        SiloSide.from_bytes(saved, *federation.silo_arguments(1))
    other = Federation(CONFIG, setup=2)
    with pytest.raises(MalformedMessage):
        SiloSide.from_bytes(saved, *other.silo_arguments(0))


def test_repr_shows_no_secret():
    federation = Federation(CONFIG).reach("active")
    silo = federation.silos[0]
    assert repr(silo) == "SiloSide(silo 0, setup 1)"
    assert "0x" in repr(silo._state) and "secrets" not in repr(silo._state)
