"""The command that shows runs on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.config import ConfigError
from scope_megatron.instruments.commands.common import user_errors


def view(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="output_dir of runs, or a folder of them")
    ],
    host: Annotated[
        str, typer.Option(help="address to serve on; another than this machine's needs the token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8765,
    token: Annotated[
        str | None, typer.Option(help="what a visitor must know [made up where one is needed]")
    ] = None,
) -> None:
    """Look at runs, live or finished, on a local web page: curves, responses, faults, settings."""
    with user_errors():
        if token is not None and len(token) < 8:
            raise ConfigError("--token: has fewer than 8 characters; give a longer one, or none")
        from scope_megatron.instruments.view.server import serve

        serve(runs, host, port, token)
