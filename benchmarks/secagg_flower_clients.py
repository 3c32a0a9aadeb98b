"""Clients of flwr's SecAgg+ that have exchanged keys, driven without a network.

Everything is done by the functions of the installed flwr; what the server would carry
from one to another is handed over here.
"""

from typing import cast

from flwr.app import ConfigRecord
from flwr.app.typing import ConfigRecordValues
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _setup,
    _share_keys,
)
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import (
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
)

MAX_WEIGHT = 1000.0
CLIPPING_RANGE = 8.0
TARGET_RANGE = 1 << 22
MOD_RANGE = 1 << 32
"""The defaults of ``SecAggPlusWorkflow``."""

Reply = dict[str, ConfigRecordValues]
PublicKeys = dict[int, tuple[bytes, bytes]]


class FlowerClients:
    """A complete graph of clients, node ids from 1, after setup and sharing of keys.

    Args:
        changes: what the server sends in setup instead of the defaults.

    Attributes:
        states: each client's state, by node.
        sealed: the encrypted shares, by recipient and sender.
    """

    def __init__(
        self, num_clients: int, threshold: int, changes: Reply | None = None
    ) -> None:
        self.states = {
            node: new_client(node, num_clients, threshold, changes)
            for node in range(1, num_clients + 1)
        }
        publics = {node: (s.pk1, s.pk2) for node, s in self.states.items()}
        self.sealed: dict[int, dict[int, bytes]] = {node: {} for node in self.states}
        for node, state in self.states.items():
            sent = _share_keys(state, keys_record(publics))
            for peer, sealed in pairs(sent, Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST):
                self.sealed[peer][node] = sealed

    def request(self, node: int) -> ConfigRecord:
        """Return what the server sends to a client before it masks."""
        return ConfigRecord(
            {
                Key.CIPHERTEXT_LIST: list(self.sealed[node].values()),
                Key.SOURCE_LIST: list(self.sealed[node]),
            }
        )

    def open_shares(self) -> None:
        """Let every client open and keep its shares, as it does before it masks."""
        for node, state in self.states.items():
            for source, sealed in self.sealed[node].items():
                public = state.public_keys_dict[source][1]
                shares = opened(state.sk2, public, sealed)
                state.rd_seed_share_dict[source] = shares[0]
                state.sk1_share_dict[source] = shares[1]


def new_client(
    node: int, num_clients: int, threshold: int, changes: Reply | None = None
) -> SecAggPlusState:
    """Return a client that has drawn its keys."""
    state = SecAggPlusState()
    state.nid = node
    agreed: Reply = {
        Key.SAMPLE_NUMBER: num_clients,
        Key.SHARE_NUMBER: num_clients,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIPPING_RANGE,
        Key.TARGET_RANGE: TARGET_RANGE,
        Key.MOD_RANGE: MOD_RANGE,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    _setup(state, ConfigRecord(agreed | (changes or {})))
    return state


def keys_record(publics: PublicKeys) -> ConfigRecord:
    """Return the public keys of all clients as the server sends them."""
    record: Reply = {str(node): list(keys) for node, keys in publics.items()}
    return ConfigRecord(record)


def opened(secret: bytes, public: bytes, sealed: bytes) -> tuple[bytes, bytes]:
    """Return the shares of a seed and of a key that one party sealed to another."""
    shared_key = generate_shared_key(
        bytes_to_private_key(secret), bytes_to_public_key(public)
    )
    _, _, seed, key = share_keys_plaintext_separate(decrypt(shared_key, sealed))
    return seed, key


def pairs(reply: Reply, nodes: str, contents: str) -> list[tuple[int, bytes]]:
    """Return two lists of a client's reply, joined."""
    indices, values = (
        cast("list[int]", reply[nodes]),
        cast("list[bytes]", reply[contents]),
    )
    return list(zip(indices, values, strict=True))
