"""The file of tokens: what it may say, how mistakes are explained, how entries get into it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.allocating import Session, tool_schemas
from celery_allocator.errors import RequestError, SettingsError, TokensError
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli import allocator
from celery_allocator.surfaces.mcp import tokens as tokens_module
from celery_allocator.surfaces.mcp.caps import Caps
from celery_allocator.surfaces.mcp.http import check_binding
from celery_allocator.surfaces.mcp.minting import add, new_secret
from celery_allocator.surfaces.mcp.tokens import TokenFile, hashed
from tests.support.processes import ROOT, clean_environment

READ, CONTROL = "allocator:read", "runtime:control"
HASH = "0" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_a_token_is_found_by_its_secret_alone(path: Path) -> None:
    end = datetime(2030, 1, 1, tzinfo=timezone.utc)
    caps = {"gpu_memory_mb": 9, "ttl_s": 1.5}
    first = add(path, "first", [READ], expires=end, tenant='red "x"', caps=caps)
    second = add(path, "second", [READ, CONTROL], any_owner=True)

    tokens = TokenFile(path)
    one, two = tokens.find(first), tokens.find(second)
    assert one is not None and two is not None
    assert (one.caller.name, one.caller.owner, one.caller.scopes) == ("first", "token:first", frozenset({READ}))
    assert (one.caller.tenant, one.caller.any, one.caller.caps) == ('red "x"', False, Caps(gpu_memory_mb=9, ttl_s=1.5))
    assert one.expired(end.timestamp()) and not one.expired(end.timestamp() - 1)
    assert (two.caller.tenant, two.caller.any, two.expires_at) == (None, True, None)
    assert tokens.find(hashed(first)) is None  # the file's own words are no token
    assert tokens.find("") is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert first not in path.read_text() and second not in path.read_text()


def test_who_asks_while_the_file_is_read_again_is_let_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests at once after a change: the second one does not meet an empty list."""
    secret = add(path, "agent", [READ])
    tokens, begun, goes_on = TokenFile(path), threading.Event(), threading.Event()

    def slowly(where: Path) -> Any:
        begun.set()
        assert goes_on.wait(30)
        return read(where)

    read = tokens_module._read
    monkeypatch.setattr(tokens_module, "_read", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tokens.find, secret)
        assert begun.wait(30)
        second = pool.submit(tokens.find, secret)
        # It waits now, or has answered already, wrongly.
        wait((second,), timeout=0.2)
        goes_on.set()
        assert first.result(30) is not None
        assert second.result(30) is not None


def test_without_tenant_and_any_there_is_no_tenant_to_name(path: Path) -> None:
    secret = add(path, "a", [READ])
    found = TokenFile(path).find(secret)
    assert found is not None and found.caller.tenant == ""


def test_what_stood_there_stays(path: Path) -> None:
    path.write_text(f"# ours\n[tokens.old]  # keep\nsha256 = '{HASH}'\nscopes = ['{READ}']")
    before = path.read_text()
    add(path, "new", [CONTROL])
    assert path.read_text().startswith(before)
    assert [entry.caller.name for entry in TokenFile(path).load()] == ["old", "new"]


def test_a_name_is_used_once(path: Path) -> None:
    add(path, "a", [READ])
    before = path.read_text()
    with pytest.raises(TokensError, match="has a token 'a' already"):
        add(path, "a", [READ])
    with pytest.raises(TokensError, match="letters, digits"):
        add(path, "a b", [READ])
    with pytest.raises(TokensError, match=r"tokens\.b\.tenant"):
        add(path, "b", [READ], tenant="a/b")
    assert path.read_text() == before


def test_secrets_differ_and_are_long() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(new_secret()) >= 43


GOOD = f'[tokens.a]\nsha256 = "{HASH}"\nscopes = ["{READ}"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tokens.a\n", "is not TOML: .*line 1"),
        (GOOD + GOOD, "is not TOML: .*line 4"),
        ("", "line|tokens: the file holds tables"),
        ("[other]\n" + GOOD, "line 1: other: the file holds"),
        ("[tokens]\n", ""),
        ('tokens = "x"\n', "line 1: tokens: the file holds"),
        ("[tokens]\na = 1\n", "tokens.a: must be a table"),
        ('[tokens."a b"]\n', "line 1: tokens.a b: a name has"),
        (GOOD + "colour = 1\n", "line 4: tokens.a.colour: unknown; known are sha256"),
        (GOOD + 'token = "x"\n', "line 2: tokens.a.sha256: an entry has either"),
        (f'[tokens.a]\nscopes = ["{READ}"]\n', "line 1: tokens.a.sha256: an entry has either"),
        (GOOD.replace(HASH, "abc"), "line 2: tokens.a.sha256: must be 64 hex"),
        (GOOD.replace(READ, "all"), "line 3: tokens.a.scopes: must be a list of some of allocator:read"),
        (GOOD.replace(f'["{READ}"]', "[]"), "line 3: tokens.a.scopes"),
        (GOOD + "expires = 2027-01-01T00:00:00\n", "line 4: tokens.a.expires: must be a time with its offset"),
        (GOOD + 'expires = "soon"\n', "line 4: tokens.a.expires"),
        (GOOD + "tenant = 3\n", "line 4: tokens.a.tenant: must be a text"),
        (GOOD + 'tenant = ""\n', "line 4: tokens.a.tenant: must be 1 to"),
        (GOOD + 'tenant = "a/b"\n', "line 4: tokens.a.tenant: must not contain"),
        (GOOD + 'any = "yes"\n', "line 4: tokens.a.any: must be true or false"),
        (GOOD + "caps = 3\n", "line 4: tokens.a.caps: must be a table"),
        (GOOD + "[tokens.a.caps]\nspeed = 3\n", "line 5: tokens.a.speed: unknown cap; known are gpu"),
        (GOOD + "[tokens.a.caps]\nram_mb = true\n", "line 5: tokens.a.ram_mb: must be a whole number"),
        (GOOD + "[tokens.a.caps]\ncpu_cores = -1\n", "line 5: tokens.a.cpu_cores: must be a whole number"),
        (GOOD + "[tokens.a.caps]\nttl_s = 0\n", "line 5: tokens.a.ttl_s: must be a number of seconds"),
        (GOOD + GOOD.replace("tokens.a", "tokens.b"), "tokens.b.sha256: is the token of a too"),
    ],
)
def test_mistakes_are_explained_by_line_and_key(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    if not words:
        assert TokenFile(path).load() == ()
        return
    with pytest.raises(TokensError, match=words) as caught:
        TokenFile(path).load()
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_explained(path: Path) -> None:
    with pytest.raises(TokensError, match="cannot be read: No such file"):
        TokenFile(path).load()
    assert TokenFile(path).find("anything") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_plain_tokens_need_a_private_file_and_hashes_do_not(path: Path, mode: int) -> None:
    secret = "plain-secret-of-more-than-24"
    path.write_text(GOOD)
    path.chmod(mode)
    assert len(TokenFile(path).load()) == 1
    path.write_text(f'[tokens.a]\ntoken = "{secret}"\nscopes = ["{READ}"]\n')
    with pytest.raises(TokensError, match=r"line 2: tokens\.a\.token: a plain token, and others can read") as caught:
        TokenFile(path).load()
    assert secret not in str(caught.value)
    path.chmod(0o600)
    assert TokenFile(path).find(secret) is not None
    path.write_text(f'[tokens.a]\ntoken = "short"\nscopes = ["{READ}"]\n')
    with pytest.raises(TokensError, match="at least 24"):
        TokenFile(path).load()


@given(st.text(max_size=200) | st.text("[]tokens.a=\"'\n#{}0123", max_size=200))
def test_any_file_is_read_or_explained(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "tokens.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(TokensError):
        TokenFile(path).load()


def test_the_example_is_right_and_its_tokens_are_nobodys(tmp_path: Path) -> None:
    example = ROOT / "configs" / "mcp-tokens.toml"
    entries = TokenFile(example).load()
    assert {entry.caller.name for entry in entries} == {"research-agent", "dashboard", "supervisor"}
    assert any(entry.caller.caps != Caps() for entry in entries)
    for guess in ("", "token", "secret", "changeme", "example", *(entry.caller.name for entry in entries)):
        assert TokenFile(example).find(guess) is None


# --- the commands


def invoke(*args: str) -> Any:
    return CliRunner().invoke(allocator, args, prog_name="celery-allocator")


def test_the_command_prints_the_token_once(path: Path) -> None:
    args = ["--scope", READ, "--scope", CONTROL, "--days", "30", "--tenant", "red", "--max-gpu-memory", "8192"]
    done = invoke("mcp", "token", "agent", "--tokens", str(path), *args, "--max-allocations", "2", "--max-ttl", "60")
    assert done.exit_code == 0, done.output
    secret = done.stdout.strip()
    found = TokenFile(path).find(secret)
    assert found is not None and found.expires_at is not None
    assert 29 < (found.expires_at - datetime.now(timezone.utc).timestamp()) / 86400 <= 30
    assert found.caller.caps == Caps(gpu_memory_mb=8192, ttl_s=60, allocations=2)
    assert secret not in done.stderr + path.read_text()

    again = invoke("mcp", "token", "agent", "--tokens", str(path), "--scope", READ, "--json")
    assert again.exit_code == 2 and "has a token 'agent' already" in again.output
    assert invoke("mcp", "token", "b", "--tokens", str(path)).exit_code == 2  # no scope
    assert "which file?" in invoke("mcp", "token", "b", "--scope", READ).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tokens", "x.toml"], "--tokens is for --http"),
        (["--http", "--tokens", "/nowhere/x.toml"], "/nowhere/x.toml cannot be read"),
        (["--http", "--host", "0.0.0.0"], "without tokens anybody could call"),
        (["--http", "--tokens", "x.toml", "--allow-control"], "with tokens, their scopes decide"),
    ],
)
def test_a_server_that_would_be_wrong_does_not_start(args: list[str], words: str) -> None:
    done = invoke("mcp", *args)
    assert done.exit_code == 2
    assert words in done.stderr


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None\n"
        "from celery_allocator.surfaces.cli import main; sys.argv = ['celery-allocator', 'mcp']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60, env=clean_environment()
    )
    assert done.returncode == 1
    assert "pip install 'celery-allocator[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["openai", "openai-responses", "mcp", "json-schema"])
def test_the_tools_are_printed_in_each_form(form: str) -> None:
    printed = json.loads(invoke("tools", "--format", form).stdout)
    assert printed == tool_schemas(form, Session(Settings()))
    names = [tool.get("name") or tool.get("title") or tool["function"]["name"] for tool in printed]
    assert names == ["resource_allocator", "release", "status", "queue"]
    with pytest.raises(RequestError, match="no form 'xml'"):
        tool_schemas("xml")


@pytest.mark.parametrize(
    ("host", "others"),
    [("127.0.0.1", False), ("::1", False), ("127.8.0.1", False), ("localhost", False)]
    + [(host, True) for host in ("0.0.0.0", "::", "10.0.0.1", "host.example", "", "localhost.example")],
)
def test_others_reach_it_only_with_tokens(host: str, others: bool) -> None:
    check_binding(host, with_tokens=True)
    if others:
        with pytest.raises(SettingsError, match=re.escape(f"--host {host}")):
            check_binding(host, with_tokens=False)
    else:
        check_binding(host, with_tokens=False)
