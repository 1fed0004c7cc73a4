"""How it travels, and the node that is put together from all of it."""
