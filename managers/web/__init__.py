"""Fronts: how web applications get their session. `wsgi` and `twisted_web` speak the two protocols, `policy` is what they share, `cookies` the cookie."""
