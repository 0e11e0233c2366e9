"""Requirements are valid once they exist; everything else is one kind of error that names key, value and rule."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_allocator.errors import RequirementsError
from celery_allocator.model import FIELDS, LABELS, OTHERS, Kind, Requirements, Shape
from celery_allocator.model.requirements import merge
from celery_allocator.model.task_types import TASK_TYPES, resolve

VALUES = st.one_of(
    st.integers(),
    st.integers(-2000, 70_000_000),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.none(),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.decimals(),
)
LAYERS = st.one_of(
    st.none(),
    st.dictionaries(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=12), st.integers()), VALUES),
    VALUES,
)
VALID = st.fixed_dictionaries({key: st.integers(field.minimum, field.maximum) for key, field in FIELDS.items()}).filter(
    lambda values: (
        any(values[key] for key in ("gpu_memory_mb", "cpu_cores", "ram_mb"))
        and (values["gpu_memory_mb"] or values["gpu_count"] == 1)
    )
)


@given(st.lists(LAYERS, max_size=3))
@example([{"gpu_memory_mb": 10**5000}])  # too long for Python to print
@example([{"gpu_memory_mb": float("nan")}])
@example([{"cpu_cores": True}])
@example([{"cpu_cores": 0}])
def test_any_input_is_valid_requirements_or_a_requirements_error(layers: list[Any]) -> None:
    """Nothing else comes out: no other exception, no half-valid value."""
    refused: RequirementsError | None = None
    try:
        requirements = Requirements.parse(*layers)
    except RequirementsError as error:
        refused = error
    if refused is not None:
        assert refused.key in str(refused)
        assert refused.rule in str(refused)
        return
    for key, field in FIELDS.items():
        value = getattr(requirements, key)
        assert type(value) is int
        assert field.minimum <= value <= field.maximum
    assert all(layer is None or isinstance(layer, Mapping) for layer in layers)


@given(VALID)
def test_valid_requirements_survive_every_way_of_travelling(values: dict[str, int]) -> None:
    """As plain data and as a pickle they come back equal."""
    requirements = Requirements(**values)
    assert requirements.as_dict().items() <= values.items()
    assert Requirements(**requirements.as_dict()) == requirements
    assert pickle.loads(pickle.dumps(requirements)) == requirements


@given(VALID, VALID)
def test_a_later_layer_wins_key_by_key(lower: dict[str, int], upper: dict[str, int]) -> None:
    """Decorator below, call above; a key that the call leaves out, or gives as None, keeps the lower value."""
    partial = {"gpu_memory_mb": upper["gpu_memory_mb"], "cpu_cores": None}
    assert merge(lower, partial) == {**lower, "gpu_memory_mb": upper["gpu_memory_mb"]}
    assert Requirements.parse(lower, upper) == Requirements(**upper)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_bounds_are_inclusive_and_named(key: str) -> None:
    """The bounds themselves are allowed; one step outside names key, value and bound."""
    field = FIELDS[key]
    base = {"ram_mb": 1, "gpu_memory_mb": 1} if key != "ram_mb" else {"cpu_cores": 1}
    for value in (field.minimum, field.maximum):
        assert getattr(Requirements(**{**base, key: value}), key) == value
    for value, bound in ((field.minimum - 1, field.minimum), (field.maximum + 1, field.maximum)):
        with pytest.raises(RequirementsError) as caught:
            Requirements(**{**base, key: value})
        assert (caught.value.key, caught.value.value) == (key, value)
        assert f"{key}={value}" in str(caught.value)
        assert str(bound) in caught.value.rule


@pytest.mark.parametrize("value", [True, 1.0, float("nan"), float("inf"), "2048", b"1", [1], object()])
def test_only_whole_numbers_count(value: object) -> None:
    """True is no megabyte and 2048.0 is no int: a value of the wrong type names the type."""
    with pytest.raises(RequirementsError, match=type(value).__name__) as caught:
        Requirements(gpu_memory_mb=value)  # type: ignore[arg-type]
    assert caught.value.key == "gpu_memory_mb"


def test_bytes_given_as_megabytes_are_told_so() -> None:
    """24 GB in bytes is beyond the bound, and the error says what the unit is."""
    with pytest.raises(RequirementsError, match="MB, not bytes"):
        Requirements(gpu_memory_mb=24 * 2**30)


def test_an_unknown_key_names_the_known_ones() -> None:
    """A misspelt requirement must not be ignored: the task would start without it."""
    with pytest.raises(RequirementsError) as caught:
        Requirements.parse({"gpu_memory": 2048})
    assert caught.value.key == "gpu_memory"
    assert all(key in caught.value.rule for key in FIELDS)


def test_what_is_seldom_stated_is_told_only_then() -> None:
    """Most tasks ask for one GPU and name no run time: replies and messages are not longer for it."""
    assert set(Requirements(gpu_memory_mb=1).as_dict()) == {"gpu_memory_mb", "cpu_cores", "ram_mb", "priority"}
    asked = {"gpu_memory_mb": 1, "gpu_count": 2, "expected_runtime_s": 60, "size": "4k", "tenant": "vision"}
    assert Requirements(**asked).as_dict().items() >= asked.items()


def test_several_gpus_need_to_say_how_much_of_each() -> None:
    with pytest.raises(RequirementsError, match=r"gpu_count=2.*gpu_memory_mb"):
        Requirements(gpu_count=2)


def test_requirements_cannot_be_changed() -> None:
    """They are shared between threads and used as keys."""
    requirements = Requirements(gpu_memory_mb=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        requirements.gpu_memory_mb = 2  # type: ignore[misc]
    assert len({requirements, Requirements(gpu_memory_mb=1)}) == 1


def test_fields_and_attributes_are_the_same_list() -> None:
    """The table that the schema and the options are made from cannot drift from the class."""
    attributes = {field.name: field.default for field in dataclasses.fields(Requirements)}
    others = {"gpu": 0.0, "exclusive": False, "labels": ()}
    assert tuple(others) == tuple(OTHERS)
    assert attributes == {
        **{name: field.default for name, field in FIELDS.items()},
        **dict.fromkeys(LABELS, ""),
        **others,
    }
    assert all(field.doc and field.minimum <= field.default <= field.maximum for field in FIELDS.values())


@pytest.mark.parametrize("task_type", sorted(TASK_TYPES))
def test_every_shipped_task_type_is_valid_and_can_be_overridden(task_type: str) -> None:
    """Defaults stand alone; one key over them changes that key only."""
    defaults = resolve(task_type)
    assert resolve(task_type, {"ram_mb": 123}) == dataclasses.replace(defaults, ram_mb=123)


@pytest.mark.parametrize("task_type", ["nope", "", None, 3, []])
def test_an_unknown_task_type_is_refused(task_type: Any) -> None:
    """With the known ones in the message."""
    with pytest.raises(RequirementsError, match="ml_inference"):
        resolve(task_type)


def test_settings_add_and_replace_task_types() -> None:
    """A type from the settings wins over a shipped one of the same name."""
    extra = {"rendering": {"cpu_cores": 7}, "training": {"gpu_memory_mb": 9}}
    assert resolve("rendering", extra_types=extra) == Requirements(cpu_cores=7)
    assert resolve("training", extra_types=extra).gpu_memory_mb == 9


@pytest.mark.parametrize(
    ("asked", "key", "rule"),
    [
        ({"gpu": 1.5}, "gpu", "a share from 0 to 1; whole GPUs are gpu_count"),
        ({"gpu": -0.1}, "gpu", "a share from 0 to 1"),
        ({"gpu": 0.3333}, "gpu", "at most three decimals"),
        ({"gpu": True}, "gpu", "must be a number, not bool"),
        ({"gpu": float("nan")}, "gpu", "must be a number"),
        ({"gpu": "0.5"}, "gpu", "must be a number, not str"),
        ({"gpu": 0.5, "exclusive": True}, "gpu", "leave one out"),
        ({"exclusive": 1}, "exclusive", "must be true or false"),
        ({"gpu_model": "A100"}, "gpu_model", "needs gpu_memory_mb above 0, gpu or exclusive"),
        ({"gpu_count": 2}, "gpu_count", "needs gpu_memory_mb above 0, gpu or exclusive"),
        ({"labels": "zone=a"}, "labels", "must be a mapping such as"),
        ({"labels": {"zone": 1}}, "labels", "1 must be text, not int"),
        ({"labels": {"": "a"}}, "labels", "'' must be 1 to 255 printable"),
        ({"labels": {str(i): "x" for i in range(9)}}, "labels", "must be 8 labels at most"),
        ({"node": "n1/gpu_0"}, "node", "must not contain '/'"),
        ({"anti_affinity": "a,b"}, "anti_affinity", "must not contain ','"),
    ],
)
def test_what_cannot_be_asked_for_names_key_value_and_rule(asked: dict[str, Any], key: str, rule: str) -> None:
    with pytest.raises(RequirementsError) as caught:
        Requirements(**asked)
    assert caught.value.key == key
    assert rule in caught.value.rule


def test_a_whole_gpu_is_a_share_of_one() -> None:
    whole = Requirements(gpu=1.0)
    assert whole == Requirements(exclusive=True)
    assert (whole.share, whole.on_gpu, whole.as_dict()["exclusive"]) == (1000, True, True)
    assert Requirements(gpu=0.25, gpu_memory_mb=3000).gpu_memory_on(8001) == 3000
    assert Requirements(gpu=0.25).gpu_memory_on(8001) == 2001


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8).filter(
    lambda text: text.isprintable() and text.strip() and not set(text) & set("/,")
)
_LIMITED = st.fixed_dictionaries(
    {"gpu_memory_mb": st.integers(1, 90_000)},
    optional={
        "gpu": st.integers(1, 1000).map(lambda share: share / 1000),
        "gpu_count": st.integers(1, 8),
        "gpu_model": _WORDS,
        "node": _WORDS,
        "anti_affinity": _WORDS,
        "affinity": _WORDS,
        "labels": st.dictionaries(_WORDS, _WORDS, max_size=3),
    },
)


@given(_LIMITED, st.sampled_from(Kind))
def test_a_shape_tells_all_that_decides_on_a_place(asked: dict[str, Any], kind: Kind) -> None:
    """Written and read again it is the same, and says what was asked for; no part of it can be taken for another."""
    requirements = Requirements(**asked)
    shape = Shape.of(requirements, kind)
    text = str(shape)
    assert Shape.parse(text) == shape
    assert not set(text) & set(" /,|\n")
    told = Requirements(shape.gpu_memory_mb, shape.cpu_cores, shape.ram_mb, gpu_count=shape.gpu_count, **shape.asked)
    assert told == requirements
    assert shape.gpu_memory_on(10_000) == requirements.gpu_memory_on(10_000)
    assert Requirements(**requirements.as_dict()) == requirements


@pytest.mark.parametrize(
    "text",
    ["1:1:1:t:1", "1:1:1:t:0:s=1", "1:1:1:t:1:", "1:1:1:t::s=1", "1:1:1:x", "1:1:1:t:2:s=1:m=2", "1:1:t", "1:1:1:t:a"],
)
def test_what_is_no_shape_is_none(text: str) -> None:
    assert Shape.parse(text) is None


@pytest.mark.parametrize("more", ["s=0", "s=1001", "s=a", "q=1", "zone", "l.zone"])
def test_what_nobody_can_ask_for_is_refused(more: str) -> None:
    shape = Shape.parse(f"1:1:1:t:1:{more}")
    assert shape is not None
    with pytest.raises(ValueError, match="nothing that can be asked for"):
        _ = shape.asked
