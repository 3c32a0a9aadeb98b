"""Room for one MASKED frame: what is written in it, and what it refuses."""

import numpy as np
import pytest

from crypto.frame import HEADER_BYTES, Header, Kind, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.config import MAX_WORDS
from crypto.secagg.messages import Masked
from crypto.secagg.upload import Upload

KEY = IdentityKey.from_bytes(bytes(32))
HEADER = Header(Kind.MASKED, bytes(16), 1, 0, 2)
T3 = b"\x03" * 32


@pytest.mark.parametrize("num_words", [0, 1, 5])
def test_the_frame_is_the_one_that_make_frame_returns(num_words):
    words = np.arange(num_words, dtype=np.uint64) + 2**63
    body = Masked(T3, words.data.cast("B")).to_bytes()
    frame = Upload.of(words).seal(KEY, HEADER, T3)
    assert frame == make_frame(KEY, HEADER, body) and frame.readonly


def test_words_are_written_where_they_will_travel():
    upload = Upload(3)
    upload.words[:] = [1, 2, 3]
    frame = upload.seal(KEY, HEADER, T3)
    start = HEADER_BYTES + 40
    assert bytes(frame[start : start + 9]) == b"\x01" + bytes(7) + b"\x02"
    upload.words[0] = 7
    assert frame[start] == 7  # There is one copy of the vector.


def test_of_copies():
    words = np.zeros(2, np.uint64)
    Upload.of(words).words[:] = 9
    assert not words.any()


def test_a_second_seal_is_refused():
    upload = Upload(1)
    assert not upload.is_sealed
    upload.seal(KEY, HEADER, T3)
    assert upload.is_sealed
    with pytest.raises(ValueError, match="has been sealed"):
        upload.seal(KEY, HEADER, T3)


@pytest.mark.parametrize("num_words", [-1, MAX_WORDS + 1])
def test_lengths_that_cannot_be(num_words):
    with pytest.raises(ValueError, match="num_words"):
        Upload(num_words)


@pytest.mark.parametrize(
    "words", [np.zeros(3, np.int64), np.zeros((1, 3), np.uint64), np.zeros(3)]
)
def test_arrays_that_are_no_packed_vector(words):
    with pytest.raises(ValueError, match="words"):
        Upload.of(words)
