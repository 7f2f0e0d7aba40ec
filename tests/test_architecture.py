"""Who may import whom: each room only what its line allows, which is always something below it.

The imports are read by ``scripts/architecture.py``, which draws them too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from scripts import architecture
from scripts.architecture import PACKAGES, PICTURE, REPOSITORY, WORDS, graph, imports_of

ROOMS: dict[str, str] = {
    # --- embedserve, from the bottom; the words (errors, types, …) may be imported by all ---
    "embedserve/v1": "",
    "embedserve/images": "",
    "embedserve/folder": "images",
    "embedserve/encoder": "images",
    "embedserve/index": "",
    "embedserve/store": "",
    "embedserve/store/local/records": "",
    "embedserve/store/local/collection": "index store/local/records",
    "embedserve/store/local/upkeep": "index store/local/records store/local/collection",
    "embedserve/store/local": "index store/local/records store/local/collection store/local/upkeep",
    "embedserve/wire": "v1",
    "embedserve/client": "wire v1",
    "embedserve/loadtest": "client wire v1",
    "embedserve/engine": "store encoder images",
    "embedserve/server/lifecycle": "engine encoder",
    "embedserve/server/telemetry": "engine",
    "embedserve/server/calls": "server/lifecycle engine encoder wire v1",
    "embedserve/server/access": "server/calls",
    "embedserve/server/services": "server/calls server/lifecycle engine encoder wire v1",
    "embedserve/server": "server/access server/calls server/lifecycle server/services server/telemetry"
    " engine encoder store/local v1",
    # --- embedserve_training; of embedserve it may import words, images, folder and encoder ---
    "embedserve_training/seeds": "",
    "embedserve_training/augment": "",
    "embedserve_training/dtypes": "",
    "embedserve_training/losses": "dtypes",
    "embedserve_training/distributed": "",
    "embedserve_training/plan": "augment embedserve/images",
    "embedserve_training/data": "seeds plan embedserve/images embedserve/folder",
    "embedserve_training/networks": "plan distributed dtypes",
    "embedserve_training/methods": "plan networks losses distributed dtypes",
    "embedserve_training/watch": "methods",
    "embedserve_training/run": "plan data augment networks methods watch distributed seeds embedserve/images"
    " embedserve/folder",
    "embedserve_training/evaluate": "plan data augment networks run seeds embedserve/images embedserve/encoder",
    "embedserve_training/export": "data run evaluate embedserve/images embedserve/encoder",
    "embedserve_training/preview": "plan data augment",
    # --- the command line, over both ---
    "embedserve/cli/terminal": "client folder",
    "embedserve/cli/collection": "cli/terminal client",
    "embedserve/cli": "cli/terminal cli/collection server server/telemetry client loadtest encoder folder wire v1"
    " images embedserve_training/plan embedserve_training/data embedserve_training/run embedserve_training/evaluate"
    " embedserve_training/export embedserve_training/preview",
}
"""Room → the rooms that it may import. A name without a package is of the room's own."""

GRAPH = graph()
HEAVY = ("simplejpeg", "torch", "torchvision", "onnxruntime", "faiss", "grpc", "google", "numpy", "PIL", "rich")


def allowed(room: str) -> set[str]:
    package = room.partition("/")[0]
    return {name if name.startswith("embedserve") else f"{package}/{name}" for name in ROOMS[room].split()}


def test_every_room_has_its_line() -> None:
    assert GRAPH.keys() == {WORDS, *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_line_says_and_nothing_else(room: str) -> None:
    # What is allowed and not done any more goes too, so that the lines are the picture.
    assert GRAPH[room] - {WORDS} == allowed(room)


def test_a_line_names_only_rooms_above_it_in_the_list_so_imports_lead_downwards() -> None:
    seen: set[str] = set()
    for room in ROOMS:
        assert allowed(room) <= seen, room
        seen.add(room)


def test_the_words_import_no_room() -> None:
    assert GRAPH[WORDS] == set()


def test_a_circle_of_rooms_is_named() -> None:
    with pytest.raises(ValueError, match="a → b → c → a"):
        architecture.floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_floors_and_implied_arrows_of_a_small_graph() -> None:
    rooms = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set(), "beside": set()}
    assert architecture.floors(rooms) == {"bottom": 0, "beside": 0, "middle": 1, "top": 2}
    assert architecture.without_implied(rooms) == {
        "top": {"middle"},
        "middle": {"bottom"},
        "bottom": set(),
        "beside": set(),
    }


def test_the_drawn_picture_is_that_of_the_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == architecture.draw(GRAPH), "run: python scripts/architecture.py"


def test_the_root_of_the_package_holds_words_only() -> None:
    modules = {path.stem for path in PACKAGES[WORDS].glob("*.py")} - {"__init__", "__main__"}
    assert sorted(modules) == [
        *("answer_size", "atomic_write", "cgroup", "changes", "conditions", "cores", "descriptors", "errors", "memory"),
        *("metadata", "nearest", "observer", "pem", "regular_file", "types", "wanted"),
    ]


def test_no_file_that_people_write_is_longer_than_450_lines() -> None:
    long = {
        path.relative_to(REPOSITORY).as_posix(): lines
        for package in PACKAGES.values()
        for path in package.rglob("*.py")
        if not path.is_relative_to(PACKAGES[WORDS] / "v1")
        and (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert long == {}


def test_torch_is_nowhere_in_embedserve_not_even_for_types() -> None:
    forbidden = {"torch", "torchvision", "onnx", "onnxscript", "timm"}
    assert [item.where for item in imports_of("embedserve") if item.parts[0] in forbidden] == []


def test_training_is_imported_only_by_commands_and_only_when_they_run() -> None:
    wrong = [
        item.where
        for item in imports_of("embedserve")
        if item.parts[0] == "embedserve_training"
        and not (item.importer.startswith("embedserve.cli.") and (item.in_function or item.types_only))
    ]
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
    settings = {"plan", "plan.config", "plan.image_settings", "plan.sizes"} | {
        "augment",
        "augment.presets",
        "augment.recipe",
    }
    assert loaded <= {"embedserve_training", *(f"embedserve_training.{name}" for name in settings)}


def test_help_loads_few_modules(modules_after_help: set[str]) -> None:
    # Stands for its time, which a busy machine would make fail: beside those of click there were 55 in November 2026,
    # and 0.08 s. numpy alone is 120 more.
    program = "import click, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert len(modules_after_help - set(json.loads(done.stdout))) <= 55


def test_the_package_itself_loads_neither_grpc_nor_numpy() -> None:
    program = "import sys, embedserve; print(sorted(set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert sorted(set(ast.literal_eval(done.stdout)) & set(HEAVY)) == []
