"""Agents' sessions with the MCP server, by the SDK's own client, over both transports."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from anyio.to_thread import run_sync
from mcp import Client, MCPError

from celery_allocator.allocating.schema import tool_schemas
from celery_allocator.allocating.tool import execute
from celery_allocator.surfaces.mcp.minting import add
from tests.support import by_hand
from tests.support.mcp_agent import McpServer, call, over_http, over_stdio
from tests.support.processes import OwnedProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

READ, CONTROL = "allocator:read", "runtime:control"
ALL = ["resource_allocator", "release", "status", "queue"]
MODES = ["auto", "legacy"]  # the protocol of 2026, and the one before it


@pytest.fixture
def env(redis_server: RedisServer, pool: str) -> dict[str, str]:
    return by_hand.environment(redis_server, pool)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def served(tmp_path: Path, env: dict[str, str], tokens: Path) -> Iterator[McpServer]:
    """A server with tokens; the file has one to begin with."""
    add(tokens, "first", [READ])
    with McpServer(tmp_path, env, "--tokens", str(tokens)) as server:
        yield server


async def names(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


async def session_of_an_agent(client: Client) -> None:
    """From the list of tools to the release, past a wait."""
    assert await names(client) == ALL
    first = await call(
        client, "resource_allocator", task_id="t1", task_type="ml_inference", resource_requirements={"cpu_cores": 8}
    )
    assert first["resources"]["gpu_id"] == "gpu_0" and first["resources"]["cpu_cores"] == list(range(8))

    second = await call(client, "resource_allocator", task_id="t2", task_type="ml_inference", wait_s=0.05)
    assert (second["resources"], second["queue_position"]) == (None, 1)
    line = await call(client, "queue")
    assert [row["allocation_id"] for row in line["waiting"]] == [second["allocation_id"]]
    pool = await call(client, "status")
    assert (pool["pool"]["running"], pool["pool"]["waiting"]) == (1, 1)
    assert [row["task_id"] for row in pool["allocations"]] == ["t1", "t2"]

    assert (await call(client, "release", allocation_id=first["allocation_id"]))["state"] == "released"
    now = await call(client, "status", allocation_id=second["allocation_id"])
    assert now["state"] == "running" and now["resources"]
    await call(client, "release", allocation_id=second["allocation_id"], token=now["token"])
    again = await call(client, "release", allocation_id=second["allocation_id"])
    assert again["error"]["code"] == "not_found"
    assert (await call(client, "status"))["allocations"] == []


@pytest.mark.parametrize("mode", MODES)
def test_a_session_over_stdio(env: dict[str, str], mode: str) -> None:
    async def session() -> None:
        async with over_stdio(env, "--allow-control", mode=mode) as client:
            await session_of_an_agent(client)

    anyio.run(session)


@pytest.mark.parametrize("mode", MODES)
def test_a_session_over_http(served: McpServer, tokens: Path, mode: str) -> None:
    secret = add(tokens, "agent", [READ, CONTROL])

    async def session() -> None:
        async with over_http(served.url, secret, mode) as client:
            await session_of_an_agent(client)

    anyio.run(session)


def test_on_stdio_without_the_flag_nothing_can_be_changed(env: dict[str, str]) -> None:
    async def session() -> None:
        async with over_stdio(env) as client:
            assert await names(client) == ["status", "queue"]
            for tool, params in [
                ("resource_allocator", {"task_id": "t", "task_type": "processing"}),
                ("release", {"allocation_id": "alloc_1"}),
            ]:
                refused = await call(client, tool, **params)
                assert refused["error"]["code"] == "permission_denied"
                assert CONTROL in refused["error"]["message"]
            assert (await call(client, "status"))["pool"]["running"] == 0

    anyio.run(session)


@pytest.mark.parametrize(
    ("scopes", "listed"), [([READ], ["status", "queue"]), ([CONTROL], ["resource_allocator", "release"])]
)
def test_a_token_does_what_its_scopes_say(
    served: McpServer, tokens: Path, scopes: list[str], listed: list[str]
) -> None:
    secret = add(tokens, "agent", scopes)
    wanted = {
        "resource_allocator": {"task_id": "t", "task_type": "processing"},
        "release": {"allocation_id": "alloc_1"},
        "status": {},
        "queue": {},
    }

    async def session() -> None:
        async with over_http(served.url, secret) as client:
            assert await names(client) == listed
            for tool, params in wanted.items():
                reply = await call(client, tool, **params)
                denied = not reply["success"] and reply["error"]["code"] == "permission_denied"
                assert denied == (tool not in listed), reply

    anyio.run(session)


def post(url: str, **headers: str) -> httpx2.Response:
    """A bare call, as anybody can make one."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = "application/json, text/event-stream"
    return httpx2.post(url, json=message, headers={"Accept": accept, **headers}, timeout=60)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What was raised, out of the groups that the SDK's tasks put it into."""
    for inner in getattr(error, "exceptions", ()):
        yield from leaves(inner)
    if not hasattr(error, "exceptions"):
        yield error


def test_without_a_token_that_is_known_and_not_over_nobody_gets_in(served: McpServer, tokens: Path) -> None:
    good = add(tokens, "good", [READ])
    expired = add(tokens, "late", [READ, CONTROL])
    text = tokens.read_text()
    tokens.write_text(text.replace("[tokens.late]", "[tokens.late]\nexpires = 2020-01-01T00:00:00Z"))

    assert post(served.url, Authorization=f"Bearer {good}").status_code == 200
    for header in [
        {},
        {"Authorization": f"Bearer {expired}"},
        {"Authorization": "Bearer cat_nobody-has-ever-been-given-this-one"},
        {"Authorization": f"Basic {good}"},
        {"Authorization": f"Bearer {good}x"},
        {"Authorization": "Bearer"},
    ]:
        answer = post(served.url, **header)
        assert answer.status_code == 401, header
        assert answer.headers["WWW-Authenticate"].startswith("Bearer error=")

    async def session() -> None:
        async with over_http(served.url, expired) as client:
            await client.list_tools()

    with pytest.raises(Exception, match="TaskGroup") as refused:
        anyio.run(session)
    assert [type(error) for error in leaves(refused.value)] == [MCPError]
    assert "late was refused: it has expired" in served.output()


def test_a_change_of_the_file_counts_at_once(served: McpServer, tokens: Path) -> None:
    secret = add(tokens, "agent", [READ])
    bearer = {"Authorization": f"Bearer {secret}"}
    assert post(served.url, **bearer).status_code == 200

    whole = tokens.read_text()
    tokens.write_text(whole.replace("[tokens.agent]", "[tokens.other]\nexpires = 2020-01-01T00:00:00Z"))
    assert post(served.url, **bearer).status_code == 401
    tokens.write_text(whole)
    assert post(served.url, **bearer).status_code == 200
    tokens.write_text(whole + "\n[tokens.agent]\n")  # damaged: what it said before does not go on
    assert post(served.url, **bearer).status_code == 401
    assert "nobody is let in" in served.output()
    tokens.unlink()
    assert post(served.url, **bearer).status_code == 401
    tokens.write_text(whole)
    assert post(served.url, **bearer).status_code == 200


def test_names_of_others_are_refused(served: McpServer, tokens: Path) -> None:
    """A page in a browser may have its own name resolve to this host."""
    bearer = {"Authorization": f"Bearer {add(tokens, 'agent', [READ])}"}
    assert post(served.url, **bearer, Host="evil.example").status_code == 421
    assert post(served.url, **bearer, Origin="http://evil.example").status_code == 403
    assert post(served.url, **bearer, Origin="http://localhost:3000").status_code == 200


def test_a_body_that_is_too_large_is_refused(served: McpServer, tokens: Path) -> None:
    bearer = {"Authorization": f"Bearer {add(tokens, 'agent', [READ])}"}
    answer = httpx2.post(served.url, content=b"x" * 300_000, headers=bearer, timeout=60)
    assert answer.status_code == 413


def test_neither_tokens_nor_requests_are_told(served: McpServer, tokens: Path) -> None:
    secret = add(tokens, "agent", [READ, CONTROL])

    async def session() -> None:
        async with over_http(served.url, secret) as client:
            for task_id in ("marked-request", ["marked-request"]):
                await call(client, "resource_allocator", task_id=task_id, task_type="processing")

    anyio.run(session)
    post(served.url + f"?token={secret}", Authorization="Bearer cat_of-somebody-who-is-not-known-here")
    said = served.output()
    process = psutil.Process(served.pid)
    assert "token:agent: resource_allocator: done" in said
    for told in (said, " ".join(process.cmdline()), " ".join(process.environ().values()), tokens.read_text()):
        assert secret not in told
    for words in ("marked-request", "not-known-here"):
        assert words not in said


def test_everybody_on_this_host_may_read_where_no_tokens_are(tmp_path: Path, env: dict[str, str]) -> None:
    async def session(url: str, listed: list[str]) -> None:
        async with over_http(url) as client:
            assert await names(client) == listed

    for options, listed in [((), ["status", "queue"]), (("--allow-control",), ALL)]:
        with McpServer(tmp_path / str(len(options)), env, *options) as server:
            anyio.run(session, server.url, listed)


def test_agents_at_the_same_time(served: McpServer, tokens: Path) -> None:
    """Some wait for room and do not keep others from looking; nobody sees his own in another's list."""
    secrets = [add(tokens, f"agent{number}", [READ, CONTROL]) for number in range(6)]

    async def agent(number: int, turn: anyio.Event) -> None:
        async with over_http(served.url, secrets[number], MODES[number % 2]) as client:
            held = await call(
                client,
                "resource_allocator",
                task_id=f"t{number}",
                task_type="processing",
                resource_requirements={"cpu_cores": 4},
                wait_s=50,
            )
            assert held["resources"], held
            turn.set()
            assert [row["task_id"] for row in (await call(client, "status"))["allocations"]] == [f"t{number}"]
            await call(client, "release", allocation_id=held["allocation_id"])

    async def all_of_them() -> None:
        turn = anyio.Event()
        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(agent, number, turn)
            await turn.wait()

    anyio.run(all_of_them)


@pytest.mark.parametrize("mode", MODES)
def test_who_goes_away_while_he_waits_is_out_of_the_line(
    served: McpServer, tokens: Path, redis_server: RedisServer, pool: str, mode: str
) -> None:
    secret = add(tokens, "agent", [READ, CONTROL])
    ledger = by_hand.session(redis_server, pool).ledger

    async def session() -> None:
        async with over_http(served.url, secret, mode) as client:
            needs = {"cpu_cores": 8}
            await call(client, "resource_allocator", task_id="t1", task_type="processing", resource_requirements=needs)
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    await call(client, "resource_allocator", task_id="t2", task_type="processing", wait_s=60)

                group.start_soon(ask)
                await run_sync(wait_until, ledger.queue, 30, "somebody in line")
                group.cancel_scope.cancel()

    anyio.run(session)
    wait_until(lambda: not ledger.queue(), 30, "the line to be empty")
    assert [allocation.task_id for allocation in ledger.owned("token:agent")] == ["t1"]
    ledger.client.close()


def test_a_server_that_is_stopped_leaves_nobody_in_line(
    served: McpServer, tokens: Path, redis_server: RedisServer, pool: str
) -> None:
    secret = add(tokens, "agent", [READ, CONTROL])
    ledger = by_hand.session(redis_server, pool).ledger

    ended: list[int] = []

    async def session() -> None:
        async with over_http(served.url, secret) as client:
            job = {"task_type": "processing", "resource_requirements": {"cpu_cores": 8}}
            await call(client, "resource_allocator", task_id="t1", **job)
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    with contextlib.suppress(MCPError):
                        await call(client, "resource_allocator", task_id="t2", wait_s=60, **job)

                group.start_soon(ask)
                await run_sync(wait_until, ledger.queue, 30, "somebody in line")
                ended.append(await run_sync(served.stop))
                group.cancel_scope.cancel()

    with contextlib.suppress(Exception):  # whatever the client makes of it
        anyio.run(session)
    assert ended == [-signal.SIGTERM]  # raised again when all was in order
    assert ledger.queue() == ()
    assert [allocation.task_id for allocation in ledger.owned("token:agent")] == ["t1"]
    ledger.client.close()


def test_a_port_that_is_taken_is_told(tmp_path: Path, served: McpServer, env: dict[str, str]) -> None:
    port = served.url.rpartition(":")[2].partition("/")[0]
    second = OwnedProcess([*served.argv, "--port", port], tmp_path / "second.log", env=served.env)
    with second:
        assert second.wait(30) != 0
    assert "address already in use" in second.output()


def test_what_agents_do_is_in_the_journal_under_their_names(
    served: McpServer, tokens: Path, redis_server: RedisServer, pool: str
) -> None:
    secret = add(tokens, "agent", [CONTROL])

    async def session() -> None:
        async with over_http(served.url, secret) as client:
            made = await call(client, "resource_allocator", task_id="t", task_type="processing")
            await call(client, "release", allocation_id=made["allocation_id"])

    anyio.run(session)
    ledger = by_hand.session(redis_server, pool).ledger
    found = [(entry.action, entry.actor, entry.source) for entry in ledger.journal()]
    assert found == [("release", "agent", "mcp"), ("allocate", "agent", "mcp")]
    ledger.client.close()


def test_without_the_ledger_a_call_says_so_and_the_server_goes_on(
    served: McpServer, tokens: Path, redis_server: RedisServer
) -> None:
    secret = add(tokens, "agent", [READ, CONTROL])

    async def session() -> None:
        async with over_http(served.url, secret) as client:
            made = await call(client, "resource_allocator", task_id="t", task_type="processing")
            redis_server.stop()
            try:
                assert await names(client) == ALL
                for tool, params in [
                    ("status", {}),
                    ("queue", {}),
                    ("resource_allocator", {"task_id": "t", "task_type": "processing"}),
                    ("release", {"allocation_id": made["allocation_id"]}),
                ]:
                    refused = await call(client, tool, **params)
                    assert refused["error"]["code"] == "ledger_unavailable"
                    assert "cannot be reached" in refused["error"]["message"]
            finally:
                redis_server.start()
            assert (await call(client, "release", allocation_id=made["allocation_id"]))["success"]

    anyio.run(session)
    assert served.alive


def test_the_schemas_are_the_same_everywhere(env: dict[str, str], redis_server: RedisServer, pool: str) -> None:
    session = by_hand.session(redis_server, pool)

    async def listed() -> list[dict[str, Any]]:
        async with over_stdio(env, "--allow-control") as client:
            tools = (await client.list_tools()).tools
            return [json.loads(tool.model_dump_json(by_alias=True, exclude_none=True)) for tool in tools]

    served = anyio.run(listed)
    ours = tool_schemas("mcp", session)
    for theirs, mine in zip(served, ours, strict=True):
        assert {key: theirs[key] for key in mine} == mine
    openai = tool_schemas("openai", session)
    assert [tool["function"]["parameters"] for tool in openai] == [tool["inputSchema"] for tool in served]
    assert execute({"tool": "resource_allocator", "params": {}}, [CONTROL], session=session)["error"]["message"] == (
        f"parameter {served[0]['inputSchema']['required'][0]!r} is missing"
    )


def test_arguments_that_do_not_fit_are_explained(env: dict[str, str]) -> None:
    async def session() -> None:
        async with over_stdio(env, "--allow-control") as client:
            for arguments, code, word in [
                ({}, "bad_request", "task_id"),
                ({"task_id": "t", "task_type": "processing", "gpus": 2}, "bad_request", "gpus"),
                ({"task_id": "t", "task_type": "nonsense"}, "bad_requirements", "nonsense"),
                ({"task_id": 7, "task_type": "processing"}, "bad_requirements", "task_id"),
                ({"task_id": "t", "task_type": "processing", "ttl_s": -1}, "bad_requirements", "ttl_s"),
                (
                    {"task_id": "t", "task_type": "processing", "resource_requirements": {"gpu_memory_mb": 99999}},
                    "never_fits",
                    "24576",
                ),
            ]:
                refused = await call(client, "resource_allocator", **arguments)
                assert refused["error"]["code"] == code
                assert word in refused["error"]["message"]
            assert (await call(client, "queue", limit=0))["error"]["code"] == "bad_requirements"
            assert (await call(client, "status", allocation_id=""))["error"]["code"] == "bad_requirements"
            assert (await call(client, "delete_everything"))["error"]["code"] == "bad_request"

    anyio.run(session)


def test_a_host_that_ends_leaves_nobody_in_line(env: dict[str, str], redis_server: RedisServer, pool: str) -> None:
    ledger = by_hand.session(redis_server, pool).ledger

    async def session() -> None:
        job = {"task_type": "processing", "resource_requirements": {"cpu_cores": 8}}
        async with anyio.create_task_group() as group, over_stdio(env, "--allow-control") as client:
            await call(client, "resource_allocator", task_id="t1", **job)

            async def ask() -> None:
                with contextlib.suppress(MCPError):
                    await call(client, "resource_allocator", task_id="t2", wait_s=60, **job)

            group.start_soon(ask)
            await run_sync(wait_until, ledger.queue, 30, "somebody in line")

    anyio.run(session)
    wait_until(lambda: not ledger.queue(), 30, "the line to be empty")
    assert [allocation.task_id for allocation in ledger.held()] == ["t1"]
    ledger.client.close()


def test_a_port_that_is_taken(redis_server: RedisServer, pool: str, tmp_path: Path) -> None:
    with McpServer(tmp_path, by_hand.environment(redis_server, pool)) as server:
        taken = server.url.rpartition("/")[0].rpartition(":")[2]
        argv = [*server.argv[:-1], taken]
        with OwnedProcess(argv, tmp_path / "second.log", env=server.env) as second:
            assert second.wait(30) == 2
            assert f"Error: cannot listen at 127.0.0.1:{taken}" in second.output()
            assert "Traceback" not in second.output()
        assert server.stop(signal.SIGINT) == 0
        assert "Aborted" not in server.output()
