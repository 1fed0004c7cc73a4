"""Django's own tests of session stores and of its session middleware, over ours. A program: `test_django.py` runs it where `sessions_tests` can be imported."""

from __future__ import annotations

import sys
import unittest

import django
from django.conf import settings

settings.configure(
    CATERWAUL={"node": {"name": "upstream"}, "membership": {"discovery": []}, "admin": {"socket": ""}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "sessions_tests"],
    SECRET_KEY="of the tests only",
    SESSION_ENGINE="caterwaul.managers.web.django",
    USE_TZ=False,
)
django.setup()

from django.test import SimpleTestCase, override_settings  # noqa: E402
from django.test.utils import get_runner  # noqa: E402
from sessions_tests import tests as upstream  # noqa: E402

from caterwaul.managers.web.django import SessionMiddleware, SessionStore  # noqa: E402


class StoreTests(upstream.SessionTestsMixin, SimpleTestCase):  # type: ignore[misc]
    """All of them."""

    backend = SessionStore


@override_settings(USE_TZ=True)
class StoreWithTimeZoneTests(StoreTests):
    """All of them, with dates that know their zone."""


class DjangosMiddlewareTests(upstream.SessionMiddlewareTests):  # type: ignore[misc]
    """Django's own middleware over our store."""

    test_empty_session_saved = None  # looks into the database


class OurMiddlewareTests(upstream.SessionMiddlewareTests):  # type: ignore[misc]
    """Our middleware, but for what is another answer on purpose."""

    test_empty_session_saved = None  # looks into the database
    test_session_update_error_redirect = None  # puts another engine's session in the place of ours
    test_session_delete_on_end = None  # puts the cookie into `request.COOKIES`; ours reads the header, which shows two cookies of one name
    test_session_delete_on_end_with_custom_domain_and_path = None  # the same
    test_save_every_request_with_non_empty_session_renews_session_cookie = None  # the same

    def setUp(self) -> None:
        self.addCleanup(setattr, upstream, "SessionMiddleware", upstream.SessionMiddleware)
        upstream.SessionMiddleware = SessionMiddleware


if __name__ == "__main__":
    suite = unittest.TestSuite(
        unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in (StoreTests, StoreWithTimeZoneTests, DjangosMiddlewareTests, OurMiddlewareTests)
    )
    runner = get_runner(settings)(verbosity=1, interactive=False)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    result = runner.run_suite(suite)
    runner.teardown_databases(databases)
    print(f"{result.testsRun} tests, {len(result.failures) + len(result.errors)} failed, {len(result.skipped)} skipped")
    sys.exit(not result.wasSuccessful())
