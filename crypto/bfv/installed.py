"""Whether what the child processes import is installed, asked before a run begins."""

from importlib.util import find_spec

LIBRARIES = ("tenseal", "zstandard")


def check_installed() -> None:
    """Return if the libraries of the child processes can be found; imports none.

    Raises:
        ModuleNotFoundError: one cannot; a command says which extra holds it.
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
