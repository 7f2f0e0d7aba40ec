"""Servers are killed during writes of many clients; the next one has what was acknowledged, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve.store.local.store import LocalStore
from tests.durability.checks import check_promises, read_world
from tests.durability.ledger import SHARED, StoreDoor, Violation, Writer
from tests.durability.over_grpc import SMALL_SERVER, ClientDoor, Ledger, door_to, no_second_tries, write_until_killed
from tests.encoders import write_encoder_file
from tests.running import ServerProcess

WRITERS = 4


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


def server(encoder_file: Path, data: Path) -> ServerProcess:
    started = ServerProcess(str(encoder_file), "--data", str(data), "--no-http", program=SMALL_SERVER)
    assert started.address, started.said
    return started


@pytest.mark.slow
def test_no_killed_server_loses_what_it_acknowledged(
    encoder_file: Path, tmp_path: Path, seed: int, count: Callable[..., None]
) -> None:
    rounds = int(os.environ.get("CRASH_ROUNDS", "20"))
    data, chance = tmp_path / "data", random.Random(seed)
    people = [Writer(number, seed, ids=300, batches=(1, 1, 5, 40, 200), media=False) for number in range(WRITERS)]
    ledger = Ledger(tmp_path / "ledger.jsonl", WRITERS)
    acknowledged = 0
    for number in range(rounds):
        if chance.random() < 0.2:
            _kill_a_start(encoder_file, data, chance.uniform(0.2, 2))
        if chance.random() < 0.1:
            # Segments are a cache, which may be removed while no server runs.
            for segments in data.glob("collections/*/segments"):
                shutil.rmtree(segments)
        with server(encoder_file, data) as running:
            try:
                with door_to(running.address) as door:
                    if number == 0:
                        door.create(SHARED)
                    _settle(door, people, ledger, number)
                _write_and_kill(running, people, ledger, chance.uniform(0.05, 1.5))
            except Violation as violation:
                raise Violation(
                    f"seed {seed}, round {number}, ledger {tmp_path / 'ledger.jsonl'}: {violation}"
                ) from None
        acknowledged += sum(ledger.acknowledged)
    with server(encoder_file, data) as running:
        with door_to(running.address) as door:
            _settle(door, people, ledger, rounds)
        assert running.terminate() == 0
    with LocalStore.open(data) as store:
        _settle(StoreDoor(store), people, ledger, rounds)
    ledger.close()
    count("killed servers", rounds=rounds, acknowledged_calls=acknowledged, violations=0)
    assert acknowledged > rounds * WRITERS


def _kill_a_start(encoder_file: Path, data: Path, after_s: float) -> None:
    """Start a server that is killed while it reads its data, before it answers."""
    command = [
        sys.executable,
        *SMALL_SERVER,
        "serve",
        "--port",
        "0",
        "--no-http",
        str(encoder_file),
        "--data",
        str(data),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        threading.Event().wait(after_s)
        process.kill()


def _settle(door: ClientDoor | StoreDoor, people: list[Writer], ledger: Ledger, number: int) -> None:
    """Compare the content with the ledger, and continue from it."""
    world = read_world(door)
    check_promises(people, ledger.acknowledged, ledger.begun, world)
    for writer in people:
        writer.settled(world.of(writer.prefix))
    ledger.restart(number)


def _write_and_kill(running: ServerProcess, people: list[Writer], ledger: Ledger, after_s: float) -> None:
    failures: list[BaseException] = []

    def write(number: int, writer: Writer) -> None:
        try:
            write_until_killed(running.address, number, writer, ledger)
        except BaseException as error:
            failures.append(error)

    with no_second_tries():
        threads = [threading.Thread(target=write, args=(number, writer)) for number, writer in enumerate(people)]
        for thread in threads:
            thread.start()
        threading.Event().wait(after_s)
        running.kill()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    if failures:
        raise failures[0]
