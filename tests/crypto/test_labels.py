from crypto import labels

TABLE = {k: v for k, v in vars(labels).items() if isinstance(v, bytes) and k[0] != "_"}


def test_every_label_is_versioned_and_stands_once():
    assert len(TABLE) > 10
    assert len(set(TABLE.values())) == len(TABLE)
    for label in TABLE.values():
        assert label.startswith(b"cloister/%d/" % labels.PROTOCOL_VERSION)
        assert len(label) < 64
