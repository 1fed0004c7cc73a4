"""Where sessions are when no member's memory holds them: one interface (`store.py`), one module for each kind of store behind it."""
