"""The encoder file of a run: it describes itself, is reproducible, and is written only if it agrees with PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from embedserve.encoder import encoder_file
from embedserve.encoder.session import Encoder
from embedserve.errors import ExportError, TrainingError
from embedserve.images import preprocess
from embedserve_training.export import export as module
from embedserve_training.export.export import export
from embedserve_training.networks import backbones
from embedserve_training.run import run_folder, served
from embedserve_training.run.served import ServedEncoder


def quiet(line: str) -> None:
    """Discards the line."""


def test_the_file_gives_the_embeddings_of_pytorch_for_files_on_disk(
    finished_run: Path, exported: Path, image_folder: Path
) -> None:
    encoder = Encoder.open(exported, device="cpu")
    paths = sorted(image_folder.rglob("*.png"))
    squares = np.stack([preprocess.load(encoder.metadata.preprocess, path.read_bytes()) for path in paths])
    exported_ND, expected_ND = encoder.encode(squares), served.embed(served.trained(finished_run), squares)
    assert float((exported_ND * expected_ND).sum(1).min()) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(exported_ND, axis=1), 1, atol=1e-5)


def test_the_file_describes_the_run(finished_run: Path, exported: Path) -> None:
    metadata = encoder_file.read(exported).metadata
    plan = run_folder.read_plan(finished_run)
    assert (metadata.method, metadata.backbone, metadata.dimension) == ("simclr", "small-cnn", 256)
    assert metadata.training == plan.settings.to_json()
    assert metadata.preprocess.to_json() == plan.preprocess
    assert metadata.data == {"fingerprint": plan.data["fingerprint"], "images": 48}
    assert {"torch", "embedserve"} <= set(metadata.versions)


def test_the_reference_vectors_are_reproduced(exported: Path) -> None:
    assert Encoder.open(exported, device="cpu").reference_cosine() > 0.9999


def test_exporting_twice_gives_the_same_file(finished_run: Path, exported: Path, tmp_path: Path) -> None:
    again = export(finished_run, tmp_path / "again.onnx", report=quiet)
    assert again.fingerprint == encoder_file.read(exported).fingerprint
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_an_encoder_too_large_for_one_file_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_file, "MAX_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"the encoder has \d+\.\d GB; one file holds at most 2 GB"):
        module._serialised(onnx.load(exported))


def test_no_path_of_this_machine_is_in_the_file(finished_run: Path, exported: Path, image_folder: Path) -> None:
    content = exported.read_bytes()
    for path in (finished_run, image_folder, Path(module.__file__).parent, Path(torch.__file__).parent, Path.home()):
        assert str(path).encode() not in content
    for trace in (b"stack_trace", b"site-packages", b".py"):
        assert trace not in content


def test_a_graph_that_differs_from_pytorch_is_not_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    other = ServedEncoder(backbones.build("small-cnn", 16)).eval()
    original = module.to_onnx
    monkeypatch.setattr(module, "to_onnx", lambda network, size_px: original(other, size_px))
    with pytest.raises(ExportError, match="differs from PyTorch: lowest cosine"):
        export(finished_run, tmp_path / "encoder.onnx", report=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_depends_on_the_batch_is_not_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BatchDependent(ServedEncoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            # The statistics of the batch make every vector depend on its neighbours.
            vectors = super().forward(images)
            return torch.nn.functional.normalize(vectors - vectors.mean(0, keepdim=True) + 1e-3, dim=1)

    original = module.to_onnx
    monkeypatch.setattr(
        module, "to_onnx", lambda network, size_px: original(BatchDependent(network.backbone).eval(), size_px)
    )
    with pytest.raises(ExportError, match="no file was written"):
        export(finished_run, tmp_path / "encoder.onnx", report=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_resnet_can_be_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ServedEncoder(backbones.build("resnet18", 32)).eval()
    model = module.to_onnx(network, 32)
    metadata = encoder_file.EncoderMetadata(name="r18", dimension=512, preprocess=preprocess.PreprocessSpec(size_px=32))
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    encoder = Encoder.from_file(encoder_file.pack(model, metadata), device="cpu")
    assert float((encoder.encode(images) * served.embed(network, images)).sum(1).min()) > 0.9999


def test_a_folder_without_a_run_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training run"):
        export(tmp_path, tmp_path / "encoder.onnx", report=quiet)
