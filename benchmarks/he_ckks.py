"""A round under NVFlare's default homomorphic encryption, done with TenSEAL directly.

What its source says (read in NVIDIA/NVFlare, no code is taken from it):

- ``nvflare/lighter/impl/he.py``, ``HEBuilder``: CKKS, N = 8192, primes [60, 40, 40],
  scale 2^40, symmetric encryption type; the silos' contexts hold the secret key;
- ``nvflare/app_opt/he/model_encryptor.py``: a TenSEAL vector of each layer, serialised;
- ``nvflare/app_opt/he/intime_accumulate_model_aggregator.py``: vectors are read and
  added; the sum is multiplied by 1 / (sum of weights), which rescales it;
- ``nvflare/app_opt/he/model_shareable_generator.py``: from the second round on the
  encrypted model of the round before is read and added; the result is serialised;
- ``nvflare/app_opt/he/model_decryptor.py``: every silo reads and decrypts it.

A vector here is one ciphertext of N / 2 values: layers that do not fill their last
ciphertext would cost more. Only ``NUM_CHUNKS`` ciphertexts are worked on; time and
bytes of more are proportional, since no chunk touches another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal as ts

from benchmarks.ckks_key_recovery import NVFLARE, CkksSetting
from benchmarks.he_cost import STAGES, RoundCost, Seconds

NUM_CHUNKS = 96


def nvflare_round(
    num_parameters: int,
    num_silos: int,
    setting: CkksSetting = NVFLARE,
    num_chunks: int = NUM_CHUNKS,
) -> RoundCost:
    """Return the cost of a round, scaled from a slice of the vector."""
    secret = setting.make_context()
    secret.generate_relin_keys()
    public = ts.context_from(secret.serialize(save_secret_key=False))
    randomness = np.random.default_rng(0)
    shape = (num_silos, num_chunks, setting.num_slots)
    updates = randomness.normal(0, 0.05, shape)
    stages = {stage: Seconds() for stage in STAGES}
    uploads = [_encrypt(secret, update) for update in updates[1:]]
    with stages["encrypt"].count():
        uploads.append(_encrypt(secret, updates[0]))
    before = _mean(public, [upload[0] for upload in uploads]).serialize()
    with stages["add"].count():
        model = _add(public, uploads, before)
    with stages["decrypt"].count():
        found = [ts.ckks_vector_from(secret, chunk).decrypt() for chunk in model]
    mean = updates.mean(axis=0)
    expected = mean + mean[0]  # What _add takes for the model before.
    measured = RoundCost(
        stages=stages,
        num_silos=num_silos,
        upload_bytes=sum(map(len, uploads[-1])),
        sum_bytes=sum(map(len, model)),
        num_openers=num_silos,
        opened_bytes=0,
        max_error=float(np.abs(np.array(found) - expected).max()),
    )
    return measured.times(num_parameters / (num_chunks * setting.num_slots))


def _encrypt(secret: Any, update: np.ndarray) -> list[bytes]:
    """Return the update ``[chunks, N / 2]``, encrypted and serialised by chunk."""
    return [ts.ckks_vector(secret, chunk).serialize() for chunk in update]


def _add(public: Any, uploads: list[list[bytes]], before: bytes) -> list[bytes]:
    """Return the mean of all uploads and the model before, chunk by chunk."""
    models = []
    for chunks in zip(*uploads, strict=True):
        mean = _mean(public, chunks)
        models.append((mean + ts.ckks_vector_from(public, before)).serialize())
    return models


def _mean(public: Any, chunks: Sequence[bytes]) -> Any:
    """Return the mean of one chunk of all silos, rescaled."""
    total = ts.ckks_vector_from(public, chunks[0])
    for chunk in chunks[1:]:
        total = total + ts.ckks_vector_from(public, chunk)
    return total * (1 / len(chunks))
