"""Generate from protos/: the Python code in embedserve/v1 and the reference docs/wire.md.

    python scripts/proto.py                      write both into this repository
    python scripts/proto.py --root FOLDER        write both below another folder, as the test does
    python scripts/proto.py --image image.binpb  write only a descriptor set with comments, which buf lint reads

Needs grpcio-tools and mypy-protobuf in the versions pinned in pyproject.toml: the result is compared byte for byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import wire_doc
from google.protobuf.descriptor_pb2 import FileDescriptorSet

REPOSITORY = Path(__file__).resolve().parents[1]
PROTOS = REPOSITORY / "protos"


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description="Write embedserve/v1 and docs/wire.md from protos/.")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="folder to write below (this repository)")
    parser.add_argument("--image", type=Path, help="write only a descriptor set with comments to this file")
    arguments = parser.parse_args()
    if arguments.image:
        write_image(arguments.image)
    else:
        write_code(arguments.root)
        write_reference(arguments.root)


def write_code(root: Path) -> None:
    """embedserve/v1/*_pb2.py, *_pb2_grpc.py and their type stubs."""
    (root / "embedserve/v1").mkdir(parents=True, exist_ok=True)
    plugins = [f"--plugin=protoc-gen-{name}={_plugin(name)}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{name}_out={root}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    _protoc([*plugins, *outputs])
    for proto in _sources():
        if "\nservice " not in proto.read_text(encoding="utf-8"):
            # Without a service the gRPC plugins write modules that only check a version.
            for suffix in (".py", ".pyi"):
                (root / "embedserve/v1" / f"{proto.stem}_pb2_grpc{suffix}").unlink()


def write_reference(root: Path) -> None:
    """docs/wire.md, from the comments in the protos."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        write_image(image)
        files = FileDescriptorSet.FromString(image.read_bytes())
    (root / "docs").mkdir(parents=True, exist_ok=True)
    (root / "docs/wire.md").write_text(wire_doc.render(files), encoding="utf-8")


def write_image(path: Path) -> None:
    """A FileDescriptorSet of our protos and all that they import, with comments."""
    _protoc([f"--descriptor_set_out={path}", "--include_imports", "--include_source_info"])


def _protoc(arguments: list[str]) -> None:
    from grpc_tools import protoc  # type: ignore[import-untyped]

    # google/protobuf/*.proto come with grpcio-tools, google/rpc/*.proto with googleapis-common-protos.
    includes = [PROTOS, _folder_of("grpc_tools") / "_proto", _folder_of("google.rpc").parents[1]]
    command = ["protoc", *(f"-I{include}" for include in includes), *arguments, *map(str, _sources())]
    if protoc.main(command) != 0:
        sys.exit("error: protoc failed; its messages are above")


def _sources() -> list[Path]:
    return sorted((PROTOS / "embedserve/v1").glob("*.proto"))


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: {package} is not installed\nhint:  pip install -e '.[dev]'")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _plugin(name: str) -> Path:
    path = Path(sys.executable).parent / f"protoc-gen-{name}"
    if not path.exists():
        sys.exit("error: mypy-protobuf is not installed\nhint:  pip install -e '.[dev]'")
    return path


if __name__ == "__main__":
    main()
