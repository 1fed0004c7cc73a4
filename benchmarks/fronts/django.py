"""Django under WSGI; beside it `SESSION_ENGINE = "django.contrib.sessions.backends.cache"` over Django's own Redis cache.

A process has one set of settings. What differs between the applications is read when their handlers are made.
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path

from .driving import Driver, Wsgi
from .work import COOKIE, Sessions, handle

__all__ = ["drive", "urlpatterns"]


def drive(sessions: Sessions) -> Driver:
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, ROOT_URLCONF=__name__, SECRET_KEY="of the bench only", SESSION_COOKIE_NAME=COOKIE.name, USE_TZ=True,
        )  # fmt: skip
        django.setup()
    settings.MIDDLEWARE = []
    if sessions.manager is not None:
        settings.CATERWAUL_MANAGER = lambda: sessions.manager
        settings.SESSION_ENGINE = "caterwaul.managers.web.django"
        settings.MIDDLEWARE = ["caterwaul.managers.web.django.SessionMiddleware"]
    elif sessions.redis_port:
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": f"redis://127.0.0.1:{sessions.redis_port}"}}
        settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
        settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    return Wsgi(WSGIHandler())


def _page(request: Any, what: str) -> HttpResponse:
    return HttpResponse(handle(what, getattr(request, "session", None)), content_type="text/plain")


urlpatterns = [path("<what>", _page)]
