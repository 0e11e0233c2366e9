"""A gate's file is read strictly: what is wrong is told with file, rule, key and what may have been meant."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.errors import GateConfigError
from celery_allocator.gate import Measurement, Rule, Severity, kinds, load, rule
from celery_allocator.gate.registry import unregister
from celery_allocator.history.window import Window, length, moment
from tests.support.processes import ROOT

NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_that_says_everything(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'name = "n"\nwindow = "2d"\nmin_samples = 7\nimports = []\n'
        '[rules.urgent]\nkind = "wait_percentile"\nmin = 0\nmax = 5.5\nwindow = "90s"\nmin_samples = 0\n'
        'severity = "warn"\ntask = "a.*"\ntenant = ["x", "y"]\ndevice = "n1/*"\npercent = 75\n'
        "[rules.success_rate]\nmin = 0.5\n[rules.waiting_now]\nmax = 3\n",
    )
    gate = load(path)
    urgent, success, live = gate.rules
    assert urgent == Rule(
        name="urgent",
        kind=kinds()["wait_percentile"],
        window=timedelta(seconds=90),
        minimum=0.0,
        maximum=5.5,
        min_samples=0,
        severity=Severity.WARN,
        filters={"task": ("a.*",), "tenant": ("x", "y"), "device": ("n1/*",)},
        options={"percent": 75},
    )
    assert (gate.name, success.window, success.min_samples, success.bound) == ("n", timedelta(days=2), 7, "≥ 0.5")
    assert (live.min_samples, live.bound, urgent.bound) == (1, "≤ 3", "0 to 5.5")


def test_the_shipped_file_uses_what_there_is() -> None:
    gate = load(ROOT / "configs" / "gate.toml")
    assert len(gate.rules) == len({rule.name for rule in gate.rules}) >= 15


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules = [", "is no TOML"),
        ("", "rules: names no rule"),
        ("[rules]\n", "rules: names no rule"),
        ("rules = 3", "rules: names no rule"),
        ("[rules]\nwait_p95 = 3", "rule 'wait_p95': is 3: write a table"),
        ('windw = "1h"\n[rules.wait_p95]\nmax = 1', "windw: is no key of a gate (did you mean 'window'?)"),
        ("zzz = 1\n[rules.wait_p95]\nmax = 1", "zzz: is no key of a gate: the keys are name, window"),
        (
            "[rules.wait_p59]\nmax = 1",
            "rule 'wait_p59': kind: no kind of rule is called 'wait_p59' (did you mean 'wait_p",
        ),
        ('[rules.x]\nkind = "wait_p9"\nmax = 1', "gate --list"),
        ("[rules.x]\nkind = 3\nmax = 1", "kind: is 3: it must be a text"),
        ("[rules.wait_p95]\nmaxx = 1", "rule 'wait_p95': maxx: is no key of a rule (did you mean 'max'?)"),
        ("[rules.wait_p95]\nmax = 1\npercent = 3", "percent: is no key of a rule"),
        ("[rules.wait_p95]", "rule 'wait_p95': has no bound"),
        ('[rules.wait_p95]\nmax = "60"', "max: is '60': it must be a number"),
        ("[rules.wait_p95]\nmax = true", "max: is True: it must be a number"),
        ("[rules.wait_p95]\nmax = nan", "max: is nan: it must be a number"),
        ("[rules.wait_p95]\nmax = 1\nmin = 2", "min: is 2, more than max (1): nothing can pass"),
        ("[rules.wait_p95]\nmax = 1\nmin_samples = -1", "min_samples: is -1"),
        ("[rules.wait_p95]\nmax = 1\nmin_samples = 1.5", "min_samples: is 1.5"),
        ('[rules.wait_p95]\nmax = 1\nwindow = "1y"', "window: '1y' is not a length of time such as 90s"),
        ("[rules.wait_p95]\nmax = 1\nwindow = 60", "window: is 60: it must be a text"),
        ('[rules.wait_p95]\nmax = 1\nseverity = "error"', "severity: is 'error': it must be one of fail, warn"),
        ("[rules.wait_p95]\nmax = 1\nseverity = [1]", "severity: is [1]"),
        ("[rules.wait_p95]\nmax = 1\ntask = 3", "task: is 3: it must be a text or a list of texts"),
        ('[rules.wait_p95]\nmax = 1\ntask = ["a", 3]', "it must be a text or a list of texts"),
        ('[rules.history_gaps]\nmax = 0\ntask = "a"', "task: means nothing to history_gaps, which takes no filter"),
        ('[rules.lost_workers]\nmax = 0\ntenant = "a"', "tenant: means nothing to lost_workers, which takes device"),
        ("[rules.lost_workers]\nmax = 0\nmin_samples = 3", "min_samples: means nothing to lost_workers"),
        ('[rules.wait_percentile]\nmax = 1\npercent = "9"', "percent: is '9': it must be of type float"),
        ("[rules.wait_percentile]\nmax = 1\npercent = true", "percent: is True"),
        ("[rules.oom_rate]\nmax = 1\nerrors = [3]", "errors: is [3]"),
        ('imports = ["no.such.module"]\n[rules.wait_p95]\nmax = 1', "imports: 'no.such.module' cannot be imported"),
        ("imports = 3\n[rules.wait_p95]\nmax = 1", "imports: is 3"),
        ("name = 3\n[rules.wait_p95]\nmax = 1", "name: is 3: it must be a text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(GateConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GateConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "my.toml").write_bytes(b"\xff")
    with pytest.raises(GateConfigError, match="is no TOML"):
        load(tmp_path / "my.toml")


def test_kinds_of_ones_own_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_gate_rules.py").write_text(
        "from celery_allocator.gate import Measurement, rule\n\n"
        '@rule("own_rule", unit="count", filters=())\n'
        'def own_rule(evidence, *, at_least: int = 3):\n    "Mine."\n    return Measurement(float(at_least), 1)\n'
    )
    monkeypatch.chdir(tmp_path)
    try:
        gate = load(write(tmp_path, 'imports = ["own_gate_rules"]\n[rules.own_rule]\nmax = 1\nat_least = 5\n'))
        assert gate.rules[0].kind.summary == "Mine."
        assert gate.rules[0].kind(None, gate.rules[0].options) == Measurement(5.0, 1)  # type: ignore[arg-type]
    finally:
        unregister("own_rule")


def test_kinds_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(evidence: object) -> Measurement:
        return Measurement(None, 0)

    def needy(evidence: object, *, must: int) -> Measurement:
        """Says."""
        return Measurement(None, 0)

    def taken(evidence: object, *, task: str = "") -> Measurement:
        """Says."""
        return Measurement(None, 0)

    with pytest.raises(ValueError, match="no docstring"):
        rule("bare", unit="s")(bare)
    for measure in (needy, taken):
        with pytest.raises(ValueError, match="is no option"):
            rule("needy", unit="s")(measure)
    bare.__doc__ = "Says."
    with pytest.raises(ValueError, match="registered already"):
        rule("wait_p95", unit="s")(bare)
    with pytest.raises(ValueError, match="filters that there are not: node"):
        rule("bare", unit="s", filters=("node",))(bare)


def test_every_kind_explains_itself() -> None:
    for kind in kinds().values():
        assert kind.summary.endswith((".", "none waits.")), kind.name
        assert kind.unit, kind.name


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172800), ("1w", 604800), ("1.5h", 5400)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert length(text) == timedelta(seconds=seconds)
    assert moment(text, NOW) == NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2026-01-02T11:00:00Z", NOW - timedelta(hours=1)),
        ("2026-01-02T12:00:00+01:00", NOW - timedelta(hours=1)),
        ("2026-01-02T11:00", NOW - timedelta(hours=1)),
        ("2026-01-02", NOW - timedelta(hours=12)),
        (60, NOW - timedelta(minutes=1)),
        (timedelta(minutes=1), NOW - timedelta(minutes=1)),
        (NOW.replace(tzinfo=None), NOW),
    ],
)
def test_moments(when: str | float | timedelta | datetime, expected: datetime) -> None:
    assert moment(when, NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "0s", "1x", "-1h", "99999999w", "2026-13-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="neither a length of time"):
        moment(text, NOW)


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_moments(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert moment(text, NOW).tzinfo is timezone.utc


def test_a_window_holds_its_start_and_not_its_end() -> None:
    window = Window(NOW, NOW + timedelta(hours=1))
    assert window.holds(NOW) and not window.holds(window.end) and not window.holds(None)
    assert str(window) == "2026-01-02T12:00:00Z to 2026-01-02T13:00:00Z"
