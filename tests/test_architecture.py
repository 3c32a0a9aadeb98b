"""The import table of docs/architecture.md, as data: who may import whom and what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {
    "crypto", "privacy", "diffusion", "protocol", "silo", "aggregator", "audits",
    "simulation",
}  # fmt: skip

MAY_IMPORT = {
    "crypto": {"numpy", "cryptography"},
    "privacy": {"numpy", "scipy"},
    "diffusion": {
        "torch",
        "torchvision",
        "pytorch_fid",
        "numpy",
        "scipy",
        "safetensors",
    },
    "protocol": {"crypto", "privacy", "diffusion", "numpy", "tomli_w"},
    "silo": {"protocol", "crypto", "privacy", "diffusion", "torch", "numpy"},
    "aggregator": {"protocol", "crypto", "privacy", "diffusion", "torch", "numpy"},
    "audits": {
        "protocol",
        "crypto",
        "privacy",
        "numpy",
        "scipy",
        "matplotlib",
        "jinja2",
    },
    "simulation": OURS | {"torch", "numpy", "sklearn", "click", "rich", "tomli_w"},
}  # fmt: skip
"""What every file of a package may import beside the standard library."""

ALSO = {
    "crypto/homomorphic.py": {"tenseal", "zstandard"},
    "privacy/accounting.py": {"dp_accounting"},
    "diffusion/images.py": {"PIL"},
    "silo/data.py": {"PIL"},
    "silo/torchvision_sets.py": {"torchvision", "PIL"},
    "silo/dpsgd.py": {"opacus"},
    "silo/per_example.py": {"opacus"},
    "silo/prv.py": {"opacus"},
    "silo/randomness.py": {"randomgen"},
    "silo/flower_app.py": {"flwr"},
    "silo/cli.py": {"click", "rich"},
    "silo/model_commands.py": {"click"},
    "silo/display.py": {"rich"},
    "aggregator/flower_app.py": {"flwr"},
    "aggregator/cli.py": {"click", "rich"},
    "aggregator/model_commands.py": {"click"},
    "aggregator/options.py": {"click"},
    "aggregator/terminal.py": {"rich"},
    "audits/cli.py": {"click", "rich"},
    "simulation/likeness.py": {"scipy"},
    "simulation/uniformity.py": {"scipy"},
    "simulation/rehearsal_pages.py": {"PIL"},
}
"""What single files may import beyond that."""

FORBIDDEN_WITHIN = {
    ("diffusion/config.py", "torch"),
    ("diffusion/config.py", "numpy"),
}


def files() -> list[Path]:
    """Return every source file of the packages."""
    return [
        p for package in sorted(OURS) for p in sorted((ROOT / package).rglob("*.py"))
    ]


def imported(path: Path) -> set[str]:
    """Return the full dotted names that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_its_package_may(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    package = place.split("/")[0]
    allowed = MAY_IMPORT[package] | ALSO.get(place, set()) | {package}
    for name in imported(path):
        top = name.split(".")[0]
        assert top in allowed | sys.stdlib_module_names, f"{place} imports {name}"
        if package == "protocol" and top == "diffusion":
            assert name == "diffusion.config", f"{place} imports {name}"
        assert (place, top) not in FORBIDDEN_WITHIN


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_no_pickle(path: Path) -> None:
    text = path.read_text()
    # torch.load(weights_only=True) raises pickle's own exception for a damaged file.
    is_exception_only = text.count("pickle.") == text.count("pickle.UnpicklingError")
    allowed = {"pickle"} if is_exception_only else set()
    assert not {name.split(".")[0] for name in imported(path)} & {
        "pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib",
    } - allowed  # fmt: skip
    assert "weights_only=False" not in text
    assert "allow_pickle=True" not in text


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_init_holds_a_docstring_and_nothing_else(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


@pytest.mark.parametrize(
    "module",
    [
        "audits.cli", "audits.report.page", "crypto.bfv.child",
        "crypto.bfv.workers", "crypto.homomorphic", "crypto.secagg.silo_side",
        "crypto.secagg.aggregator_side", "privacy.quantization", "protocol.plan",
        "protocol.transport", "protocol.transcript", "silo.cli", "aggregator.cli",
    ],
)  # fmt: skip
def test_torch_stays_out(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("module", ["crypto.bfv.child", "crypto.bfv.workers"])
def test_homomorphic_encryption_stays_in_its_children(module: str) -> None:
    check = f"import sys, {module}; sys.exit('tenseal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_only_one_door_for_images_at_the_aggregator() -> None:
    openers = {"PIL", "torchvision", "sklearn"}
    for path in (ROOT / "aggregator").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & openers, path


def test_nothing_of_ours_imports_tests_or_benchmarks() -> None:
    for path in files():
        assert not {name.split(".")[0] for name in imported(path)} & {
            "tests", "benchmarks", "conftest",
        }  # fmt: skip


def test_every_source_file_is_short_enough_to_read() -> None:
    long = [p for p in files() if len(p.read_text().splitlines()) > 400]
    assert long == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
