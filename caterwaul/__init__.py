"""Caterwaul: in-memory HTTP session replication for Python web servers."""
