"""Every domain-separation label and format version, in one table.

A label is public. It makes a key, signature or digest that was made for one purpose
useless for every other, and it changes whenever the meaning of what it protects does.
"""

PROTOCOL_VERSION = 1
"""Version in the header of every frame (docs/protocol.md, "The frame")."""

# Signatures (crypto/signatures.py).
FRAME_SIGNATURE = b"cloister/1/frame-signature"
PLAN = b"cloister/1/plan"
PROBE = b"cloister/1/probe"

# Digests that chain the stages of one setup and slot (crypto/secagg/digests.py).
SETUP_DIGEST = b"cloister/1/setup-digest"
KEYS_DIGEST = b"cloister/1/keys-digest"
MEMBERS_DIGEST = b"cloister/1/members-digest"
SLOT_DIGEST = b"cloister/1/slot-digest"
MASK_SEED_COMMITMENT = b"cloister/1/mask-seed-commitment"
REQUEST_DIGEST = b"cloister/1/request-digest"
SUM_DIGEST = b"cloister/1/sum-digest"

# Digests of protocol messages (protocol/envelope.py).
MODEL = b"cloister/1/model-digest"
MEASUREMENT = b"cloister/1/measurement-digest"
REFERENCE = b"cloister/1/reference-digest"

# Public randomness of a round (protocol/grids.py).
ROTATION_SIGNS = b"cloister/1/rotation-signs"

# Which silo returns which part (protocol/dealing.py).
DEALING = b"cloister/1/dealing"

# Keys derived from shared secrets and seeds (crypto/kdf.py).
ENVELOPE_KEY = b"cloister/1/envelope-key"
DEALING_SEED = b"cloister/1/dealing-seed"
SELF_MASK = b"cloister/1/self-mask"
PAIRWISE_MASK = b"cloister/1/pairwise-mask"

# The linear tags of homomorphic encryption (crypto/bfv/tags.py).
BFV_TAG_WEIGHTS = b"cloister/1/bfv-tag-weights"
BFV_TAG_PADS = b"cloister/1/bfv-tag-pads"

# State on disk (crypto/secagg/*_state.py).
SILO_STATE = b"cloister/1/silo-state"
AGGREGATOR_STATE = b"cloister/1/aggregator-state"
SLOT_STATE = b"cloister/1/slot-state"
JOURNAL = b"cloister/1/journal"
PROMISE = b"cloister/1/promise"

# The privacy ledger (silo/ledger.py) and the tags of its units (silo/tags.py).
LEDGER_ENTRY = b"cloister/1/ledger-entry"
LEDGER_COMMITMENT = b"cloister/1/ledger-commitment"
IMAGE_TAG = b"cloister/1/image-tag"
PATIENT_TAG = b"cloister/1/patient-tag"
SILO_TAG = b"cloister/1/silo-tag"
TAG_KEY = b"cloister/1/tag-key"

# Canaries (silo/canaries.py): what follows from their seed, and the commitment to it.
CANARIES = b"cloister/1/canaries"
CANARY_COMMITMENT = b"cloister/1/canary-commitment"
