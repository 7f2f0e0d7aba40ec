"""Modules that libraries import at their first use, imported at the start.

An import opens files. At the first error of a server whose descriptors or disk are exhausted, which is when errors
happen, it would fail, and the caller would be told of a bug.
"""

from __future__ import annotations

import importlib

_AT_FIRST_USE = (
    "google.protobuf.any_pb2",  # the details of an error: embedserve/wire/errors.py
    "google.protobuf.duration_pb2",
    "google.rpc.code_pb2",
    "google.rpc.error_details_pb2",
    "google.rpc.status_pb2",
    "grpc_status.rpc_status",
    "numpy.ma",  # numpy.unique, in a check
    "encodings.idna",  # host names
)


def import_now() -> None:
    """Import everything that a call, an error or a probe needs."""
    from PIL import Image

    for name in _AT_FIRST_USE:
        importlib.import_module(name)
    Image.init()  # Pillow imports its formats when it meets bytes that are none of the usual ones
