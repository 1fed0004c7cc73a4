"""Klein's idioms: authorizers, forms, both ways to procure a session."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from klein import Authorization, Field, Form, Klein, Requirer
from klein import SessionProcurer as KleinsProcurer
from klein.interfaces import ISession, ISessionProcurer, ISessionStore, NoSuchSession, SessionMechanism
from klein.storage.memory import declareMemoryAuthorizer
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from caterwaul.managers.errors import SessionEnded, SessionUnknown
from caterwaul.managers.web.cookies import CookieSettings
from caterwaul.managers.web.klein import KleinSession, SessionProcurer, SessionStore
from caterwaul.managers.web.twisted_web import SessionSite
from caterwaul.membership.errors import LocalError

from ..contract.double import World


class ICart(Interface):
    """Things that somebody will buy."""


@implementer(ICart)
class Cart:
    def __init__(self, data: MutableMapping[str, Any]) -> None:
        self.data = data

    def add(self, thing: str) -> int:
        self.data["cart"] = [*self.data.get("cart", []), thing]
        return len(self.data["cart"])


@declareMemoryAuthorizer(ICart)
def authorize_cart(interface: Any, session: Any, data: Any) -> Cart:
    return Cart(data)


def ask(site: Any, request: str) -> str:
    channel = site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4711))
    transport = StringTransport()
    transport.peerAddr = IPv4Address("TCP", "192.0.2.1", 4711)  # type: ignore[assignment]
    channel.makeConnection(transport)
    channel.dataReceived(request.replace("\n", "\r\n").encode())
    return transport.value().decode("latin-1")


def get(site: Any, cookie: str = "", path: str = "/") -> str:
    return ask(site, f"GET {path} HTTP/1.1\nHost: shop\n{f'Cookie: {cookie}' + chr(10) if cookie else ''}\n")


def cookie_in(answer: str) -> str:
    return next(line for line in answer.split("\r\n") if line.startswith("Set-Cookie: ")).removeprefix("Set-Cookie: ").split(";")[0]


def shop(procurer: Any) -> Klein:
    app, requirer = Klein(), Requirer()

    @requirer.prerequisite([ISession])
    def procure(request: Any) -> Any:
        return procurer.procureSession(request)

    @requirer.require(app.route("/"), cart=Authorization(ICart))
    def add(cart: Cart) -> str:
        return f"things: {cart.add('apple')}"

    return app


def result(deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addBoth(found.append)
    return found[0]


def site_of(world: World, app: Klein, name: str = "node1") -> SessionSite:
    return SessionSite(app.resource(), world.node(name), CookieSettings(name="sid", secure=False), reactor=Clock())  # type: ignore[arg-type]


def test_the_interfaces_are_those_of_klein(world: World) -> None:
    store = SessionStore(world.node())  # type: ignore[arg-type]
    assert verifyObject(ISessionStore, store)
    assert verifyObject(ISessionProcurer, SessionProcurer())
    assert verifyObject(ISession, result(store.newSession(True, SessionMechanism.Header)))


def test_what_an_authorizer_writes_is_there_on_another_node(world: World) -> None:
    app = shop(SessionProcurer.fromAuthorizers([authorize_cart]))
    first = get(site_of(world, app))
    assert "things: 1" in first
    assert "things: 2" in get(site_of(world, app, "node2"), cookie_in(first))


def test_forms_are_protected_by_the_identifier_which_begins_the_session(world: World) -> None:
    app, requirer = Klein(), Requirer()
    procurer = SessionProcurer()

    @requirer.prerequisite([ISession])
    def procure(request: Any) -> Any:
        return procurer.procureSession(request)

    submit: Callable[..., Any] = requirer.require(app.route("/", methods=["POST"]), name=Field.text())

    @submit
    def post(name: str) -> str:
        return f"hello {name}"

    @requirer.require(app.route("/", methods=["GET"]), form=Form.rendererFor(post, action="/"))
    def form(form: Any) -> Any:
        return form

    site = site_of(world, app)
    page = get(site)
    cookie = cookie_in(page)
    session_id = cookie.removeprefix("sid=").partition(".")[0]
    assert f'value="{session_id}"' in page
    assert "Set-Cookie" not in get(site_of(world, shop(SessionProcurer(beginOnGET=False)))), "nothing was written"
    body = f"name=ann&__csrf_protection__={session_id}"
    post_it = f"POST / HTTP/1.1\nHost: shop\nContent-Type: application/x-www-form-urlencoded\nContent-Length: {len(body)}\n"
    assert "hello ann" in ask(site, f"{post_it}Cookie: {cookie}\n\n{body}")
    assert "hello ann" not in ask(site, f"{post_it}\n{body}"), "a request that changes something brings its session"


def test_without_a_session_site_the_procurer_says_what_to_do() -> None:
    class Request:
        def getComponent(self, interface: Any) -> None:
            return None

    failure = result(SessionProcurer().procureSession(Request()))
    assert failure.check(LocalError)
    assert "SessionSite" in failure.getErrorMessage()


def test_kleins_own_procurer_over_our_store(world: World) -> None:
    node = world.node()
    app = shop(KleinsProcurer(SessionStore.fromAuthorizers(node, [authorize_cart])))  # type: ignore[arg-type]
    site = Site(app.resource(), reactor=Clock())
    first = get(site)
    assert "things: 1" in first
    cookie = cookie_in(first)
    assert cookie.startswith("Klein-INSECURE-Session=")
    other = shop(KleinsProcurer(SessionStore.fromAuthorizers(lambda: world.node("node2"), [authorize_cart])))  # type: ignore[arg-type, return-value]
    assert "things: 2" in get(Site(other.resource(), reactor=Clock()), cookie)
    assert node.open_now == []


# --- the store ---


def made(store: SessionStore, confidential: bool) -> KleinSession:
    session = result(store.newSession(confidential, SessionMechanism.Cookie))
    assert isinstance(session, KleinSession)
    return session


def load(store: SessionStore, identifier: str, confidential: bool) -> Any:
    return result(store.loadSession(identifier, confidential, SessionMechanism.Cookie))


def test_a_session_of_https_is_none_over_http_and_the_other_way(world: World) -> None:
    store = SessionStore(world.node())  # type: ignore[arg-type]
    for confidential in (True, False):
        session = made(store, confidential)
        assert load(store, session.identifier, confidential).identifier == session.identifier
        assert load(store, session.identifier, not confidential).check(NoSuchSession)


def test_an_identifier_of_https_that_came_in_the_clear_ends_its_session(world: World) -> None:
    store = SessionStore(world.node())  # type: ignore[arg-type]
    secret, public = made(store, True), made(store, False)
    store.sentInsecurely([secret.identifier, public.identifier.encode(), "none"])  # type: ignore[list-item]
    assert load(store, secret.identifier, True).check(NoSuchSession)
    assert load(store, public.identifier, False).identifier == public.identifier
    with pytest.raises(SessionEnded):
        secret.data["a"] = 1


def test_each_assignment_is_a_commit(world: World) -> None:
    store = SessionStore(world.node())  # type: ignore[arg-type]
    session = made(store, True)
    session.data["a"] = [1]
    assert load(store, session.identifier, True).data == {"a": [1]}
    del session.data["a"]
    assert dict(load(store, session.identifier, True).data) == {}


def test_a_session_that_is_unknown_is_not_replaced_by_a_new_one(world: World) -> None:
    store = SessionStore(world.node())  # type: ignore[arg-type]
    identifier = made(store, True).identifier
    world.make_unknown(identifier)
    failure: Failure = load(store, identifier, True)
    assert failure.check(SessionUnknown)
