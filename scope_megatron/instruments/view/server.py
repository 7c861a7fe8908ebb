"""The page's server: its files, and answers in JSON to what it asks for."""

from __future__ import annotations

import json
import math
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from scope_megatron.instruments.report.timeline import drawn_step
from scope_megatron.instruments.view.access import LOOPBACK, AccessGuard
from scope_megatron.instruments.view.runs import RunFolder, differences, find_runs
from scope_megatron.instruments.view.search import ORDERS, ResponseQuery
from scope_megatron.trace.files import traced_steps

STATIC = Path(__file__).parent / "static"
MOST_METRICS = 100  # of one request


class RunsPage:
    """The answers; Starlette calls them in threads, since they read files."""

    def __init__(self, runs: list[RunFolder]) -> None:
        self.runs = runs
        self._drawing = threading.Lock()  # matplotlib's settings are the process's

    def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    def summaries(self, request: Request) -> Response:
        out = []
        for run in self.runs:
            with run.lock:
                run.refresh()
                out.append(run.summary())
        return _json(out)

    def curves(self, request: Request) -> Response:
        """``?run=N&name=...&name=...&first=&last=``: series by name."""
        run = self._run(request)
        names = request.query_params.getlist("name")[:MOST_METRICS]
        first = _number(request, "first", -math.inf)
        last = _number(request, "last", math.inf)
        with run.lock:
            run.curves.refresh()
            series = {name: run.curves.thinned(name, first, last) for name in names}
        return _json({"version": run.curves.version, "series": series})

    def responses(self, request: Request) -> Response:
        """``?run=N&kind=&path=&verdict=&finished=&first=&last=&order=&offset=``."""
        run, given = self._run(request), request.query_params
        order = given.get("order") or "newest"
        if order not in ORDERS:
            raise HTTPException(400, f"order: {order} is not one of {', '.join(ORDERS)}")
        wanted = ResponseQuery(
            kind=given.get("kind") or None,
            path=given.get("path") or None,
            verdict=given.get("verdict") or None,
            finished={"true": True, "false": False}.get(given.get("finished", "")),
            first=_whole(request, "first"),
            last=_whole(request, "last"),
            order=order,
            offset=max(_whole(request, "offset") or 0, 0),
        )
        with run.lock:
            run.responses.refresh()
            return _json(run.responses.find(wanted))

    def group(self, request: Request) -> Response:
        """``?run=N&kind=&step=&set=&group=&most=``: the responses of a prompt with their tokens."""
        run, given = self._run(request), request.query_params
        step, number = _whole(request, "step"), _whole(request, "group")
        if step is None or number is None:
            raise HTTPException(400, "step and group: are missing")
        with run.lock:
            run.responses.refresh()
            kind, name = given.get("kind", "train"), given.get("set", "")
            found = run.responses.group(kind, step, name, number, _whole(request, "most"))
        if not found:
            raise HTTPException(404, "no such group; it may have been removed in the meantime")
        return _json(found)

    def alternatives(self, request: Request) -> Response:
        """``?run=N&kind=&step=&set=&group=&sample=&token=``: the likeliest tokens in the place of
        one of a response, by model."""
        run, given = self._run(request), request.query_params
        numbers = [_whole(request, name) for name in ("step", "group", "sample", "token")]
        if None in numbers:
            raise HTTPException(400, "step, group, sample and token: one is missing")
        step, group, sample, token = (number or 0 for number in numbers)
        with run.lock:
            run.responses.refresh()
            kind, name = given.get("kind", "train"), given.get("set", "")
            found = run.responses.alternatives(kind, step, name, group, sample, token)
        if found is None:
            raise HTTPException(404, "no such token; its file may have been removed meanwhile")
        return _json(found)

    def traced(self, request: Request) -> Response:
        """``?run=N``: the steps of its trace."""
        return _json(traced_steps(self._run(request).directory))

    def timeline(self, request: Request) -> Response:
        """``?run=N&step=``: what each rank did in a step of the trace, as a picture."""
        run, step = self._run(request), _whole(request, "step")
        if step is None or step not in traced_steps(run.directory):
            raise HTTPException(404, "step: is not in the run's trace")
        with self._drawing:
            return Response(drawn_step(run.directory, step, run.name), media_type="image/png")

    def configs(self, request: Request) -> Response:
        return _json(differences([run.config() for run in self.runs]))

    def _run(self, request: Request) -> RunFolder:
        number = _whole(request, "run") or 0
        if not 0 <= number < len(self.runs):
            raise HTTPException(404, f"run: there is no number {number}")
        return self.runs[number]


def build_app(runs: list[RunFolder], token: str | None) -> Starlette:
    """The application; without a ``token`` it answers names of this machine alone."""
    page = RunsPage(runs)
    routes = [
        Route("/", page.page),
        Route("/api/runs", page.summaries),
        Route("/api/curves", page.curves),
        Route("/api/responses", page.responses),
        Route("/api/group", page.group),
        Route("/api/alternatives", page.alternatives),
        Route("/api/traced", page.traced),
        Route("/api/timeline", page.timeline),
        Route("/api/config", page.configs),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    middleware = [Middleware(AccessGuard, token=token), Middleware(GZipMiddleware, compresslevel=1)]
    return Starlette(routes=routes, middleware=middleware)


def serve(paths: list[Path], host: str, port: int, token: str | None) -> None:
    """Serve until interrupted. Raises ValueError where there is no run, or no such address."""
    runs = find_runs(paths)
    if host not in LOOPBACK:
        token = token or secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # before the address is told: who follows it at once is not refused
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"--port: {host} port {port} cannot be had ({reason}); give another --host or "
            "--port, or --port 0 for any"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/{f'?token={token}' if token else ''}"
    print(f"{len(runs)} run{'s' * (len(runs) != 1)} at {address} (Ctrl-C ends it)", flush=True)
    settings = uvicorn.Config(build_app(runs, token), log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listener])


def _json(value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _number(request: Request, name: str, otherwise: float) -> float:
    text = request.query_params.get(name)
    try:
        return float(text) if text else otherwise
    except ValueError:
        raise HTTPException(400, f"{name}: is no number") from None


def _whole(request: Request, name: str) -> int | None:
    value = _number(request, name, math.nan)
    return int(value) if math.isfinite(value) else None
