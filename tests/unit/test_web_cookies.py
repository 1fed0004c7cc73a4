"""The session cookie: which settings browsers would refuse, how it is read, how it is written."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.web.cookies import CookieSettings, Ticket, delete_cookie, read_cookie, write_cookie
from caterwaul.membership.errors import LocalError

ID = "abcDEF-_0123456789abcDEF-_0123456789abcDEF-"
DEFAULT = CookieSettings()
PLAIN = CookieSettings(name="sid", secure=False)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"secure": False}, 'name = "sid" and secure = false'),
            ({"path": "/shop"}, "path = /"),
            ({"domain": "example.org"}, "no domain"),
            ({"name": "__host-SID", "secure": False}, "needs secure"),
            ({"name": "__Secure-sid", "secure": False}, "secure = false"),
            ({"name": "sid", "secure": False, "same_site": "None"}, "same_site"),
            ({"same_site": "lax"}, "none of Lax, Strict, None"),
            ({"name": "a b"}, "no cookie name"),
            ({"name": ""}, "no cookie name"),
            ({"name": "sid", "path": "shop"}, "no path"),
            ({"name": "sid", "path": "/;Domain=x"}, "no path"),
            ({"name": "sid", "domain": "x\r\nSet-Cookie: a=b"}, "no domain"),
            ({"max_age_s": -1}, "below 0"),
        ],
    )
    def test_what_a_browser_would_refuse_silently_is_refused_here(self, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(LocalError, match="cookie") as caught:
            CookieSettings(**settings)
        assert says in str(caught.value)

    def test_every_knob_is_documented(self) -> None:
        assert all(len(field.metadata["doc"]) > 10 for field in fields(CookieSettings))


class TestReading:
    @pytest.mark.parametrize(
        ("headers", "ticket"),
        [
            ([], Ticket()),
            (["a=b"], Ticket()),
            ([f"__Host-sid={ID}"], Ticket(ID, "", 1)),
            ([f"a=b;__Host-sid={ID}.node-1 ; c=d"], Ticket(ID, "node-1", 1)),
            (["a=b", f"__Host-sid={ID}.n"], Ticket(ID, "n", 1)),
            ([f"__Host-sid={ID}\n"], Ticket(found=1)),
            ([f"__Host-sid={ID}x"], Ticket(found=1)),
            ([f"__Host-sid={ID}.a.b"], Ticket(found=1)),
            ([f"__Host-sid={ID}:tok-_1.n"], Ticket(ID, "n", 1, "tok-_1")),
            ([f"__Host-sid={ID}:tok"], Ticket(ID, "", 1, "tok")),
            ([f"__Host-sid={ID}:"], Ticket(ID, "", 1)),
            ([f"__Host-sid={ID}:!:\x01.n"], Ticket(ID, "n", 1, "!:\x01")),  # no token, and still this session's cookie
            ([f"__Host-sid={ID}:{'x' * 5000}.n"], Ticket(ID, "n", 1, "x" * 5000)),
            ([f"__Host-sid={ID}:t.a.b"], Ticket(found=1)),
            ([f"__Host-sid={ID}.n:t"], Ticket(found=1)),
            ([f"__Host-sid={ID[1:]}:t.n"], Ticket(found=1)),
            ([f'__Host-sid="{ID}"'], Ticket(found=1)),
            ([f"__Host-sid={ID}; __Host-sid={ID}"], Ticket(found=2)),
            ([f"__Host-sid={ID}", "__Host-sid=x"], Ticket(found=2)),
            ([f"x__Host-sid={ID}"], Ticket()),
            ([f"__host-sid={ID}"], Ticket()),
            ([f"a=__Host-sid={ID}"], Ticket()),
            ([f'a="; __Host-sid={ID}; "'], Ticket(ID, "", 1)),  # browsers know no quoted semicolons, so neither do we
        ],
    )
    def test_only_one_exact_value_is_an_id(self, headers: list[str], ticket: Ticket) -> None:
        assert read_cookie(DEFAULT, headers) == ticket

    @given(st.lists(st.text() | st.text().map(lambda text: f"__Host-sid={text}"), max_size=4))
    def test_any_text_is_safe(self, headers: list[str]) -> None:
        ticket = read_cookie(DEFAULT, headers)
        assert ticket.id is None or (ticket.id.isascii() and len(ticket.id) == 43)


class TestWriting:
    def test_what_is_written_is_read_back(self) -> None:
        value = write_cookie(PLAIN, ID, "node1")
        assert value == f"sid={ID}.node1; Path=/; HttpOnly; SameSite=Lax"
        assert read_cookie(PLAIN, [value.partition(";")[0]]) == Ticket(ID, "node1", 1)

    def test_the_token_stands_between_the_id_and_the_route(self) -> None:
        value = write_cookie(PLAIN, ID, "node1", "tok-_1")
        assert value == f"sid={ID}:tok-_1.node1; Path=/; HttpOnly; SameSite=Lax"
        assert read_cookie(PLAIN, [value.partition(";")[0]]) == Ticket(ID, "node1", 1, "tok-_1")
        assert write_cookie(CookieSettings(route=False), ID, "node1", "tok").startswith(f"__Host-sid={ID}:tok; ")

    def test_every_attribute_can_be_set(self) -> None:
        settings = CookieSettings(name="s", http_only=False, same_site="None", path="/shop", domain="example.org", max_age_s=60, route=False)
        assert write_cookie(settings, ID, "node1") == f"s={ID}; Max-Age=60; Path=/shop; Domain=example.org; Secure; SameSite=None"

    def test_deleting_names_the_same_path_and_domain_else_browsers_keep_it(self) -> None:
        settings = CookieSettings(name="s", path="/shop", domain="example.org", max_age_s=60)
        assert delete_cookie(settings) == "s=; Max-Age=0; Path=/shop; Domain=example.org; Secure; HttpOnly; SameSite=Lax"
