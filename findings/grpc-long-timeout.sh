#!/usr/bin/env bash
# gRPC for Python ends a call at once whose timeout is very long or infinite, as if it had passed.
#
#   bash findings/grpc-long-timeout.sh
#
# Software: grpcio 1.85.3 (also seen with 1.82.1). Input: a valid call to a server in the same process, with timeouts of
# 60 s, 7e9 s, 8e9 s, 1e12 s and infinity.
# Behaviour seen: the calls with 60 s and 7e9 s are answered. Those with 8e9 s, 1e12 s and infinity end within
# milliseconds with DEADLINE_EXCEEDED ("Deadline Exceeded"), although the server would have answered; both in grpc and in
# grpc.aio. The deadline, now plus timeout, passes the end of a clock that counts nanoseconds from 1970 in 64 bits (2262).
# What embedserve does: timeouts are finite and at most a year (embedserve.types.MAX_TIMEOUT_S).
#
# Exits with 0 while that is so, with 1 once it is not. Installs into a temporary folder, which is removed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3
"$folder/venv/bin/python" - <<'PROGRAM'
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

TIMEOUTS_S = (60.0, 7e9, 8e9, 1e12, float("inf"))
EXPECTED = ["answered", "answered", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"]


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def blocking(target):
    outcomes = []
    with grpc.insecure_channel(target) as channel:
        for timeout_s in TIMEOUTS_S:
            try:
                channel.unary_unary("/echo/Echo")(b"x", timeout=timeout_s)
                outcomes.append("answered")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
    return outcomes


async def asynchronous(target):
    outcomes = []
    async with grpc.aio.insecure_channel(target) as channel:
        for timeout_s in TIMEOUTS_S:
            try:
                await channel.unary_unary("/echo/Echo")(b"x", timeout=timeout_s)
                outcomes.append("answered")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
    return outcomes


server = grpc.server(ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Echo(),))
target = f"localhost:{server.add_insecure_port('localhost:0')}"
server.start()
found = {"grpc": blocking(target), "grpc.aio": asyncio.run(asynchronous(target))}
server.stop(None).wait()

print(f"grpcio {grpc.__version__}")
for api, outcomes in found.items():
    for timeout_s, outcome in zip(TIMEOUTS_S, outcomes):
        print(f"  {api:<9} timeout {timeout_s:g} s: {outcome}")
sys.exit(0 if all(outcomes == EXPECTED for outcomes in found.values()) else "this is not what was seen before")
PROGRAM
