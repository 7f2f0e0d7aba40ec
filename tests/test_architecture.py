"""Who may import whom. The floors are those of the design: each imports only from itself and from below."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SERVING = REPOSITORY / "embedserve"
TRAINING = REPOSITORY / "training/embedserve_training"

FLOOR = {
    **dict.fromkeys(["cores", "errors", "pem", "types", "whole_file"], 0),
    **dict.fromkeys(
        ["images", "onnx_envelope", "parquet", "preprocess", "vectors", "reference", "wire", "v1", "sample"], 1
    ),
    **dict.fromkeys(
        ["cuda_driver", "encoder", "encoder_file", "index", "observer", "providers", "run_slots", "store"], 2
    ),
    **dict.fromkeys(
        ["admission", "batcher", "binding", "bulk", "embedder", "engine", "long_work", "requests", "searching"], 3
    ),
    **dict.fromkeys(["server", "client", "loadtest", "web"], 4),
    **dict.fromkeys(["cli"], 5),
    **dict.fromkeys(["__main__"], 6),
}
HEAVY = ("simplejpeg", "torch", "torchvision", "onnxruntime", "faiss", "grpc", "google", "numpy", "PIL", "rich")


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    where: str
    """File and line."""
    importer: str
    target: str
    """Dotted name; of ``from package import name`` the module ``package.name`` where there is one."""
    in_function: bool
    types_only: bool

    @property
    def parts(self) -> list[str]:
        return self.target.split(".")


def imports_of(package: Path) -> list[Import]:
    found: list[Import] = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, in_function, types_only in _walk(tree, in_function=False, types_only=False):
            for target in _targets(node, module):
                where = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
                found.append(Import(where, module, target, in_function, types_only))
    return found


def _walk(node: ast.AST, *, in_function: bool, types_only: bool) -> Iterator[tuple[ast.stmt, bool, bool]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, in_function, types_only
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        in_function = True
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(child, in_function=in_function, types_only=True)
        for child in node.orelse:
            yield from _walk(child, in_function=in_function, types_only=types_only)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, in_function=in_function, types_only=types_only)


def _targets(node: ast.stmt, module: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        path = REPOSITORY / ("training" if module.startswith("embedserve_training") else "") / module.replace(".", "/")
        is_package = module.endswith("__init__") or path.is_dir()
        parents = module.removesuffix(".__init__").split(".")
        parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
        base = ".".join([*parents, base] if base else parents)
    return [f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names]


def _is_module(dotted: str) -> bool:
    path = dotted.replace(".", "/")
    return any(
        (root / path).is_dir() or (root / f"{path}.py").exists() for root in (REPOSITORY, REPOSITORY / "training")
    )


def floor_of(module: str) -> int | None:
    """Floor of a module of embedserve; None for the package itself, which is only a version and lazy names."""
    parts = module.removesuffix(".__init__").split(".")
    return FLOOR.get(parts[1]) if len(parts) > 1 else None


SERVING_IMPORTS = imports_of(SERVING)
TRAINING_IMPORTS = imports_of(TRAINING)


def test_every_module_of_embedserve_stands_on_a_floor() -> None:
    modules = {path.stem for path in SERVING.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules - {"__pycache__", "__init__", "py"} - FLOOR.keys() == set()


def test_floors_import_downwards_only() -> None:
    wrong = []
    for item in SERVING_IMPORTS:
        own, other = floor_of(item.importer), floor_of(item.target) if item.parts[0] == "embedserve" else None
        if own is not None and other is not None and other > own and not item.types_only:
            wrong.append(f"{item.where}: {item.importer} (floor {own}) imports {item.target} (floor {other})")
    assert wrong == []


def test_no_two_parts_of_embedserve_import_each_other() -> None:
    edges: dict[str, set[str]] = {}
    for item in SERVING_IMPORTS:
        importer = item.importer.removesuffix(".__init__").split(".")
        if len(importer) > 1 and item.parts[0] == "embedserve" and len(item.parts) > 1 and not item.types_only:
            edges.setdefault(importer[1], set()).add(item.parts[1])
    for name in list(edges):
        reached: set[str] = set()
        waiting = edges[name] - {name}
        while waiting:
            part = waiting.pop()
            reached.add(part)
            waiting |= edges.get(part, set()) - reached
        assert name not in reached, f"{name} imports itself by way of {sorted(reached)}"


def test_the_client_needs_only_floor_0_and_the_wire() -> None:
    allowed = {"client", "errors", "pem", "types", "whole_file", "wire", "v1"}
    wrong = [
        f"{item.where}: {item.target}"
        for item in SERVING_IMPORTS
        if item.importer.split(".")[1] == "client"
        and item.parts[0] == "embedserve"
        and len(item.parts) > 1
        and item.parts[1] not in allowed
        and not item.types_only
    ]
    assert wrong == []


def test_torch_is_nowhere_in_embedserve_not_even_for_types() -> None:
    forbidden = {"torch", "torchvision", "onnx", "onnxscript", "timm"}
    assert [item.where for item in SERVING_IMPORTS if item.parts[0] in forbidden] == []


def test_training_is_imported_only_by_commands_and_only_when_they_run() -> None:
    wrong = [
        item.where
        for item in SERVING_IMPORTS
        if item.parts[0] == "embedserve_training"
        and not (item.importer.startswith("embedserve.cli.") and (item.in_function or item.types_only))
    ]
    assert wrong == []


def test_training_imports_no_higher_than_floor_2() -> None:
    wrong = []
    for item in TRAINING_IMPORTS:
        floor = floor_of(item.target) if item.parts[0] == "embedserve" else None
        if floor is not None and floor > 2 and not item.types_only:
            wrong.append(f"{item.where}: {item.target} (floor {floor})")
    assert wrong == []


# --- What the command line loads -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules_after_help() -> set[str]:
    """Modules that `embedserve --help` has imported when it ends."""
    program = (
        "import json, sys\n"
        "sys.argv = ['embedserve', '--help']\n"
        "from embedserve.cli import run\n"
        "try:\n"
        "    run()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('modules', json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    return set(json.loads(done.stdout.splitlines()[-1].removeprefix("modules ")))


def test_help_loads_nothing_heavy(modules_after_help: set[str]) -> None:
    assert sorted(modules_after_help & {*HEAVY, "asyncio"}) == []


def test_help_loads_of_training_only_its_settings(modules_after_help: set[str]) -> None:
    # They are where the help texts of its flags are written; the names of the augmentations are among them.
    loaded = {name for name in modules_after_help if name.partition(".")[0] == "embedserve_training"}
    augment = {"augment", "augment.presets", "augment.recipe"}
    assert loaded <= {"embedserve_training", *(f"embedserve_training.{name}" for name in {"config", *augment})}


def test_help_loads_few_modules(modules_after_help: set[str]) -> None:
    # Stands for its time, which a busy machine would make fail: 122 modules took 0.08 s. numpy alone is 120 more.
    assert len(modules_after_help) < 200


def test_the_package_itself_loads_neither_grpc_nor_numpy() -> None:
    program = "import sys, embedserve; print(sorted(set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert sorted(set(ast.literal_eval(done.stdout)) & set(HEAVY)) == []
