"""What flwr's SecAgg+ gives away, shown with its own functions.

Each demonstration calls functions of the installed flwr and raises when the weakness is
not there any more; ``docs/secure-aggregation-compared.md`` says what each means.
"""

import os
import time
from typing import cast

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from benchmarks.secagg_flower_clients import (
    MOD_RANGE,
    FlowerClients,
    PublicKeys,
    Reply,
    keys_record,
    new_client,
    opened,
    pairs,
)
from benchmarks.secagg_process import Rows

NUM_CLIENTS, THRESHOLD, VICTIM = 5, 4, 1
NUM_TRIED = 1 << 12


def seeds_that_differ_give_one_mask() -> float:
    """Return 1 after two 32-byte seeds with the same 32-bit fold gave one mask."""
    seed = os.urandom(32)
    other = seed[4:] + seed[:4]
    one, two = (pseudo_rand_gen(s, MOD_RANGE, [(1000,)])[0] for s in (seed, other))
    _require(seed != other and np.array_equal(one, two), "the fold to 32 bits")
    return 1.0


def hours_for_all_seeds() -> float:
    """Return the hours of one core for every 32-bit seed against two known values.

    A tried seed costs one generator and the first two values of its mask.
    """
    wanted = pseudo_rand_gen(os.urandom(32), MOD_RANGE, [(2,)])[0]
    began = time.process_time()
    for seed in range(NUM_TRIED):
        tried = pseudo_rand_gen(seed.to_bytes(4, "little"), MOD_RANGE, [(2,)])[0]
        np.array_equal(tried, wanted)
    return (time.process_time() - began) / NUM_TRIED * 2**32 / 3600


def top_residue_is_never_drawn() -> float:
    """Return 1 after a mask modulo 4 held 0, 1 and 2 and never 3."""
    mask = pseudo_rand_gen(os.urandom(32), 4, [(100_000,)])[0]
    _require(set(mask.tolist()) == {0, 1, 2}, "the range of the mask")
    return 1.0


def one_request_opens_both_secrets() -> float:
    """Return 1 after one request to each client opened both secrets of the victim.

    The server names the victim among the active and among the dead.
    """
    clients = FlowerClients(NUM_CLIENTS, THRESHOLD)
    clients.open_shares()
    seeds, keys = [], []
    for node, state in clients.states.items():
        if node != VICTIM:
            reply = _unmask(state, _lists(list(clients.states), [VICTIM]))
            shares = pairs(reply, Key.NODE_ID_LIST, Key.SHARE_LIST)
            seed, key = (share for owner, share in shares if owner == VICTIM)
            seeds.append(seed)
            keys.append(key)
    _check_secrets(clients.states[VICTIM], seeds, keys)
    return 1.0


def substituted_keys_open_both_secrets() -> float:
    """Return 1 after a server that put its own keys for all peers' opened both secrets.

    Nothing but the server's word says whose the keys are.
    """
    victim = new_client(VICTIM, NUM_CLIENTS, THRESHOLD)
    publics: PublicKeys = {VICTIM: (victim.pk1, victim.pk2)}
    own = {}
    for node in range(2, NUM_CLIENTS + 1):
        (_, for_masks), (secret, for_shares) = (
            generate_key_pairs(),
            generate_key_pairs(),
        )
        own[node] = private_key_to_bytes(secret)
        publics[node] = (
            public_key_to_bytes(for_masks),
            public_key_to_bytes(for_shares),
        )
    sent = _share_keys(victim, keys_record(publics))
    shares = [
        opened(own[peer], victim.pk2, sealed)
        for peer, sealed in pairs(sent, Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST)
    ]
    _check_secrets(victim, [seed for seed, _ in shares], [key for _, key in shares])
    return 1.0


def parameters_of_the_server_uncover_signs() -> float:
    """Return 1 after a masked vector was the sign of every value, in the clear.

    The server asks for values of one bit modulo 2, and every mask modulo 2 is zero.
    """
    asked: Reply = {
        Key.CLIPPING_RANGE: 1e-9,
        Key.TARGET_RANGE: 1,
        Key.MOD_RANGE: 2,
        Key.MAX_WEIGHT: 1.0,
    }
    clients = FlowerClients(NUM_CLIENTS, THRESHOLD, asked)
    update = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    reply = _collect_masked_vectors(
        clients.states[VICTIM],
        clients.request(VICTIM),
        1,
        ndarrays_to_parameters([update]),
    )
    _, masked = cast("list[bytes]", reply[Key.MASKED_PARAMETERS])
    _require(np.array_equal(bytes_to_ndarray(masked), update > 0), "the signs")
    return 1.0


def lists_need_not_agree() -> float:
    """Return 1 after two clients answered different lists of survivors.

    Each gave the share of the other list's survivor's key: nobody compares lists.
    """
    clients = FlowerClients(NUM_CLIENTS, THRESHOLD)
    clients.open_shares()
    for node, active, dead in ((1, [1, 2, 3, 4], [5]), (2, [1, 2, 3, 5], [4])):
        reply = _unmask(clients.states[node], _lists(active, dead))
        shares = dict(pairs(reply, Key.NODE_ID_LIST, Key.SHARE_LIST))
        held = clients.states[node].sk1_share_dict[dead[0]]
        _require(shares[dead[0]] == held, "the shares of one list")
    return 1.0


def _lists(active: list[int], dead: list[int]) -> ConfigRecord:
    """Return the server's request for shares."""
    request: Reply = {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead}
    return ConfigRecord(request)


def _check_secrets(
    victim: SecAggPlusState, seeds: list[bytes], keys: list[bytes]
) -> None:
    """Check that shares give both secrets of a client."""
    _require(combine_shares(seeds) == victim.rd_seed, "the shares of the seed")
    _require(combine_shares(keys) == victim.sk1, "the shares of the key")


def _require(is_shown: bool, what: str) -> None:
    """Raise ``ArithmeticError`` unless a weakness was shown."""
    if not is_shown:
        raise ArithmeticError(f"flwr does not behave as the comparison says: {what}")


def demonstrations() -> Rows:
    """Return what was shown, 1 for shown."""
    shown = {
        "two seeds, one mask": seeds_that_differ_give_one_mask(),
        "top residue never drawn": top_residue_is_never_drawn(),
        "overlapping lists open both secrets": one_request_opens_both_secrets(),
        "substituted keys open both secrets": substituted_keys_open_both_secrets(),
        "signs of all values in the clear": parameters_of_the_server_uncover_signs(),
        "two lists of survivors answered": lists_need_not_agree(),
    }
    hours = ("flwr 1.41: hours of one core for all seeds", hours_for_all_seeds())
    rows = [(f"flwr 1.41, shown: {n}", v, "", "== 1") for n, v in shown.items()]
    return [*rows, (*hours, "h", "")]
