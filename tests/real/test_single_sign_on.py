"""Two Flask applications on two nodes, which share their logins (`examples/single_sign_on.py`)."""

from __future__ import annotations

import http.client
import signal
from pathlib import Path

from .processes import Cluster, until
from .servers import Server, configuration


class Browser:
    """Keeps cookies by path and name, as those of one host."""

    def __init__(self) -> None:
        self.jar: dict[str, str] = {}

    def get(self, server: Server, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Cookie": "; ".join(f"{name}={value}" for name, value in self.jar.items())})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.jar.pop(name, None)
            if "Max-Age=0" not in cookie:
                self.jar[name] = value
        assert answer.status == 200, text
        return text.strip()


def is_up(server: Server) -> bool:
    try:
        return Browser().get(server, "/shop/") == "shop: nobody"
    except (OSError, http.client.HTTPException):
        return False


def test_one_login_and_one_logout_in_two_applications_on_two_nodes(tmp_path: Path) -> None:
    with Cluster() as cluster:
        config = configuration(cluster, tmp_path)
        with Server(["examples/single_sign_on.py", "a", "PORT"], config) as a, Server(["examples/single_sign_on.py", "b", "PORT"], config) as b:
            for server in (a, b):
                until(lambda server=server: is_up(server), 40, "the applications answer")  # type: ignore[misc]
            ann, bob = Browser(), Browser()
            assert bob.get(b, "/blog/login/bob") == "blog: bob"
            assert ann.get(a, "/shop/login/ann") == "shop: ann"
            for _ in range(2):
                assert [ann.get(server, path) for server in (b, a) for path in ("/blog/", "/shop/")] == ["blog: ann", "shop: ann"] * 2
            stolen = dict(ann.jar)
            assert ann.get(b, "/blog/logout") == "blog: goodbye"
            for jar in (dict(ann.jar), stolen):
                ann.jar = dict(jar)
                assert [ann.get(server, path) for server in (a, b) for path in ("/shop/", "/blog/")] == ["shop: nobody", "blog: nobody"] * 2
            assert [bob.get(server, path) for server in (a, b) for path in ("/shop/", "/blog/")] == ["shop: bob", "blog: bob"] * 2
            away = dict(bob.jar)
            b.signal(signal.SIGSTOP)
            assert bob.get(a, "/shop/logout") == "shop: goodbye"
            b.signal(signal.SIGCONT)
            bob.jar = away
            until(lambda: bob.get(b, "/shop/") == "shop: nobody", what="the node that stood still hears of the logout")
            bob.jar = dict(away)
            assert bob.get(b, "/blog/") == "blog: nobody"
