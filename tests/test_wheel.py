"""The wheel and the source archive as users get them, installed into an empty folder, without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Encode

REPOSITORY = Path(__file__).resolve().parents[1]

NO_TORCH = '''
"""Makes the packages of the extra `train` look as if they were not installed."""

import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
'''


@dataclass(frozen=True)
class Built:
    """The output of `python -m build`."""

    wheel: Path
    sdist: Path

    @property
    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {name.split("/", 1)[-1] for name in archive.getnames()}


@dataclass(frozen=True)
class Installed:
    """The wheel, installed into a folder. Programs run in another folder and cannot import PyTorch."""

    target: Path
    elsewhere: Path

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.elsewhere), str(self.target)])}
        return subprocess.run(command, cwd=self.elsewhere, env=environment, capture_output=True, text=True)

    def python(self, program: str) -> str:
        done = self.run([sys.executable, "-c", program])
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    # The wheel is built from the source archive, so both are complete. Nothing is downloaded: hatchling is installed.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Built(next(out.glob("*.whl")), next(out.glob("*.tar.gz")))


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    target, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(built.wheel)], check=True, capture_output=True)
    (elsewhere / "sitecustomize.py").write_text(NO_TORCH, encoding="utf-8")
    return Installed(target, elsewhere)


# --- Contents ------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_every_source_file_of_both_packages(built: Built) -> None:
    for root, package in ((REPOSITORY, "embedserve"), (REPOSITORY / "training", "embedserve_training")):
        files = {
            path.relative_to(root).as_posix()
            for path in (root / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files - built.wheel_names == set()
        assert f"{package}/py.typed" in built.wheel_names


def test_the_wheel_holds_every_recipe_where_training_looks_for_it(built: Built) -> None:
    recipes = {f"embedserve_training/recipes/{path.name}" for path in (REPOSITORY / "training/recipes").iterdir()}
    assert "embedserve_training/recipes/simclr-cpu.toml" in recipes
    assert {name for name in built.wheel_names if name.startswith("embedserve_training/recipes/")} == recipes


def test_the_wheel_holds_nothing_else(built: Built) -> None:
    folders = {name.split("/")[0] for name in built.wheel_names}
    version = built.wheel.name.split("-")[1]
    assert folders == {"embedserve", "embedserve_training", f"embedserve-{version}.dist-info"}


def test_the_wheel_holds_the_generated_code_and_the_licences(built: Built) -> None:
    assert "embedserve/v1/embedding_service_pb2_grpc.py" in built.wheel_names
    assert "embedserve/v1/embedding_service_pb2.pyi" in built.wheel_names
    licences = {name.split("/licenses/")[1] for name in built.wheel_names if "/licenses/" in name}
    assert licences == {"LICENSE", "examples/NOTICE"}


def test_the_wheel_runs_on_every_machine_with_python(built: Built) -> None:
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_source_archive_holds_all_files_to_build_and_test(built: Built) -> None:
    needed = {
        *["pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md", "scripts/proto.py", "docs/wire.md"],
        *["protos/embedserve/v1/common.proto", "tests/test_wheel.py", "examples/fashion-mnist-sample.zip"],
        "training/embedserve_training/__init__.py",
    }
    assert needed - built.sdist_names == set()


def test_the_source_archive_holds_nothing_that_is_made(built: Built) -> None:
    made = (".venv", ".buf", "node_modules", "__pycache__")
    assert [name for name in built.sdist_names if set(name.split("/")[:-1]) & set(made)] == []
    assert [name for name in built.sdist_names if name.split("/")[0] in ("dist", "runs", "data")] == []


# --- Use without PyTorch -------------------------------------------------------------------------------------------


def test_the_installed_wheel_is_imported_and_pytorch_is_not_there(installed: Installed) -> None:
    program = (
        "import importlib.metadata, importlib.util, embedserve\n"
        "print(embedserve.__file__)\n"
        "print(importlib.metadata.version('embedserve') == embedserve.__version__)\n"
        "try:\n"
        "    import torch\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    file, same_version, error = installed.python(program).splitlines()
    assert Path(file).is_relative_to(installed.target)
    assert same_version == "True"
    assert error == "No module named 'torch'"


def test_the_clients_are_part_of_the_package(installed: Installed) -> None:
    program = "import embedserve; print(embedserve.Client.__name__, embedserve.AsyncClient.__name__)"
    assert installed.python(program) == "Client AsyncClient\n"


def test_every_name_in_all_can_be_imported(installed: Installed) -> None:
    installed.python("import embedserve\nfor name in embedserve.__all__: getattr(embedserve, name)")


def test_every_module_of_the_serving_part_can_be_imported(installed: Installed) -> None:
    program = (
        "import importlib, pkgutil, embedserve\n"
        "for found in pkgutil.walk_packages(embedserve.__path__, 'embedserve.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "        print(found.name)\n"
    )
    modules = installed.python(program).split()
    assert {"embedserve.encoder.session", "embedserve.client", "embedserve.server"} <= set(modules)


def test_the_installed_command_shows_its_help(installed: Installed) -> None:
    done = installed.run([sys.executable, str(installed.target / "bin/embedserve"), "--help"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: embedserve")


def test_a_plan_needs_no_pytorch_and_finds_the_recipes_of_the_wheel(installed: Installed) -> None:
    program = (
        "from embedserve_training.plan import recipes\n"
        "from embedserve_training.plan.config import TrainConfig\n"
        "from embedserve_training.plan.plan import Facts, plan\n"
        "print(recipes.folder())\n"
        "print(plan(TrainConfig(method='moco'), Facts(images=3000, median_side_px=28)).settings.recipe)\n"
    )
    folder, recipe = installed.python(program).split()
    assert Path(folder).is_relative_to(installed.target)
    assert recipe == "moco-cpu"


def test_training_without_pytorch_names_the_extra_to_install(installed: Installed, jpeg_bytes: Encode) -> None:
    (installed.elsewhere / "photos").mkdir()
    for seed in range(8):
        (installed.elsewhere / f"photos/{seed}.jpg").write_bytes(jpeg_bytes(seed=seed))
    done = installed.run([sys.executable, str(installed.target / "bin/embedserve"), "train", "photos"])
    assert done.returncode == 1
    assert "pip install 'embedserve[train]'" in done.stderr
    assert "Traceback" not in done.stderr
