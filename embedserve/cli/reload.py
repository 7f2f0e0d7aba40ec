"""`embedserve reload`: a running server loads its encoder file again."""

from __future__ import annotations

import click

from embedserve.cli.terminal.options import server_option


@click.command("reload")
@click.option(
    "--fingerprint", default="", help="Fingerprint that the file must have; without it any encoder is accepted."
)
@server_option
def command(fingerprint: str, server: str) -> None:
    """Have a running server load its encoder file again and serve the new encoder, without a pause.

    The new encoder is verified and warmed up first; a file that cannot be used changes nothing. The server must require
    tokens (--tokens), and this command needs one with the role write. On the server's machine, SIGHUP does the same.

    \b
    embedserve export runs/new -o encoder.onnx     the file that the server reads
    embedserve reload --token-file write.token
    """
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import say

    with connect(server, timeout_s=300) as client:
        before = client.server_info().encoder
        current = client.replace_encoder(fingerprint=fingerprint)
    if current.fingerprint == before.fingerprint:
        say(f"the file holds the encoder that is already served: {current.name} ({current.fingerprint[:12]})")
    else:
        say(f"replaced {before.name} ({before.fingerprint[:12]}) with {current.name} ({current.fingerprint[:12]})")
