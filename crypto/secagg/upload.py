"""Room for one MASKED frame, so that a vector of 140 MB exists once.

The caller writes its packed words into the middle of the frame; they are masked where
they stand, and header and signature are written around them.
"""

import numpy as np
import numpy.typing as npt

from crypto.frame import HEADER_BYTES, Header, finish_frame
from crypto.keys import IdentityKey
from crypto.secagg.config import MAX_WORDS
from crypto.secagg.messages import MASKED_PREFIX_BYTES, Masked
from crypto.signatures import SIGNATURE_BYTES

Words = npt.NDArray[np.uint64]

_WORDS_AT = HEADER_BYTES + MASKED_PREFIX_BYTES


class Upload:
    """One MASKED frame in the making; serves one call of ``SiloSide.mask``.

    Args:
        num_words: length of the silo's vector in 64-bit words; 0 where it contributes
            to no part.

    Raises:
        ValueError: negative or too long.
    """

    def __init__(self, num_words: int) -> None:
        if not 0 <= num_words <= MAX_WORDS:
            raise ValueError(f"num_words: must be 0 to {MAX_WORDS}, is {num_words}")
        self._frame = bytearray(_WORDS_AT + 8 * num_words + SIGNATURE_BYTES)
        self._num_words = num_words
        self._is_sealed = False

    @classmethod
    def of(cls, words: Words) -> "Upload":
        """Return an upload with a copy of packed words ``[w]``."""
        if words.dtype != np.uint64 or words.ndim != 1:
            raise ValueError(
                f"words: must be uint64 [w], is {words.dtype} {words.shape}"
            )
        upload = cls(words.size)
        upload.words[:] = words
        return upload

    @property
    def words(self) -> Words:
        """The packed vector, uint64 ``[w]``, to be written; masked after sealing."""
        return np.frombuffer(self._frame, "<u8", self._num_words, _WORDS_AT)

    @property
    def is_sealed(self) -> bool:
        """Whether the words are masked and the frame is signed."""
        return self._is_sealed

    def seal(self, key: IdentityKey, header: Header, slot_digest: bytes) -> memoryview:
        """Write everything around the masked words; return the frame, read-only.

        Raises:
            ValueError: sealed before.
        """
        if self._is_sealed:
            raise ValueError("this upload has been sealed")
        self._is_sealed = True
        frame = memoryview(self._frame)
        masked = Masked(slot_digest, self.words.data.cast("B"))
        frame[HEADER_BYTES:_WORDS_AT] = masked.prefix()
        finish_frame(key, header, frame)
        return frame.toreadonly()
