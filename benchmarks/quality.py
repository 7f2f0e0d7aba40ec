"""What the five methods reach on Fashion-MNIST: 60,000 images without labels to learn from, 10,000 as queries.

    make dataset
    python benchmarks/quality.py [data/fashion-mnist] [--out results.json]

Each method trains small-cnn with the recipe that `embedserve train` chooses on a CPU, for a number of epochs that takes
five to thirteen minutes on two idle cores (EPOCHS). `cpu_minutes` is the time of the processor, which a busy
machine does not change much; two runs execute side by side with one thread each, which keeps two cores busier than two
threads of one run. The figures are those of the last checkpoint. A finished run folder is not trained again, so the
same command continues where it stopped.

The baselines are those of `embedserve evaluate`: the same network before training, raw pixels, PCA, each also whitened,
and the same network trained on all 60,000 labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "training")]  # so that it runs from a checkout without an installation

from measuring.machine import cpu_model  # noqa: E402

from embedserve.cores import usable_cores  # noqa: E402

EPOCHS = {"simclr": 14, "moco": 4, "barlow-twins": 8, "instance-discrimination": 14, "cpc": 3}
"""Five to thirteen minutes each on two idle cores."""
SUPERVISED_EPOCHS = 6


def main() -> int:
    """Train the missing runs, measure all, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?", default=Path("data/fashion-mnist"), help="made by make dataset")
    parser.add_argument("--methods", default=",".join(EPOCHS), help="some of them, separated by commas")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, with seeds 0, 1, … (default 1)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the epochs of each method (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the run folders")
    parser.add_argument("--backbone", default="small-cnn", help="another network, as in resnet18, best on a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on cuda one run at a time (default cpu)")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    jobs = [(method, seed) for seed in range(arguments.seeds) for method in methods]
    with ThreadPoolExecutor(arguments.jobs if arguments.device == "cpu" else 1) as pool:
        trained = list(pool.map(lambda job: train(job[0], job[1], arguments), jobs))
    results = {
        "command": " ".join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(arguments.device),
        "versions": versions(),
        "data": "Fashion-MNIST: 60,000 training images, 10,000 test images, 28 × 28, grey",
        "training": trained,
        "evaluation": measure(methods, arguments),
    }
    text = json.dumps(results, indent=2, ensure_ascii=False)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0


def run_folder(method: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The folder of a run."""
    return Path(arguments.runs) / f"{method}-{arguments.backbone}-{seed}"


def train(method: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, by the command of a user; its settings and its time."""
    out = run_folder(method, seed, arguments)
    epochs = max(round(EPOCHS[method] * arguments.share), 1)
    command = [sys.executable, "-m", "embedserve", "train", str((arguments.images / "train").resolve())]
    command += ["-o", str(out.resolve())]
    command += ["--method", method, "--epochs", str(epochs), "--seed", str(seed), "--json"]
    command += ["--device", arguments.device, "--backbone", arguments.backbone]
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'training'}"}
    if arguments.device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    document, cpu_minutes = run(command, environment, f"{method} seed {seed}")
    # Of a run that failed or was stopped, only the time since it was resumed is known.
    note = out / "cpu_minutes.json"
    spent = (json.loads(note.read_text()) if note.exists() else 0.0) + cpu_minutes
    if document["status"] == "finished before":
        spent -= cpu_minutes
    note.write_text(json.dumps(spent))
    return {
        "method": method,
        "seed": seed,
        "images": document["images"],
        "steps": document["steps"],
        "minutes": round(document["seconds"] / 60, 1),
        "cpu_minutes": round(spent, 1),
        "settings": document["settings"],
    }


def run(command: list[str], environment: dict[str, str], name: str) -> tuple[dict[str, Any], float]:
    """The JSON document that a command prints, and its minutes of processor time.

    Raises:
        SystemExit: it failed.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            print(f"{name}: {line.rstrip()}", file=sys.stderr)
        answer = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed: {''.join(lines[-3:])}")
    return json.loads(answer), (used.ru_utime + used.ru_stime) / 60


def measure(methods: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of all runs and the baselines, from `evaluate`; those of a method are cached beside its runs."""
    found = [measure_method(method, arguments, baselines=method == methods[0]) for method in methods]
    own = [row for evaluation in found for row in evaluation["rows"] if row["method"]]
    baselines = [row for evaluation in found for row in evaluation["rows"] if not row["method"]]
    return {**found[0], "rows": own + baselines}


def measure_method(method: str, arguments: argparse.Namespace, *, baselines: bool) -> dict[str, Any]:
    """The figures of the runs of one method."""
    from embedserve_training.evaluate import evaluate

    folders = [run_folder(method, seed, arguments) for seed in range(arguments.seeds)]
    kept = folders[0] / f"evaluation-{arguments.seeds}-{baselines}.json"
    if kept.exists() and kept.stat().st_mtime > max((path / "checkpoint.pt").stat().st_mtime for path in folders):
        known: dict[str, Any] = json.loads(kept.read_text())
        return known
    evaluation = evaluate(
        folders,
        arguments.images / "train",
        arguments.images / "test",
        report=lambda line: print(f"{method}: {line}", file=sys.stderr),
        supervised_epochs=max(round(SUPERVISED_EPOCHS * arguments.share), 1) if baselines else 0,
        baselines=baselines,
    )
    document = {**evaluation.to_json(), "subjects": [path.name for path in folders]}
    for row in document["rows"]:
        row["method"] = method if row["name"].startswith("trained") else ""
    kept.write_text(json.dumps(document))
    return document


def hardware(device: str) -> dict[str, Any]:
    """The machine of the measurement."""
    found: dict[str, Any] = {"cores": usable_cores(), "cpu": cpu_model(), "device": device}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    from embedserve_training.run.run import versions as of_run

    return of_run()


if __name__ == "__main__":
    sys.exit(main())
