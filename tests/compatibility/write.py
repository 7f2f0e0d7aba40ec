"""Write the files that the tests beside it open. Run it with the interpreter of the older version, here commit e062b2b:

    OLD/.venv/bin/python tests/compatibility/write.py tests/compatibility

It trains, exports and serves with that version and records what a client saw:

    old.tar.xz    images/, run/ (stopped one step before its end), encoder.onnx, data/ and photos.backup
    answers.json  what that version answered

The archive is small because weights are rounded to 15 levels at the start and gradients are clipped to zero, so that
weights and optimiser state do not change. The index is sealed from the first row on instead of from 1 MiB of vectors.
``TRAIN`` and ``SEAL`` do this with the module names of that version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from grpc import insecure_channel
from PIL import Image

SIDE_PX = 16
KINDS = ("stripes", "checks", "discs")
SETTINGS = ("epochs=2", "batch_size=16", "clip_norm=1e-44", "weight_decay=0", "workers=1", "size_px=16")
STOP_AT = 5
"""Of six steps."""

TRAIN = """
import os, signal, sys
import torch
from embedserve_training import methods
from embedserve_training.trainer import Trainer

build, step = methods.build, Trainer._step

def build_coarse(*args, **kwargs):
    method = build(*args, **kwargs)
    with torch.no_grad():
        for weight in method.parameters():
            if weight.ndim > 1 and weight.device.type != "meta":
                unit = 2.0 ** torch.floor(torch.log2(weight.abs().max() / 7))
                weight.copy_((weight / unit).round().clamp(-7, 7) * unit)
    return method

def step_and_stop(self, *args):
    output = step(self, *args)
    if self.step == int(os.environ.get("STOP_AT", 0)):
        signal.raise_signal(signal.SIGINT)
    return output

methods.build, Trainer._step = build_coarse, step_and_stop
"""
SEAL = "from embedserve.index import compaction; compaction._FEW_BYTES = 1\n"
MAIN = "from embedserve.cli import run; run()"


def draw(kind: str, seed: int) -> np.ndarray:
    """A picture of one of three kinds: uint8 [S, S, 3], another one for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    phase, period = rng.integers(0, 8), rng.integers(3, 6)
    if kind == "stripes":
        shape = (x + phase) // period % 2
    elif kind == "checks":
        shape = ((x + phase) // period + (y + phase) // period) % 2
    else:
        shape = (x - rng.integers(5, 11)) ** 2 + (y - rng.integers(5, 11)) ** 2 < (3 + period) ** 2
    colours = rng.integers(0, 256, (2, 3))
    return np.where(shape[..., None] > 0, colours[0], colours[1]).astype(np.uint8)


def embedserve(*arguments: object, program: str = MAIN, stop_at: int = 0) -> int:
    """Run one command; its exit code."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "STOP_AT": str(stop_at)}).returncode


@contextmanager
def serving(encoder: Path, data: Path, program: str = MAIN) -> Iterator[str]:
    """The address of a server, which is stopped at the end."""
    command = [sys.executable, "-c", program, "serve", str(encoder), "--data", str(data), "--port", "0"]
    server = subprocess.Popen([*command, "--http-port", "0"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    ready = None
    while ready is None:
        line = server.stderr.readline()
        assert line, "the server ended"
        ready = re.search(r"ready .*gRPC on (\S+)", line)
    try:
        yield ready[1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()


def items(folder: Path) -> Iterator[Any]:
    """48 images with metadata."""
    from embedserve.client import ItemInput

    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        kind = path.parent.name
        metadata: dict[str, Any] = {"kind": kind, "number": number, "share": number / 7, "even": number % 2 == 0}
        yield ItemInput(id=f"{kind}/{path.stem}", image=path, metadata=metadata)


def write(folder: Path) -> dict[str, Any]:
    """All files, and what was answered about them."""
    from embedserve.client import Client, ItemInput
    from embedserve.types import Eq

    for number, kind in enumerate(KINDS):
        (folder / "images" / kind).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(draw(kind, 100 * number + i)).save(folder / "images" / kind / f"{i:02d}.png", optimize=True)
    train = ["train", folder / "images", "-o", folder / "run", "--backbone", "small-cnn", "--device", "cpu"]
    for setting in SETTINGS:
        train += ["--set", setting]
    assert embedserve(*train, program=TRAIN + MAIN, stop_at=STOP_AT) == 130
    assert embedserve("export", folder / "run", "-o", folder / "encoder.onnx") == 0
    shutil.copytree(folder / "run", folder / "stopped")
    assert embedserve(*train, program=TRAIN + MAIN) == 0
    answers: dict[str, Any] = {"continued": json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])}
    shutil.rmtree(folder / "run")
    (folder / "stopped").rename(folder / "run")

    with serving(folder / "encoder.onnx", folder / "data", SEAL + MAIN) as address, Client(address) as client:
        client.create_collection("photos", index="hnsw:m=4,ef_construction=8", filter_keys=["kind"])
        assert all(result.error is None for result in client.add("photos", items(folder / "images")))
        while client.get_collection("photos").unsealed:
            time.sleep(0.1)
    with serving(folder / "encoder.onnx", folder / "data") as address, Client(address) as client:
        encoder = client.encoder()
        vectors = np.eye(2, encoder.dimension, dtype=np.float32)
        more = [ItemInput(id=f"axis-{n}", vector=vector) for n, vector in enumerate(vectors)]
        client.add("photos", more, encoder_fingerprint=encoder.fingerprint)
        client.delete_items("photos", ["stripes/03", "discs/07", "checks/11"])
        client.set_alias("pictures", "photos")
        client.backup_collection("photos", folder / "photos.backup")
        images = [folder / "images" / kind / "00.png" for kind in KINDS]
        answers["encoder"] = {"fingerprint": encoder.fingerprint, "dimension": encoder.dimension, "name": encoder.name}
        answers["embeddings"] = client.embed(images).vectors.tolist()
        answers["collection"] = collection(address)
        searches = {
            "image": {"image": images[0]},
            "exact": {"image": images[1], "exact": True},
            "id": {"id": "discs/05"},
            "vector": {"vector": vectors[0], "encoder_fingerprint": encoder.fingerprint},
            "filtered": {"image": images[2], "filter": Eq("kind", "stripes")},
        }
        answers["searches"] = {
            name: [[hit.id, hit.score] for hit in client.search("pictures", **arguments)]  # type: ignore[arg-type]
            for name, arguments in searches.items()
        }
        answers["items"] = [[item.id, dict(item.metadata)] for item in client.list_items("photos")]
    return answers


def collection(address: str) -> dict[str, Any]:
    """The answer of GetCollection, without the fields that change with time and with the machine."""
    from embedserve.v1 import collection_service_pb2 as pb
    from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub

    with insecure_channel(address) as channel:
        response = CollectionServiceStub(channel).GetCollection(pb.GetCollectionRequest(name="photos"))
    document: dict[str, Any] = MessageToDict(response.collection)
    return {name: value for name, value in document.items() if name not in ("diskBytes", "recall", "building", "index")}


def main() -> None:
    """Write old.tar.xz and answers.json to the folder that the command line names."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        answers = write(folder)
        with tarfile.open(out / "old.tar.xz", "w:xz", preset=9) as archive:
            for name in ("images", "run", "encoder.onnx", "data", "photos.backup"):
                archive.add(folder / name, name, filter=_is_kept)
    lines = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items()]
    (out / "answers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _is_kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out the decoded images, which a run makes again, TensorBoard's files, which nothing reads, and locks."""
    if set(entry.name.split("/")) & {"cache", "tensorboard", "LOCK", ".lock"}:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
