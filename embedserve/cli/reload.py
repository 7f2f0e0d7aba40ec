"""`embedserve reload`: a running server takes the encoder that is in its file now."""

from __future__ import annotations

import click

from embedserve.cli.options import server_option


@click.command("reload")
@click.option("--fingerprint", default="", help="What the file has to hold; without it, whatever is there is served.")
@server_option
def command(fingerprint: str, server: str) -> None:
    """Have a running server read its encoder file again and serve what is in it, without a pause.

    The new encoder is verified and warmed up first; a file that cannot be used changes nothing. The server has to ask
    for tokens (--tokens), and this command needs one of the role write. On the machine of the server, SIGHUP does the
    same.

    \b
    embedserve export runs/new -o encoder.onnx     where the server reads it
    embedserve reload --token-file write.token
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import say

    with connect(server, timeout_s=300) as client:
        before = client.server_info().encoder
        current = client.replace_encoder(fingerprint=fingerprint)
    if current.fingerprint == before.fingerprint:
        say(f"the file holds the encoder that runs: {current.name} ({current.fingerprint[:12]})")
    else:
        say(f"replaced {before.name} ({before.fingerprint[:12]}) by {current.name} ({current.fingerprint[:12]})")
