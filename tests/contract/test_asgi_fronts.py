"""The ASGI fronts under the contract of fronts."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers.web.asgi import SessionMiddleware

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.asgi_driver")

from .asgi_driver import serve_asgi  # noqa: E402
from .fronts import Answer, Call, FrontContract, RoamingContract  # noqa: E402
from .test_fronts import roaming, world  # noqa: E402, F401


class ASGI(FrontContract, RoamingContract):
    """Subclasses give an application with its sessions."""

    def application(self, call: Call) -> Any:
        raise NotImplementedError

    def drive(self, call: Call) -> Answer:
        return serve_asgi(self.application(call), call)


class TestASGI(ASGI):
    """No framework."""

    def application(self, call: Call) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "http.request"
            page = call.handler(scope["caterwaul.session"])
            headers = [(b"content-type", b"text/plain"), *((name.lower().encode(), value.encode()) for name, value in page.headers)]
            await send({"type": "http.response.start", "status": page.status, "headers": headers})
            if isinstance(page.body, bytes):
                await send({"type": "http.response.body", "body": page.body})
                return
            for chunk in page.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})

        return SessionMiddleware(application, call.node, call.settings, no_touch=call.no_touch)
