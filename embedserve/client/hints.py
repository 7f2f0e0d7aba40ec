"""Hints that say what to write: in Python to a program, and as flags to somebody at the command line."""

from __future__ import annotations


class Hint(str):
    """A hint for a Python program; ``on_command_line`` is the same for ``embedserve``'s own commands."""

    on_command_line: str

    def __new__(cls, python: str, command_line: str) -> Hint:
        """Both wordings."""
        hint = super().__new__(cls, python)
        hint.on_command_line = command_line
        return hint

    def __reduce__(self) -> tuple[type[Hint], tuple[str, str]]:
        return Hint, (str(self), self.on_command_line)


START = Hint(
    "start one: embedserve serve encoder.onnx --data data/; if one runs there, it may speak TLS: Client(…, ca='ca.pem')"
    " or tls=True",
    "start one: embedserve serve encoder.onnx --data data/; if one runs there, it may speak TLS: --ca FILE or --tls",
)
NO_NAME = Hint(
    "check the name of the machine: Client('HOST:PORT')",
    "check the name of the machine: --server HOST:PORT, or EMBEDSERVE_SERVER in the environment",
)
TOKEN = Hint("Client(…, token=…)", "--token-file FILE, or EMBEDSERVE_TOKEN in the environment")
LATE = Hint("allow more: Client(timeout_s=…)", "the server may be busy: embedserve doctor --server HOST:PORT")
CA = Hint("give the CA that signed it: Client(…, ca='ca.pem')", "give the CA that signed it: --ca ca.pem")
TLS_ONLY = Hint(
    "it may speak TLS only (Client(…, ca='ca.pem')), or ask for a client certificate that it trusts (client_cert and"
    " client_key)",
    "it may speak TLS only (--ca ca.pem), or ask for a client certificate that it trusts (--client-cert and"
    " --client-key)",
)
NO_TLS = Hint(
    "start it with --tls-cert and --tls-key, or connect without TLS: no tls, ca or client_cert",
    "start it with --tls-cert and --tls-key, or connect without TLS: no --tls, --ca or --client-cert",
)
PLAIN_TOKEN = Hint(
    "Client(…, ca='ca.pem') or tls=True; allow_plain_token=True where the way is safe",
    "--ca FILE or --tls; --allow-plain-token where the way is safe",
)
NOT_GRPC = Hint(
    'the gRPC address is the one that embedserve serve prints as "gRPC on …", with port 50051 by default, not that of'
    " the HTTP port; if it is a proxy, it must take HTTP/2 (nginx: listen … http2, and grpc_pass); if it speaks TLS:"
    " Client(…, ca='ca.pem') or tls=True",
    'the gRPC address is the one that embedserve serve prints as "gRPC on …", with port 50051 by default, not that of'
    " the HTTP port; if it is a proxy, it must take HTTP/2 (nginx: listen … http2, and grpc_pass); if it speaks TLS:"
    " --ca FILE or --tls",
)
