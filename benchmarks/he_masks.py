"""The same round under masks, with the real messages and no silo lost."""

import numpy as np

from benchmarks.he_cost import STAGES, RoundCost, Seconds
from benchmarks.secagg_federation import Federation
from crypto.frame import Kind
from crypto.ring import field_bits_for, pack, unpack, words_needed
from crypto.secagg.upload import Upload


def masks_round(num_parameters: int, num_silos: int, value_bits: int) -> RoundCost:
    """Return the cost of masking, adding and unmasking; setup is not counted.

    All silos upload the same values, of which one vector is made.
    """
    randomness = np.random.default_rng(0)
    values = randomness.integers(0, 1 << value_bits, num_parameters, np.uint64)
    field_bits = field_bits_for(value_bits, num_silos)
    num_words = words_needed(num_parameters, field_bits)
    federation = Federation(num_silos)
    federation.set_up()
    active = federation.activate(num_words)
    stages = {stage: Seconds() for stage in STAGES}
    masking, adding = stages["encrypt"], stages["add"]
    vector = values.astype(np.uint32)
    for silo in federation.everyone:
        clocked = masking if silo == 0 else Seconds()
        with clocked.count():
            upload = Upload(num_words)
            pack(vector, field_bits, out=upload.words)
            frame = federation.mask(silo, active, upload)
        with adding.count():
            federation.add_masked(frame)
    federation.aggregator_calls = adding.count
    federation.finish(federation.everyone)
    with adding.count():
        total = unpack(federation.slot.total, field_bits, num_parameters)
    return RoundCost(
        stages=stages,
        num_silos=num_silos,
        upload_bytes=len(frame),
        sum_bytes=sum(federation.sent[Kind.CONFIRMS].values()) / num_silos,
        num_openers=num_silos,
        opened_bytes=sum(federation.sent[Kind.REVEAL].values()) / num_silos,
        max_error=float(np.abs(total - num_silos * values).max()),
    )
