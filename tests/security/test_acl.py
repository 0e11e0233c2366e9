"""``configs/redis-acl.conf``: each user can do its work, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from celery_allocator.errors import LedgerError, LedgerUnavailable
from celery_allocator.ledger import Ledger, connect, scripts
from celery_allocator.metrics.exporter import Exporter
from celery_allocator.model import NodeInventory, Requirements, State
from celery_allocator.settings import Settings
from tests.metrics.scrape import scrape
from tests.security.acl_server import USERS, AclServer, broker_selectors, users
from tests.security.environment import environment, produce, python
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet

#: Some start a worker and a dozen commands, each in a process of its own.
pytestmark = pytest.mark.timeout(300)

#: What redis-py's connections say, and how scripts are called.
CONNECTION = {"ping", "select", "client|setinfo", "cluster|slots"}
READING, WRITING = {"evalsha_ro", "eval_ro"}, {"evalsha", "eval"}
#: What is called without a script.
#: What a recorder calls, within its script and without.
FOLLOWING = {
    "xreadgroup",
    "xautoclaim",
    "xgroup|create",
    "xgroup|setid",
    "xinfo|stream",
    "xinfo|groups",
    "xack",
    "xrange",
}
#: What taking updates, and relaying changes, calls without a script.
TAKING = {"get", "set", "subscribe", "unsubscribe", "xadd"}
TAKING |= {"xgroup|create", "xrange", "xread", "xreadgroup", "xrevrange"}
DIRECT = {
    "worker": {"hsetnx", "hget", "zmscore", "info", *FOLLOWING, *TAKING},
    "operator": {"scan", "hgetall", *FOLLOWING, *TAKING},
    "dashboard": {"xrange", "xread", "xrevrange"},
    "recorder": {"time", *FOLLOWING},
    "brain": {"publish", "subscribe", "unsubscribe", "xadd", "xrange", "xread", "xrevrange"},
}
CHANNELS = " &{allocator:*}:updates &{allocator:*}:changes"
WRITERS = ("producer", "worker", "operator")


def commands_of(names: list[str]) -> set[str]:
    """What these scripts call on the ledger's own keys (LPUSH is for a broker's queue)."""
    called = {c for name in names for c in re.findall(r'call\("(\w+)"', scripts.load(name).source)}
    return {command.lower() for command in called} - {"lpush"}


@pytest.mark.parametrize("user", USERS)
def test_a_user_has_the_rights_that_it_needs_and_no_other(user: str) -> None:
    line = users()[user]
    operations = [name for name in scripts.operations() if name != "read_events"]
    called: set[str]
    if user == "recorder":
        called = WRITING
        keys = "~{allocator:*}: ~{allocator:*}:events"
        assert commands_of(["read_events"]) <= {command.partition("|")[0] for command in DIRECT["recorder"]}
    elif user == "dashboard":
        # A plan asks the strategies, and one of these counts what was asked for: not in a plan, but its script says so.
        called = READING | commands_of([name for name in operations if scripts.load(name).reads and name != "plan"])
        keys = "%R~{allocator:*}:*"
    elif user == "brain":
        called = set()
        keys = "%W~{allocator:*}:updates %R~{allocator:*}:updates:replies %R~{allocator:*}:changes" + CHANNELS
    else:
        called = READING | WRITING | commands_of(operations)
        keys = "~{allocator:*}:*" + ("" if user == "producer" else CHANNELS)
    assert set(re.findall(r" \+(\S+)", line)) == CONNECTION | called | DIRECT.get(user, set())
    assert re.sub(r" \+\S+", "", line) == (f"user {user} on >CHANGE-ME-{user} resetkeys resetchannels -@all {keys}")


@pytest.fixture(scope="module")
def acl_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AclServer]:
    server = AclServer(tmp_path_factory.mktemp("acl")).start()
    yield server
    server.kill()


@pytest.fixture
def nothing_refused(acl_server: AclServer) -> Iterator[None]:
    """The server's own log is the witness: an error that somebody swallowed stands there too."""
    with acl_server.client() as admin:
        admin.acl_log_reset()
        yield
        assert acl_server.refused() == []


@contextlib.contextmanager
def ledger_of(server: AclServer, user: str, pool: str) -> Iterator[Ledger]:
    ledger = connect(Settings(backend_url=server.url_of(user), pool=pool))
    with ledger.client:
        yield ledger


def test_worker_and_producer_and_operator(
    acl_server: AclServer, redis_server: RedisServer, workers: WorkerFleet, pool: str, nothing_refused: None
) -> None:
    def env(user: str) -> dict[str, str]:
        url = redis_server.url
        return environment(pool, broker=url, backend=url, ledger=acl_server.url_of(user))

    workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "2", env=env("worker"))
    assert produce(env("producer"), workers) == {"sum": 3, "revoked": True}

    for args in (["cordon", "host1/gpu_0"], ["tick"], ["uncordon", "host1/gpu_0"], ["events"]):
        done = python(env("operator"), "celery_allocator", *args)
        assert done.returncode == 0, done.stderr
    assert workers.workers[0].stop() == 0


def test_the_recorder_and_what_restores(
    acl_server: AclServer, redis_server: RedisServer, pool: str, tmp_path: Path, nothing_refused: None
) -> None:
    """Whoever may record does; the recorder's own user sees nothing but the stream."""
    for number, user in enumerate(("recorder", "worker", "operator")):
        with ledger_of(acl_server, "worker", pool) as ledger:
            ledger.submit(f"a{number}", "t1", "name", Requirements(cpu_cores=1))
        url = redis_server.url
        env = environment(pool, broker=url, backend=url, ledger=acl_server.url_of(user))
        env["ALLOCATOR_HISTORY_BACKEND_URL"] = f"sqlite:///{tmp_path}/history.sqlite3"
        done = python(env, "celery_allocator", "recorder", "--once", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["recorded"] == 1
        with acl_server.client() as admin:
            # That it may not ask which run of the server this is, is as meant.
            refused = acl_server.refused()
            assert all("recorder: key" in line or "recorder: command hget" in line for line in refused), refused
            admin.acl_log_reset()
    restored = python(env, "celery_allocator", "restore", "--json")
    assert restored.returncode == 0, restored.stderr
    assert json.loads(restored.stdout)["in_flight"] == []


def test_the_dashboards_commands(acl_server: AclServer, redis_server: RedisServer, pool: str) -> None:
    with ledger_of(acl_server, "worker", pool) as ledger:
        ledger.register_node(NodeInventory("host1", (0, 1), 4096), lease_s=600)
        ledger.submit("a1", "t1", "name", Requirements(cpu_cores=1))
    url = redis_server.url
    env = environment(pool, broker=url, backend=url, ledger=acl_server.url_of("dashboard"))
    for args, words in [
        (["status"], "host1"),
        (["queue"], "a1"),
        (["events"], "waiting a1"),
        (["watch", "--since", "-", "--no-follow"], "allocation:a1 waiting"),
        (["verify"], ""),
    ]:
        shown = python(env, "celery_allocator", *args)
        assert shown.returncode == 0, shown.stderr
        assert words in shown.stdout
    refused = python(env, "celery_allocator", "cancel", "a1")
    assert refused.returncode == 1
    assert "no permissions to run the 'evalsha' command" in refused.stderr


def test_the_dashboards_rights_suffice_for_metrics(acl_server: AclServer, pool: str) -> None:
    """Also in a server that has forgotten the scripts. Refused is only what each connection asks first, as ever."""
    with ledger_of(acl_server, "worker", pool) as ledger, acl_server.client() as admin:
        ledger.register_node(NodeInventory("host1", (0, 1), 4096), lease_s=600)
        admin.script_flush()
        admin.acl_log_reset()
        settings = Settings(backend_url=acl_server.url_of("dashboard"), pool=pool)
        exporter = Exporter(lambda: connect(settings), settings, "127.0.0.1", 0)
        exporter.start()
        try:
            wait_until(lambda: exporter.follower.position, 30, "the follower to know where to begin")
            ledger.submit("a1", "t1", "name", Requirements(cpu_cores=1))

            def told() -> bool:
                found = scrape(exporter.url)
                asked = {"gpu_memory_mb": "0", "gpu_share": "0", "cpu_cores": "1", "ram_mb": "0", "kind": "task"}
                waits = found.get("waiting_by_shape", **asked)
                return waits == 1 and found.series("events_total", "event") == {("waiting",): 1}

            wait_until(told, 30, lambda: scrape(exporter.url).text)
        finally:
            exporter.stop()
        assert set(acl_server.refused()) <= {"dashboard: command evalsha (toplevel)"}


def test_with_the_broker_on_the_same_server(tmp_path: Path, workers: WorkerFleet, pool: str) -> None:
    assert set(broker_selectors()) == {"producer", "worker", "operator"}
    prefix = {"global_keyprefix": "celery:"}
    conf = {"broker_transport_options": prefix, "result_backend_transport_options": prefix}
    server = AclServer(tmp_path / "redis", broker=True).start()

    def env(user: str) -> dict[str, str]:
        return environment(pool, broker=server.url_of(user), backend=server.url_of(user), **conf)

    try:
        args = ("--gpu", "0", "--concurrency", "2", "-Q", f"plain-{pool}", "-E")
        worker = workers.start("tests.support.allocator_app", *args, env=env("worker"))
        said = produce(env("producer"), workers, "all")
        assert said == {"sum": 3, "revoked": True, "plain": 5, "chord": 6, "pongs": 1}
        assert worker.stop() == 0
        assert server.refused() == []
        with server.client() as admin:
            box = admin.hget(f"{{allocator:{pool}}}:dev:host1/gpu_0", "box")
            foreign = [key for key in admin.scan_iter() if not key.startswith((b"celery:", b"{allocator:"))]
        assert foreign == []
        assert box is None or box.startswith(b"celery:")
    finally:
        workers.close()
        server.kill()


#: Nobody but the administrator.
FORBIDDEN = [
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["KEYS", "*"],
    ["RANDOMKEY"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
    ["DEBUG", "SLEEP", "0"],
    ["SHUTDOWN", "NOSAVE"],
    ["SAVE"],
    ["REPLICAOF", "NO", "ONE"],
    ["CLUSTER", "RESET"],
    ["ACL", "LIST"],
    ["ACL", "SETUSER", "me", "on", "nopass", "+@all"],
    ["CLIENT", "LIST"],
    ["CLIENT", "KILL", "TYPE", "normal"],
    ["MONITOR"],
    ["SLOWLOG", "GET"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "KILL"],
    ["FUNCTION", "FLUSH"],
    ["MODULE", "LIST"],
    ["SWAPDB", "0", "1"],
    ["RENAME", "{P}meta", "{P}x"],
    ["MIGRATE", "127.0.0.1", "1", "{P}meta", "0", "1"],
    ["DUMP", "{P}meta"],
    ["PUBLISH", "anything", "x"],
    ["SUBSCRIBE", "anything"],
    # Other prefixes, by every way there is.
    ["GET", "other"],
    ["HGET", "celery-task-meta-1", "x"],
    ["HGETALL", "other"],
    ["LRANGE", "celery", "0", "-1"],
    ["LPUSH", "celery", "a task of my own"],
    ["EVALSHA_RO", "0" * 40, "1", "other"],
    ["EVAL_RO", "return redis.call('HGET', 'other', 'x')", "0"],
    ["EVAL", "return redis.call('SET', 'other', 'x')", "0"],
    ["EVAL", "return redis.call('FLUSHALL')", "0"],
    ["EVAL", "return redis.call('CONFIG', 'GET', '*')", "0"],
]
#: Nor the recorder, what is not the stream.
NOT_THE_STREAM = [
    ["HGET", "{P}meta", "seq"],
    ["XADD", "{P}events", "*", "op", "made up"],
    ["DEL", "{P}events"],
    ["XTRIM", "{P}events", "MAXLEN", "0"],
    ["XGROUP", "DESTROY", "{P}events", "history"],
    ["XRANGE", "{P}meta", "-", "+"],
    ["EVAL", "return redis.call('HGET', KEYS[1]..'meta', 'seq')", "1", "{P}"],
    ["EVAL", "return redis.call('XADD', KEYS[1]..'events', '*', 'a', 'b')", "1", "{P}"],
    ["SCAN", "0"],
    ["INFO"],
]
#: Nor the dashboard, what the others may.
CHANGES = [
    ["SCAN", "0"],
    ["SET", "{P}tick", "1"],
    ["DEL", "{P}meta"],
    ["HSET", "{P}meta", "seq", "0"],
    ["ZADD", "{P}waiting", "0", "x"],
    ["XADD", "{P}events", "*", "op", "made up"],
    ["EVALSHA", "0" * 40, "1", "{P}"],
    ["EVAL", "return 1", "0"],
    ["EVAL", "return redis.call('DEL', KEYS[1])", "1", "{P}meta"],
    ["EVAL_RO", "return redis.call('DEL', KEYS[1])", "1", "{P}meta"],
    ["INFO"],
    ["SCRIPT", "LOAD", "return 1"],
]


#: Nor another system, in the pools.
NOT_THE_BRAIN = [
    ["HGET", "{P}meta", "seq"],
    ["XRANGE", "{P}updates", "-", "+"],
    ["XRANGE", "{P}events", "-", "+"],
    ["XREAD", "STREAMS", "{P}updates:parked", "0"],
    ["XADD", "{P}changes", "*", "change", "made up"],
    ["XADD", "{P}updates:replies", "*", "reply", "made up"],
    ["XTRIM", "{P}updates", "MAXLEN", "0"],
    ["XGROUP", "DESTROY", "{P}updates", "allocator"],
    ["XREADGROUP", "GROUP", "allocator", "allocator", "STREAMS", "{P}updates", ">"],
    ["PUBLISH", "{P}events", "made up"],
    ["EVALSHA_RO", "0" * 40, "1", "{P}"],
]


REFUSED = re.compile(r"[Nn]o permissions|Write commands are not allowed|command is not allowed from script")


@pytest.mark.parametrize("user", USERS)
def test_nothing_else_is_allowed(acl_server: AclServer, user: str, pool: str) -> None:
    with acl_server.client() as admin, redis.Redis.from_url(acl_server.url_of(user)) as client:
        admin.hset(f"{{allocator:{pool}}}:meta", "seq", "1")
        before = admin.dbsize()
        went_through = []
        more = {"dashboard": CHANGES, "recorder": NOT_THE_STREAM, "brain": CHANGES + NOT_THE_BRAIN}
        for command in FORBIDDEN + more.get(user, []):
            try:
                client.execute_command(*(part.replace("{P}", f"{{allocator:{pool}}}:") for part in command))
            except redis.ResponseError as error:
                # A script is stopped where it calls what its user may not; one that only reads may not write at all.
                if not REFUSED.search(str(error)):
                    went_through.append((command, str(error)))
            else:
                went_through.append((command, "done"))
        assert went_through == []
        assert admin.dbsize() == before


@pytest.mark.parametrize("user", WRITERS)
def test_who_writes_can_submit(acl_server: AclServer, user: str, pool: str, nothing_refused: None) -> None:
    with ledger_of(acl_server, user, pool) as ledger:
        ledger.submit("a1", "t1", "name", Requirements(cpu_cores=1))
        assert [a.state for a in ledger.queue()] == [State.WAITING]
        assert ledger.cancel("a1").done
        assert ledger.run_id


def test_the_dashboard_reads_also_where_the_server_forgot_the_scripts(acl_server: AclServer, pool: str) -> None:
    with ledger_of(acl_server, "worker", pool) as worker, acl_server.client() as admin:
        worker.submit("a1", "t1", "name", Requirements(cpu_cores=1))
        admin.script_flush()
        with ledger_of(acl_server, "dashboard", pool) as dashboard:
            assert dashboard.snapshot().waiting == 1
            assert [a.allocation_id for a in dashboard.queue()] == ["a1"]
            assert dashboard.find("t1")[0].task_name == "name"
            assert dashboard.verify() == []
            assert dashboard.events()
            with pytest.raises(LedgerError, match="evalsha"):
                dashboard.cancel("a1")
            with pytest.raises(LedgerError, match="evalsha"):
                dashboard.submit("a2", "t2", "name", Requirements(cpu_cores=1))
        assert worker.snapshot().waiting == 1


def test_another_system_sends_updates_and_reads_what_became_of_them(
    acl_server: AclServer, redis_server: RedisServer, workers: WorkerFleet, pool: str, nothing_refused: None
) -> None:
    url, prefix = redis_server.url, f"{{allocator:{pool}}}:"

    def env(user: str) -> dict[str, str]:
        more = {"ALLOCATOR_CHANGES": "true"}
        return {**environment(pool, broker=url, backend=url, ledger=acl_server.url_of(user)), **more}

    def update(key: str, state: str) -> str:
        said = {"object": "node", "id": "host1", "op": "update", "fields": {"state": state}, "actor": "brain"}
        return json.dumps({**said, "idempotency_key": key})

    with redis.Redis.from_url(acl_server.url_of("brain")) as brain, brain.pubsub() as channel:
        worker = workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "1", env=env("worker"))
        channel.subscribe(f"{prefix}changes")
        brain.xadd(f"{prefix}updates", {"update": update("k1", "cordoned")})

        def replies() -> list[str]:
            rows = brain.xrange(f"{prefix}updates:replies")
            return [json.loads(fields[b"reply"])["status"] for _, fields in rows]

        def relayed() -> list[dict[bytes, bytes]]:
            return [fields for _, fields in brain.xrange(f"{prefix}changes")]

        wait_until(lambda: replies() == ["applied"], 30, "a worker to answer")
        wait_until(lambda: brain.publish(f"{prefix}updates", update("k2", "ready")), 30, "a worker to listen")
        wait_until(lambda: replies() == ["applied"] * 2, 30, "a worker to answer what was published")
        wait_until(lambda: b'"uncordoned"' in b"".join(f[b"change"] for f in relayed()), 30, "changes")
        assert any(message["type"] == "message" for message in iter(lambda: channel.get_message(timeout=10), None))
        assert worker.stop() == 0

        brain.xadd(f"{prefix}updates", {"update": "no JSON"})
        taken = python(env("operator"), "celery_allocator", "updates", "apply", "--once")
        assert taken.returncode == 0, taken.stderr
        assert "malformed" in taken.stdout
        for args, words in [
            (["updates", "parked"], "no JSON"),
            (["updates", "replies"], "malformed"),
            (["watch", "--since", "-", "--no-follow", "--object", "node"], "node:host1 cordoned state=cordoned"),
        ]:
            shown = python(env("operator"), "celery_allocator", *args)
            assert shown.returncode == 0, shown.stderr
            assert words in shown.stdout


def test_a_wrong_password_is_told_without_it(acl_server: AclServer, pool: str) -> None:
    url = f"redis://worker:not-the-one@127.0.0.1:{acl_server.port}/0"
    ledger = connect(Settings(backend_url=url, pool=pool))
    with ledger.client, pytest.raises(LedgerUnavailable, match="invalid username-password") as raised:
        ledger.snapshot()
    assert "not-the-one" not in str(raised.value)
