"""What a child process of homomorphic encryption and its parent say to each other.

A frame is a code, three numbers and a body, all of known length, over a pipe: requests
one way, one answer to each the other way. Nothing in it is executed or unpickled. Both
ends are ours; the limits keep a child that has gone mad from taking all the memory of
its parent.
"""

import enum
import struct

MAX_BODY_BYTES = 1 << 26
MAX_BLOCK_CIPHERTEXTS = 256
HEADER = struct.Struct("<BQQQQ")
"""Code, three numbers, and how many bytes of body follow."""
MAX_ERROR_BYTES = 300


class Code(enum.IntEnum):
    """Requests, with their three numbers and body; and how an answer begins.

    Answers to everything but ``DECRYPT`` have zeros for numbers.
    """

    MAKE_KEY = 1
    """Answer: a new secret key."""
    SET_KEY = 2
    """Key number; the secret key."""
    FORGET_KEY = 3
    """Key number."""
    ENCRYPT = 4
    """Key number, c; slots [c, N]. Answer: c fresh ciphertexts."""
    EXPAND = 5
    """n, c; seeds [n, c, 64]. Answer: the sums over n of c1 [c, N]."""
    OPEN = 6
    """Handle, key number, num_values; tag seed. Blocks of one vector follow."""
    DECRYPT = 7
    """Handle, first chunk, c; residues [c, 2, N]. Answer: residuals, noise budget."""
    RELEASE = 8
    """Handle. Answer: the slots [c, N] of the first block that is still held."""
    DISCARD = 9
    """Handle: what is held is forgotten."""
    DONE = 64
    """An answer."""
    FAILED = 65
    """An answer: one line that says what went wrong; the child ends."""
    READY = 66
    """What a child says first."""
