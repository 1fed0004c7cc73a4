"""Settings of the Django project that tests share: Django has one set of them in a process. Tests change single ones with `override_settings`."""

from __future__ import annotations

import django
from django.conf import settings

SETTINGS = {
    "ALLOWED_HOSTS": ["*"],
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
    "INSTALLED_APPS": ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages", "django.contrib.admin"],
    "LOGGING_CONFIG": None,
    "MIDDLEWARE": [
        "caterwaul.managers.web.django.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
    "ROOT_URLCONF": "tests.django_project",
    "SECRET_KEY": "of the tests only",
    "SESSION_ENGINE": "caterwaul.managers.web.django",
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "USE_TZ": True,
}

if not settings.configured:
    settings.configure(**SETTINGS)
    django.setup()

urlpatterns: list[object] = []
