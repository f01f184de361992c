"""Who may call what: every route of the face, every level, and every kind of no token."""

import re

from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.access import hash_of
from elkeid.manager.roles import LEVELS
from elkeid.manager.store.tokens import add_token
from elkeid.manager.store.users import add_user, delete_users, find_user
from elkeid.web.routes import AuthKind, Route
from tests.web.memory import NOW

from .deployment import Deployment

OPEN = "open"
SIGNED = "signed"
MATRIX: dict[str, str] = {
    # Levels as digits. A route that is not here fails the test: decide who may call it.
    "GET /ping": OPEN,
    "GET /ready": OPEN,
    "GET /api/docs": OPEN,
    "GET /api/v1/live": OPEN,  # who listens is asked by the route itself
    "GET /api/openapi.json": OPEN,
    "POST /api/v1/user/login": OPEN,
    "POST /api/v1/agent/queryInfo": SIGNED,
    "POST /api/v1/agent/updateSubTask": SIGNED,
    "POST /api/v1/inner/token": SIGNED,
    "POST /api/v6/component/GetComponentInstances": SIGNED,
    "GET /api/v6/kube/inner/cluster/list": SIGNED,
    "POST /api/v6/shared/Upload": SIGNED,
    "POST /api/v0/inner/sync": SIGNED,
    "POST /api/v0/job/distribute": "012",
    "POST /api/v0/job/new": "012",
    "GET /api/v0/job/result": "01234678",
    "GET /api/v0/job/stat": "01234678",
    "POST /api/v0/job/stop": "012",
    "GET /api/v1/audit": "0",
    "POST /api/v1/user/del": "0",
    "POST /api/v1/user/update": "0",
    "POST /api/v6/user/DelList": "0",
    "POST /api/v6/user/new": "0",
    "POST /api/v1/user/checkUser": "012345678",
    "GET /api/v1/user/info": "012345678",
    "GET /api/v1/user/logout": "012345678",
    "POST /api/v1/user/resetPassword": "012345678",
    "POST /api/v1/user/revoke": "012345678",
    "GET /api/v1/user/sessions": "012345678",
    "POST /api/v6/user/List": "012345678",
    "POST /api/v6/user/otp/confirm": "012345678",
    "POST /api/v6/user/otp/disable": "012345678",
    "POST /api/v6/user/otp/enrol": "012345678",
    "POST /api/v6/user/otp/status": "012345678",
    "GET /api/v1/agent/getStatus": "012345678",
    "GET /api/v1/agent/getStatus/<string:agent_id>": "012345678",
    "POST /api/v1/agent/getStatus/filter": "012345678",
    "GET /api/v6/shared/Download/<string:name>": "012345678",
    "POST /api/v1/agent/addTags": "012",
    "POST /api/v1/agent/addTags/filter": "012",
    "POST /api/v1/agent/delTags": "012",
    "GET /api/v1/agent/getTags": "0123678",
    "POST /api/v1/agent/getTags": "0123678",
    "GET /api/v1/agent/getDefaultConfig": "0123678",
    "POST /api/v1/agent/updateDefaultConfig": "012",
    "GET /api/v1/cluster/conflicts": "0123678",
    "GET /api/v1/cluster/distribution": "0123678",
    "GET /api/v1/cluster/instances": "0123678",
    "GET /api/v1/cluster/ledger": "0123678",
    "POST /api/v1/cluster/drain": "01",
    "POST /api/v1/cluster/reset": "01",
    "POST /api/v1/cluster/undrain": "01",
    "POST /api/v1/agent/approveTask": "01",
    "POST /api/v1/agent/controlTask": "012",
    "POST /api/v1/agent/createTask/config": "012",
    "POST /api/v1/agent/createTask/ctrl": "012",
    "POST /api/v1/agent/createTask/delConfig": "012",
    "POST /api/v1/agent/createTask/task": "012",
    "GET /api/v1/agent/getApproval/<string:task_id>": "0123678",
    "GET /api/v1/agent/getApprovals": "0123678",
    "GET /api/v1/agent/getConfig/<string:agent_id>": "0123678",
    "GET /api/v1/agent/getJob/<string:job_id>": "01234678",
    "GET /api/v1/agent/getSubTask/<string:task_id>": "0123678",
    "POST /api/v1/agent/getSubTask/filter": "0123678",
    "GET /api/v1/agent/getTask/<string:task_id>": "0123678",
    "POST /api/v1/agent/getTask/filter": "0123678",
    "POST /api/v1/agent/quickTask/task": "012",
    "POST /api/v6/agent/GetErrorHostNum": "0123678",
    "POST /api/v6/agent/controlTask": "012",
    "POST /api/v6/agent/createAgentTask": "012",
    "POST /api/v6/agent/getSubTaskList": "0123678",
    "GET /api/v6/agent/getTask/<string:task_id>": "0123678",
    "POST /api/v6/agent/getTaskList": "0123678",
    "POST /api/v6/component/CreateRebootAgentTask": "012",
    "POST /api/v6/asset-center/AddTags": "012",
    "POST /api/v6/asset-center/DeleteTags": "012",
    "POST /api/v6/asset-center/UpdateTags": "012",
    "GET /api/v6/asset-center/DescribeHostDetail": "0123678",
    "POST /api/v6/asset-center/DescribeHosts": "0123678",
    "GET /api/v6/asset-center/DescribeTags": "0123678",
    "POST /api/v6/asset-center/ExportHosts": "0123678",
    "GET /api/v1/agent/getHistory/<string:agent_id>": "0123678",
    "GET /api/v6/monitor/AgentCpuMetrics": "012345678",
    "GET /api/v6/monitor/AgentDiskMetrics": "012345678",
    "GET /api/v6/monitor/AgentDiskUsageMetrics": "012345678",
    "GET /api/v6/monitor/AgentMemoryMetrics": "012345678",
    "GET /api/v6/monitor/AgentNetMetrics": "012345678",
    "GET /api/v6/asset-center/DescribeHostStatistics": "0123678",
    "GET /api/v6/asset-center/DescribeIDC": "0123678",
    "GET /api/v6/asset-center/DescribeKernelVersion": "0123678",
    "GET /api/v6/asset-center/DescribePlatform": "0123678",
    "POST /api/v6/asset-center/RestoreHosts": "012",
    "POST /api/v6/asset-center/RetireHosts": "012",
    "GET /api/v6/overview/DescribeAgent": "012345678",
    "GET /api/v6/overview/DescribeAsset": "012345678",
    "GET /api/v6/license/detail": "012345678",
    "GET /api/v6/license/info": "012345678",
}


def named(route: Route) -> str:
    """A route as in the table."""
    return f"{route.method} {route.path}"


class MatrixTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.deployment = Deployment().start()
        self.addCleanup(self.deployment.end)
        self.routes = self.deployment.manager.api.routes

    def token(self, username: str, number: int = 0, expires_at: float = NOW + 3600) -> str:
        """A token of a user, as a login makes them."""
        token = f"{username}-{number}"
        store = self.deployment.manager.store
        user = self.deployment.network.run(store.read(find_user, username))
        assert user is not None
        self.deployment.network.run(
            store.write(add_token, hash_of(token), user.id, NOW, expires_at)
        )
        return token

    def user(self, username: str, level: int) -> None:
        """A user without a password."""
        store = self.deployment.manager.store
        self.deployment.network.run(store.write(add_user, username, level, "none", NOW))

    def ask(self, route: Route, token: str | None) -> int:
        """The status of a call with an empty object; none may be an error of ours."""
        path = re.sub("<[^>]*>", "x", route.path)
        body = None if route.method == "GET" else {}
        status = self.deployment.call(route.method, path, body, token=token).status
        self.assertNotEqual(status, 500, named(route))
        return status

    def test_the_table_is_whole(self) -> None:
        """Each route has its row, and each row its route."""
        self.assertEqual({named(route) for route in self.routes}, set(MATRIX))
        for route in self.routes:
            row = MATRIX[named(route)]
            kind = {OPEN: AuthKind.NONE, SIGNED: AuthKind.SIGNED}.get(row, AuthKind.TOKEN)
            self.assertIs(route.auth, kind, named(route))
            if kind is AuthKind.TOKEN:
                self.assertEqual(route.levels, {int(digit) for digit in row}, named(route))

    def test_levels(self) -> None:
        """A level of the row gets in, any other gets 403, and the answer names the caller."""
        tokens = {}
        for level in sorted(LEVELS):
            self.user(f"level{level}", level)
            tokens[level] = self.token(f"level{level}")
        for number, route in enumerate(self.routes, 1):
            row = MATRIX.get(named(route), "")
            if route.auth is not AuthKind.TOKEN:
                continue
            for level in sorted(LEVELS):
                if route.path.endswith("/logout"):
                    tokens[level] = self.token(f"level{level}", number)
                status = self.ask(route, tokens[level])
                if route.path.endswith("/logout"):
                    tokens[level] = self.token(f"level{level}", -number)
                about = f"{named(route)} by level {level}: {status}"
                if str(level) in row:
                    self.assertNotIn(status, (401, 403), about)
                else:
                    self.assertEqual(status, 403, about)

    def test_without_a_living_token(self) -> None:
        """No token, garbage, an expired one, one of a deleted user: 401 everywhere."""
        self.user("late", 0)
        self.user("gone", 0)
        tokens = [None, "", "garbage", "x" * 300, self.token("late", 0, NOW), self.token("gone")]
        self.deployment.network.run(self.deployment.manager.store.write(delete_users, ["gone"]))
        for route in self.routes:
            if route.auth is AuthKind.TOKEN:
                for token in tokens:
                    self.assertEqual(self.ask(route, token), 401, f"{named(route)} with {token}")

    def test_signed_routes_take_no_token(self) -> None:
        """An administrator's token opens nothing that is for AgentCenters."""
        admin = self.deployment.login()
        for route in self.routes:
            if route.auth is AuthKind.SIGNED:
                for token in (None, admin):
                    self.assertEqual(self.ask(route, token), 401, named(route))

    def test_unknown_paths(self) -> None:
        """What there is not, or not by this method, is 404 in JSON, for everybody."""
        admin = self.deployment.login()
        for token in (None, "garbage", admin):
            for method, path in [
                ("GET", "/api/v1/nothing"),
                ("POST", "/api/v9/x"),
                ("GET", "/"),
                ("GET", "/host-list"),
                ("PUT", "/api/v1/user/login"),
                ("DELETE", "/api/v1/agent/getStatus"),
                ("GET", "/api/v1/user/login"),
                ("GET", "/api/v1//user/info"),
                ("GET", "/api/v1/user/%2e%2e/user/info"),
            ]:
                got = self.deployment.call(method, path, token=token)
                self.assertEqual((got.status, got.json["code"]), (404, 10), path)
                self.assertEqual(got.headers["content-type"], "application/json; charset=utf-8")
