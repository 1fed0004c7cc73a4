"""A cart in a Django session; a project in one file. Two nodes:

    NODE=a python examples/django_app.py runserver 8001 &
    NODE=b python examples/django_app.py runserver 8002 &
    curl -L -c jar -b jar http://127.0.0.1:8001/add/apple
    curl -L -c jar -b jar http://127.0.0.1:8002/add/pear        # has the apple; kill a, and it still does

A real project has the four settings that are marked, and nothing else of this.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import path

from caterwaul import Settings, load


def node() -> Settings:
    """Of this process, whose node starts at the first request."""
    file, name = os.environ.get("NODE_TOML"), os.environ.get("NODE") or f"shop-{os.getpid()}"
    return (load(file) if file else Settings.of()).changed(**{"node.name": name})


settings.configure(
    SESSION_ENGINE="caterwaul.managers.web.django",  # 1
    MIDDLEWARE=["caterwaul.managers.web.django.SessionMiddleware"],  # 2: in the place of Django's own
    CATERWAUL=node(),  # 3: or the path of a TOML file, or a dictionary
    SESSION_COOKIE_SECURE=False,  # 4: True behind HTTPS
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DEBUG=True,
    INSTALLED_APPS=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of an example",
)


def show(request: Any) -> HttpResponse:
    return HttpResponse(f"cart: {' '.join(request.session.get('cart', []))} (process {os.getpid()})\n")


def add(request: Any, thing: str) -> HttpResponse:
    request.session.setdefault("cart", []).append(thing)
    return HttpResponseRedirect("/")


def logout(request: Any) -> HttpResponse:
    request.session.flush()
    return HttpResponseRedirect("/")


urlpatterns = [path("", show), path("add/<str:thing>", add), path("logout", logout)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    application = get_wsgi_application()
