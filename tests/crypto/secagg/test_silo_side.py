"""Order of calls, arguments, and state of the silo's side. Attacks: tests/attacks."""

import numpy as np
import pytest

from crypto.errors import MalformedMessage
from crypto.secagg.config import SecAggConfig
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload
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
    ("envelopes", lambda s: s.mask(b"", Upload.of(WORDS))),
    ("envelopes", lambda s: s.confirm(b"")),
    ("envelopes", lambda s: s.reveal(b"")),
    ("envelopes", lambda s: s.close_slot(b"")),
    ("envelopes", lambda s: s.latest_slot),
]


@pytest.mark.parametrize(("stage", "call"), ORDER)
def test_a_call_out_of_order_is_the_callers_bug(stage, call):
    federation = Federation(CONFIG)
    if stage != "nothing":
        federation.reach(stage)
    with pytest.raises(RuntimeError):
        call(federation.silos[0])


@pytest.mark.parametrize("num_words", [0, 256, 258])
def test_an_upload_is_as_long_as_the_silos_parts(num_words):
    federation = Federation(CONFIG).reach("active")
    before = federation.silo_state(0)
    with pytest.raises(ValueError, match=f"{num_words} words, this silo's parts have"):
        federation.masked(
            0, federation.frames["active"][0], WORDS.repeat(86)[:num_words]
        )
    assert federation.silo_state(0) == before


def test_an_upload_serves_once():
    federation = Federation(CONFIG).reach("active")
    silo, active = federation.silos[0], federation.frames["active"][0]
    upload = Upload.of(federation.words[0])
    frame = bytes(silo.mask(active, upload, federation.parts))
    with pytest.raises(ValueError, match="sealed before"):
        silo.mask(active, upload, federation.parts)
    assert federation.masked(0, active) == frame


def test_by_default_every_member_contributes_to_one_part():
    federation = Federation(CONFIG).reach("active")
    silo, active = federation.silos[0], federation.frames["active"][0]
    frame = bytes(silo.mask(active, Upload.of(federation.words[0])))
    assert federation.masked(0, active) == frame


def test_a_model_digest_has_32_bytes():
    federation = Federation(CONFIG).reach("active")
    with pytest.raises(ValueError, match="model_digest"):
        federation.silos[0].ready(1, 1, MODEL[:-1])


def test_an_identity_belongs_to_its_index():
    arguments = list(Federation(CONFIG).silo_arguments(0))
    arguments[4] = 1
    with pytest.raises(ValueError, match="index"):
        SiloSide(*arguments)


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
