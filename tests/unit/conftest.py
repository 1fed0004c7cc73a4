"""What unit tests of several fronts begin with."""

from __future__ import annotations

import pytest

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
