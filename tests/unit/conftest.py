"""What unit tests of several fronts begin with."""

from __future__ import annotations

import pytest
from twisted.python import threadable

from caterwaul.managers.base import SessionManager

from ..contract.double import Node, World
from ..doubles import Net


@pytest.fixture
def world() -> World:
    """Two nodes of the contract's double."""
    return World()


@pytest.fixture
def node(world: World) -> Node:
    return world.node()


@pytest.fixture
def manager() -> SessionManager:
    """A real one, alone in its cluster."""
    return Net(1).managers[0]


@pytest.fixture
def outside_the_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have run a reactor in this thread, and Twisted goes on taking it for the reactor's."""
    monkeypatch.setattr(threadable, "ioThread", None)
