"""Who may look: whoever is on this machine, or has the token where the page is served to others.

On the loopback address a page of another site must not read runs through a name that it points
here (DNS rebinding): only names of this machine are answered. Elsewhere every request carries the
token, as ``?token=`` once and as a cookie from then on, or as ``Authorization: Bearer``.
"""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "scope_megatron_view"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class AccessGuard:
    """Answers what may not be asked, and puts :data:`HEADERS` on every answer."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                pairs = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *pairs]
            await send(message)

        await (self._refusal(request) or self.app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> ASGIApp | None:
        if self.token is None:
            if request.url.hostname in LOOPBACK:
                return None
            return PlainTextResponse("ask by the name localhost", status_code=403)
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            answer = RedirectResponse(request.url.path, status_code=303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(request.cookies.get(COOKIE, "")) or self._is_token(bearer):
            return None
        return PlainTextResponse("the address that was printed has a token", status_code=403)

    def _is_token(self, given: str) -> bool:
        assert self.token is not None
        return secrets.compare_digest(given.encode(), self.token.encode())
