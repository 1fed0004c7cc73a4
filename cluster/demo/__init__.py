"""The demo: a page on three nodes behind a proxy, to be killed by hand or by `--check`."""
