"""What is imported when; each case in a fresh interpreter."""

import subprocess
import sys

import pytest


def run(code):
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_core_never_imports_torchvision():
    modules = ["ema", "features", "fid", "images", "inception", "loss", "model"]
    modules += ["parameters", "parts", "sampling", "schedule"]
    imports = "import sys, " + ", ".join(f"diffusion.{name}" for name in modules)
    names = "['torchvision', 'pytorch_fid']"
    assert run(f"{imports}\nprint([n for n in {names} if n in sys.modules])") == "[]"


def test_the_configuration_is_free_of_torch():
    code = "import sys, diffusion.config; print('torch' in sys.modules)"
    assert run(code) == "False"


@pytest.mark.parametrize("first", ["", "import torch; "])
def test_torchvision_and_pytorch_fid_can_be_loaded(first):
    code = first + (
        "from diffusion.torchvision_compat import load_pytorch_fid, load_torchvision\n"
        "print(load_torchvision().__name__, load_pytorch_fid().__name__)\n"
        "assert load_torchvision() is load_torchvision()\n"
    )
    assert run(code) == "torchvision pytorch_fid.inception"
