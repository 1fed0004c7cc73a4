"""The embedded sticky reverse proxy."""

from .choice import BalancerSettings, Node, NodeDown, NodeUp
from .proxy import ReverseProxy

__all__ = ["BalancerSettings", "Node", "NodeDown", "NodeUp", "ReverseProxy"]
