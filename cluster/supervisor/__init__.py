"""Keeps the node processes of one host alive."""

from .service import Exited, Started, Supervisor

__all__ = ["Exited", "Started", "Supervisor"]
