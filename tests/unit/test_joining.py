"""Libraries joined into a script: what is left out, what is made when, and that calls find what they mean."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from celery_allocator.ledger import joining, keys

LIBRARY = """-- Library: for tests.
-- often: twice
local LIMIT = 40
local calls = 0
local function once(n) return n + 1 end

-- Calls the one above.
local function twice(n)
  calls = calls + 1
  return once(once(n))
end

local function unused() return twice(1) end

local function counted() return calls end

local function odd(n) return n % 2 == 1 and "odd" or even(n) end

local function even(n)
  if n > LIMIT then return "large" end
  return n % 2 == 0 and "even" or odd(n)
end
"""


def run(client: redis.Redis, body: str, library: str = LIBRARY, **strategies: str) -> Any:
    return client.eval(joining.join([library], body, strategies), 0)


def test_calls_reach_functions_whenever_these_are_made(ledger_client: redis.Redis) -> None:
    assert run(ledger_client, "return twice(3)\n") == 5
    assert run(ledger_client, "return once(3)\n") == 4
    assert run(ledger_client, "twice(1)\ntwice(1)\nreturn counted()\n") == 2, "state is shared by all"
    assert run(ledger_client, "return { odd(3), even(3), odd(4), even(41) }\n") == [b"odd", b"odd", b"even", b"large"]


def test_what_is_not_called_is_left_out() -> None:
    source = joining.join([LIBRARY], 'return once("twice") -- and not unused()\n', {})
    assert "fn.twice" not in source
    assert "unused" not in source.replace("-- and not unused()", "")
    assert 'name == "once"' in source


def test_only_what_is_called_often_is_made_at_once() -> None:
    source = joining.join([LIBRARY], "return twice(1)\n", {})
    first, rest = source.split("setmetatable(")
    assert "{ twice = function(n)" in first
    assert "once" not in first.replace("fn.once(fn.once(n))", "")
    assert 'if name == "once" then made = function(n)' in rest
    assert "setmetatable" not in joining.join(["-- often: one\nlocal function one() return 1 end\n"], "one()\n", {})


def test_a_function_is_made_once(ledger_client: redis.Redis) -> None:
    assert run(ledger_client, "return once == once and counted ~= once and 1 or 0\n") == 1


@pytest.mark.parametrize(
    "body",
    [
        "local t = { once = 3 }\nreturn t.once\n",
        "local once = 3\nreturn once\n",
        "local function f(once) return once end\nreturn f(3)\n",
        "for once = 3, 3 do return once end\n",
        "for _, once in ipairs({ 3 }) do return once end\n",
        "local t = { once = function(self) return 3 end }\nreturn t:once()\n",
        'return string.len("once") - 1\n',
        "return string.len('once') - 1 -- once\n",
    ],
)
def test_a_name_that_is_not_the_functions_is_left_alone(ledger_client: redis.Redis, body: str) -> None:
    assert run(ledger_client, body) == 3
    assert "fn.once" not in joining.join([LIBRARY], body, {})


@pytest.mark.parametrize(
    "body",
    [
        'return "" ..once(2)\n',
        'return "\\"once\\"" and once(2)\n',
        "local f = { once }\nreturn f[1](2)\n",
        "local f = { run = once }\nreturn f.run(2)\n",
        "return pcall(once, 2) and once(2)\n",
        "if once(2) == 3 then return 3 end\n",
    ],
)
def test_a_name_that_is_the_functions_finds_it(ledger_client: redis.Redis, body: str) -> None:
    assert int(run(ledger_client, body)) == 3


def test_a_function_that_is_called_too_early_is_refused() -> None:
    with pytest.raises(ValueError, match="before it is made: once"):
        joining.join([LIBRARY + "local first = once(1)\n"], "return first\n", {})


@pytest.mark.parametrize("name", ["fn", "made", "name"])
def test_state_cannot_have_a_name_that_is_used_here(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        joining.join([f"{LIBRARY}local {name} = 1\n"], "return once(1)\n", {})


def test_an_error_in_a_function_that_is_made_late_is_the_scripts(ledger_client: redis.Redis) -> None:
    with pytest.raises(ResponseError, match="attempt to perform arithmetic on local 'n'"):
        run(ledger_client, "return once()\n")


PLACING = LIBRARY + "-- strategies\nlocal function choose(name) return strategy_of(name).find() end\n"
STRATEGIES = {
    "best_fit": "return { find = function() return once(10) end }\n",
    "mine": "local function once() return 7 end\nreturn { find = function() return once() + twice(1) end }\n",
    "broken": "return { find = function() return nowhere() end }\n",
}


def test_a_strategy_calls_functions_of_libraries_and_of_its_own(ledger_client: redis.Redis) -> None:
    body = 'return { choose("mine"), choose("unknown"), choose(), choose("best_fit") }\n'
    assert run(ledger_client, body, PLACING, **STRATEGIES) == [10, 11, 11, 11]


def test_a_strategy_is_made_when_it_is_asked_for(ledger_client: redis.Redis) -> None:
    strategies = {**STRATEGIES, "loud": "error('made')\n"}
    assert run(ledger_client, 'return choose("mine")\n', PLACING, **strategies) == 10
    with pytest.raises(ResponseError, match="made"):
        run(ledger_client, 'return choose("loud")\n', PLACING, **strategies)
    with pytest.raises(ResponseError, match="nowhere"):
        run(ledger_client, 'return choose("broken")\n', PLACING, **strategies)


def test_a_script_that_does_not_place_has_no_strategies() -> None:
    assert joining.places(joining.join([PLACING], "return choose()\n", STRATEGIES))
    assert not joining.places(joining.join([PLACING], "return once(1)\n", STRATEGIES))


def test_keys_are_rendered_after_it() -> None:
    source = joining.join(['local function read() return redis.call("GET", K.tick) end\n'], "return read()\n", {})
    assert 'P.."tick"' in keys.render(source)
