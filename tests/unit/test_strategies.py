"""The names of strategies: the package's and those that a user registers."""

from __future__ import annotations

import copy
import pickle

import pytest

from celery_allocator.ledger import joining, scripts
from celery_allocator.model import Strategy, known_strategy
from celery_allocator.settings import STRATEGIES


def test_each_strategy_has_its_file_its_member_and_its_place_in_the_settings() -> None:
    assert [strategy.value for strategy in Strategy] == list(STRATEGIES)
    assert sorted(STRATEGIES) == list(scripts.strategies())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_opens_with_what_it_is(name: str) -> None:
    assert scripts.strategies()[name].startswith("-- Strategy: ")


def test_a_registered_name_is_a_strategy_and_no_member() -> None:
    mine = Strategy("mine")
    assert mine == Strategy("mine") == "mine"
    assert mine != Strategy.FGD
    assert (mine.value, mine.name) == ("mine", "mine")
    assert mine not in list(Strategy)
    assert {mine, Strategy("mine")} == {mine}
    assert pickle.loads(pickle.dumps(mine)) == copy.deepcopy(mine) == mine
    assert Strategy("best_fit") is Strategy.BEST_FIT


@pytest.mark.parametrize("name", ["", "Mine", "1st", "a b", "a" * 33, "mine\n", None, 3])
def test_what_cannot_be_a_name_is_none(name: object) -> None:
    with pytest.raises(ValueError, match="is not a valid Strategy"):
        Strategy(name)


def test_a_name_is_known_or_all_that_are_known_are_said() -> None:
    assert known_strategy("fgd") is Strategy.FGD
    assert known_strategy(Strategy.FGD) is Strategy.FGD
    assert known_strategy("mine", {"mine": "mine.lua"}) == known_strategy(Strategy("mine"), ["mine"]) == "mine"
    for unknown in ("mine", "FGD", None, 3):
        with pytest.raises(ValueError, match=r"must be one of first_fit, best_fit, priority, spread, fgd, other$"):
            known_strategy(unknown, ["other"])


def test_scripts_that_place_take_registered_ones_in_and_others_do_not() -> None:
    fragment = ("mine", "return {}\n")
    assert scripts.places("submit")
    assert not scripts.places("snapshot")
    assert joining.start_of("mine") in scripts.load("submit", (fragment,)).source
    assert "strategy_mine" not in scripts.load("submit").source
    assert scripts.load("snapshot", (fragment,)).source == scripts.load("snapshot").source
