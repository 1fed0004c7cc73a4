"""The limit of sessions a principal may have, where no member holds all: members ask each other (`cluster/logins.py`)."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import pytest
from twisted.internet.task import deferLater

from caterwaul.cluster.logins import LoginDesk
from caterwaul.cluster.requests import Requests
from caterwaul.membership.channel import CONTROL, Message
from tests.doubles import MANAGER, Net
from tests.lock_net import KINDS

from .test_managers_principals import lives, net_of


class Hasty(Net):
    """A net in which questions overtake commits, as control lanes do."""

    def _next(self, flight: deque[tuple[Message, int]]) -> tuple[Message, int]:
        at = next((i for i, (message, _) in enumerate(flight) if message.lane == CONTROL), 0)
        taken = flight[at]
        del flight[at]
        return taken


def desks(net: Net, delay_s: float = 0.0) -> list[LoginDesk]:
    """One a member, as nodes have them. `delay_s`: a question waits so long before it leaves."""
    made = []
    for of, manager in zip(net.members, net.managers, strict=True):
        channel: Any = net.channels[of.uid]
        requests = Requests(channel, net.clock)
        channel.request, channel.serve = partial(deferLater, net.clock, delay_s, requests.request) if delay_s else requests.request, requests.serve
        channel.attach("?", requests)
        requests.start()
        made.append(LoginDesk(channel, {MANAGER: manager}, net.clock))
    return made


@pytest.mark.parametrize("delay_s", [0.0, 1.0], ids=["", "slow"])
@pytest.mark.parametrize("policy", ["oldest", "refuse"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "delta"])
def test_a_login_too_many_is_ended_though_its_member_does_not_hold_the_session(kind: str, policy: str, delay_s: float) -> None:
    """Simulator, logins, partitioned, seed 1: the sessions were counted before their holders had heard of the last one's number. A slow machine: the copy of
    who had committed the login was gone before it was given its number, and nobody gave it one."""
    settings = net_of(kind, 1, principal_sessions_max=2, principal_sessions_policy=policy, unknown_for_s=0.0).settings
    net = Hasty(5, settings, kind=KINDS[kind], epochs=True)
    desks(net, delay_s)
    ids = []
    for number in range(4):
        session = net.opened(number)
        session.sign_on("ann", None, None)  # a login that another application has made: nobody is asked whether there is room
        net.managers[number].commit(session)
        net.managers[number].release(session)
        net.advance(1.0)
        ids.append(session.id or "")
    net.advance(3.0 + 8 * delay_s)
    assert sum(any(lives(net, one)) for one in ids) == 2
