import inspect
import re

import pytest

import privacy.errors
import protocol.errors


@pytest.mark.parametrize(
    ("module", "base"),
    [
        (protocol.errors, protocol.errors.ProtocolError),
        (privacy.errors, privacy.errors.PrivacyError),
    ],
)
def test_the_docstring_draws_the_whole_tree(module, base):
    drawn = re.findall(r"[├└]── (\w+)", module.__doc__)
    classes = dict(inspect.getmembers(module, inspect.isclass))
    assert sorted([base.__name__, *drawn]) == sorted(classes)
    assert all(kind.__mro__[1] is base for kind in classes.values() if kind is not base)
    assert base.__mro__[1] is Exception
