"""The Manager documents itself, wholly."""

from twisted.trial.unittest import SynchronousTestCase

from elkeid.web.routes import UNDECLARED

from .deployment import Deployment


class DocumentationTests(SynchronousTestCase):
    """What anybody may read."""

    def setUp(self) -> None:
        """Start the Manager."""
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)

    def test_every_route_says_what_it_answers(self) -> None:
        """No route leaves its answer open."""
        silent = [
            f"{route.method} {route.path}"
            for route in self.deployment.manager.api.routes
            if route.answer is UNDECLARED
        ]
        self.assertEqual(silent, [])

    def test_the_document(self) -> None:
        """Everybody gets it, and every route is in it."""
        got = self.deployment.call("GET", "/api/openapi.json")
        self.assertEqual(got.status, 200)
        self.assertEqual(got.json["openapi"], "3.1.1")
        operations = sum(map(len, got.json["paths"].values()))
        self.assertEqual(operations, len(self.deployment.manager.api.routes))

    def test_the_page(self) -> None:
        """It needs nothing from elsewhere, and its policy would not let it."""
        got = self.deployment.call("GET", "/api/docs/")
        self.assertEqual(got.status, 200)
        self.assertEqual(got.headers["content-type"], "text/html; charset=utf-8")
        self.assertIn("default-src 'none'", got.headers["content-security-policy"])
        self.assertNotIn(b"http://", got.text)
        self.assertNotIn(b"https://", got.text)
        self.assertNotIn(b"innerHTML", got.text)
