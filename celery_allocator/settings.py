"""Every setting, in one typed table: name, type, default and meaning.

A setting ``x`` is ``allocator_x`` in ``app.conf`` (``CELERY_ALLOCATOR_X`` under Django's usual namespace) and
``ALLOCATOR_X`` in the environment. The environment wins over ``app.conf``, as ``CELERY_BROKER_URL`` does in Celery, so
that one host of many can differ; both win over the default. ``backend`` is part of the URL's name on purpose: Celery
masks passwords only in settings whose name contains it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from celery_allocator.errors import SettingsError

PREFIX = "allocator_"
#: The strategies of the package.
STRATEGIES = ("first_fit", "best_fit", "priority", "spread", "fgd")
_STRATEGY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _setting(default: Any, doc: str) -> Any:
    if isinstance(default, (dict, MappingProxyType)):
        frozen = MappingProxyType(dict(default))
        return field(default_factory=lambda: frozen, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Settings:
    """The resolved settings. Times are in seconds, sizes in MB (2**20 bytes)."""

    # --- the ledger
    backend_url: str | None = _setting(
        None,
        "Redis or Valkey URL of the ledger: `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://`, "
        "`redis+cluster://` ([all forms](../howto/ledger-server.md#urls)). Unset: the app's broker or result backend "
        "if that is one of these, else the embedded server of this user on this host.",
    )
    pool: str = _setting("default", "Name of the pool: one pool is one ledger. Letters, digits, `_`, `-` and `.`.")
    embedded_dir: str | None = _setting(
        None, "Folder of the embedded server. Unset: `~/.local/state/celery-allocator` (XDG_STATE_HOME respected)."
    )
    events_maxlen: int = _setting(100_000, "Entries the ledger's event stream keeps, at least.")
    # --- the history
    history_backend_url: str | None = _setting(
        None,
        "Database of the history: `postgresql://…` or `sqlite:///…` ([how](../howto/history.md)). Unset: the SQLite "
        "file `history.sqlite3` in the embedded server's folder.",
    )
    history_days: int = _setting(90, "Days that the history keeps what has ended. 0: for good.")
    recorder: bool = _setting(
        False, "Record the history in a thread of this worker. Several may: one at a time does, the others stand by."
    )
    # --- this host
    node: str | None = _setting(None, "Name of this host in the ledger. Unset: its host name.")
    devices: str = _setting(
        "auto",
        "Devices of this host: `auto` (what NVML finds), `none`, a list of indexes or UUIDs (`0,1`), or simulated ones "
        "(`sim:2x24576`: two of 24576 MB; `sim:2x24576:nvlink`: joined by NVLink). A MIG slice is `0:1` or its UUID.",
    )
    cpu_cores: int | None = _setting(
        None, "Cores this host offers. Unset: those of the process's affinity mask and cgroup limit."
    )
    ram_mb: int | None = _setting(None, "RAM this host offers, in MB. Unset: the machine's or the cgroup's limit.")
    reserve_cpu_cores: int = _setting(0, "Cores kept back from tasks (for the system, the workers' main processes).")
    reserve_ram_mb: int = _setting(0, "RAM kept back from tasks, in MB.")
    labels: Mapping[str, str] = _setting(
        {}, 'Labels of this host, for tasks that ask for such a node: `{"zone": "a"}` (in the environment as JSON).'
    )
    # --- placement
    strategy: str = _setting(
        "best_fit",
        "Strategy of tasks that name none: `first_fit`, `best_fit`, `priority`, `spread`, `fgd`, or one of "
        "`allocator_strategies` ([which](../howto/strategies.md)).",
    )
    strategies: Mapping[str, str] = _setting(
        {},
        "Strategies of your own: name → Lua file, by its path or as `package.module:file.lua` "
        "([how](../howto/strategies.md#your-own)).",
    )
    never_fits: str = _setting(
        "raise", "What apply_async does with requirements no known device could ever hold: `raise` or `wait`."
    )
    default_resources: Mapping[str, int] | None = _setting(
        None,
        "Requirements of every task that declares none. Unset: such tasks are plain Celery tasks, untouched.",
    )
    task_types: Mapping[str, Mapping[str, int]] = _setting(
        {}, "Task types of the function form, added to or replacing `ml_inference`, `rendering` and `processing`."
    )
    backfill: str = _setting(
        "easy",
        "Who may pass the first in line that does not fit: `easy` (who does not delay it; a device is kept for it), "
        "`greedy` (who fits) or `none` (nobody). The same in all programs of a pool.",
    )
    max_bypass: int = _setting(
        100,
        "Times that the first in line may be passed where run times are not known, before a device is emptied for it.",
    )
    max_bypass_s: float = _setting(300.0, "Seconds after which that is done in any case.")
    age_weight: float = _setting(
        0.0,
        "Points of priority that a waiting task earns per minute, up to 1000. 0: the larger priority goes first for "
        "good. The same in all programs of a pool.",
    )
    affinity_s: float = _setting(
        3600.0,
        "Seconds for which a device counts as one where a task's `affinity` is loaded, since it was last used there "
        "([how](../howto/affinity.md)). 0: affinity is not looked at. The same in all programs of a pool, as the next "
        "two.",
    )
    affinity_wait_s: float = _setting(
        2.0, "Seconds for which a task waits for such a device though another one has room, at most. 0: it does not."
    )
    affinity_keeps: int = _setting(
        1, "How many affinities stay loaded for each slot of a worker: what was used before counts as unloaded."
    )
    tenants: Mapping[str, Mapping[str, float]] = _setting(
        {},
        "Tenants that are not like the others: name → `weight` (1: a tenant of weight 2 gets twice the share) and caps "
        "on what it may hold at a time: `gpu_memory_mb`, `cpu_cores`, `ram_mb`, `tasks`. Workers tell the ledger at "
        "their start; what `celery-allocator tenant set` said of a tenant stays.",
    )
    runtime_decay: float = _setting(
        0.02, "Weight of the newest run time in what is learned about a task name: 0.02 looks back on some 50 runs."
    )
    recommend_margin: float = _setting(
        0.15,
        "Share that `celery-allocator recommend` and `gpu_memory_mb='auto'` add to the most that was seen "
        "([how](../howto/how-much.md)).",
    )
    auto_gpu_memory_mb: int | None = _setting(
        None,
        "GPU memory of a task that says `auto` until three of its runs were measured, in MB. Unset: nine tenths of the "
        "smallest known GPU.",
    )
    auto_ram_mb: int | None = _setting(
        None,
        "RAM of a task that says `auto`, likewise. Unset: nine tenths of its cores' share of the smallest known node.",
    )
    # --- bounds
    max_message_bytes: int = _setting(
        1_048_576,
        "Largest message the ledger keeps for a task, in bytes, as packed (its body in base64). apply_async raises "
        "`MessageTooLargeError` for a larger one: pass paths, not data.",
    )
    max_waiting: int = _setting(
        100_000,
        "Tasks that may wait in the pool. Beyond it apply_async raises `PoolFullError`; retries are still taken.",
    )
    journal_maxlen: int = _setting(
        1000, "Operator actions that the ledger's journal remembers, at least 1; older ones cannot be undone."
    )
    updates: bool = _setting(
        True,
        "Whether workers take updates that other systems send to the stream and the channel `…:updates`; one of them "
        "does at a time.",
    )
    changes: bool = _setting(
        False,
        "Whether workers relay every change to the stream and the channel `…:changes`, for mirrors that do not speak "
        "Python; one worker at a time does.",
    )
    celery_events: bool | None = _setting(
        None,
        "Whether workers send the changes of the ledger as Celery events `allocator-…`; one worker at a time does. "
        "Unset: those whose task events are on (`-E`).",
    )
    breaker: Mapping[str, float] | None = _setting(
        None,
        "Circuit breakers: `{}` or some of `failure_rate` (0.5), `window_s` (300), `min_samples` (10), `open_s` (60), "
        "`backoff` (2), `longest_open_s` (3600) and `probes` (3). Unset: none.",
    )
    # --- leases and upkeep
    lease_s: float = _setting(15.0, "Seconds a worker's claim outlives its last heartbeat.")
    heartbeat_s: float | None = _setting(None, "Seconds between heartbeats. Unset: a third of the lease.")
    tick_s: float = _setting(1.0, "Seconds between maintenance ticks.")
    start_deadline_s: float = _setting(10.0, "Seconds after which a grant that has not started is published again.")
    max_losses: int = _setting(
        3, "Times a repeatable task is granted again after losing its process or worker, before it fails."
    )
    ttl_s: float = _setting(3600.0, "Default life of an allocation made by hand, in seconds; renew() extends it.")
    # --- agents (`celery-allocator mcp`)
    mcp_tokens: str | None = _setting(
        None, "File of the tokens with which agents call the MCP server over HTTP ([how](../howto/agents.md#tokens))."
    )
    # --- measuring
    measure_s: float = _setting(
        5.0,
        "Seconds between measurements of what a worker's device, node and tasks really use: shown, counted in metrics, "
        "reconciled with what the ledger holds for free, and [learned](../howto/how-much.md). 0: never.",
    )
    health_s: float = _setting(
        2.0,
        "Seconds between a worker's looks at the health of its GPU ([what follows](../howto/gpu-health.md)): one that "
        "is lost or reports a fatal error is drained, with the reason. 0: never.",
    )
    reconcile: bool = _setting(
        True,
        "Whether memory that is in use and that no claim accounts for is withheld from tasks, and cores that this "
        "process may not use any more ([how](../howto/shared-gpus.md)). Simulated devices never are.",
    )
    gpu_margin_mb: int = _setting(0, "Memory of each GPU that is kept back from tasks, in MB.")
    # --- what a task uses beyond its promise
    on_overuse: str = _setting(
        "warn",
        "What a worker does with a task that uses more GPU memory or RAM than it was promised: `log` it, `warn` (also "
        "an event in the ledger), or `kill` its process; it then fails with `ResourceOveruse` "
        "([how](../howto/overuse.md)).",
    )
    overuse_tolerance: float = _setting(
        0.1, "Share of its promise by which a task may exceed it before that counts as overuse."
    )
    overuse_floor_mb: int = _setting(
        128, "MB by which a task may exceed its promise in any case: for what comes with a process, not with its data."
    )
    watch_s: float = _setting(1.0, "Seconds between looks at running tasks where `allocator_on_overuse` is `kill`.")
    # --- tracing
    tracing: bool = _setting(
        True,
        "Whether the way of a task is told in OpenTelemetry spans, where opentelemetry-api is installed "
        "([how](../howto/tracing.md)). Without a configured SDK they go nowhere.",
    )
    # --- metrics
    metrics_port: int = _setting(
        0,
        "Port at which a worker's main process serves metrics for Prometheus ([how](../howto/metrics.md)); of several "
        "workers of a host one does, the others stand by. 0: none.",
    )
    metrics_host: str = _setting("127.0.0.1", "Address of that port. `0.0.0.0`: all of this host's.")
    # --- running tasks
    pin_cores: bool = _setting(
        True, "Pin a running task to its granted cores: its whole process (prefork, solo) or its thread (threads)."
    )
    thread_hints: bool = _setting(
        True,
        "Have the libraries of a running task start as many threads as it was granted cores "
        "([how](../howto/isolation.md#threads)). Prefork and solo pools.",
    )
    gpu_memory_caps: bool = _setting(
        True,
        "Cap what PyTorch, CuPy, JAX and TensorFlow allocate at the task's GPU memory, less 512 MB for the context "
        "([how](../howto/isolation.md#gpu-memory)). Prefork and solo pools.",
    )
    cuda_in_parent: str = _setting(
        "refuse",
        "What a worker does whose main process has initialised CUDA before its children are forked, so that they "
        "cannot use the GPU: `refuse` to start, or `warn`.",
    )
    oom_retries: int = _setting(
        2,
        "Times that a task which ran out of GPU memory is granted again with a larger claim, before it fails with that "
        "error. A task's attribute `allocator_oom_retries` overrides it. 0: never.",
    )
    oom_growth: float = _setting(
        1.5,
        "By what the GPU memory of such a task is multiplied each time: more than 1. It asks for the largest "
        "device's at most.",
    )
    # --- launcher (`celery allocator workers`)
    worker_concurrency: int = _setting(2, "Slots of each worker that the launcher starts per device.")
    worker_cpu_concurrency: int | None = _setting(
        None, "Slots of the CPU worker that the launcher starts. Unset: the number of cores this host offers."
    )
    worker_pool: str = _setting("prefork", "Celery pool of the workers that the launcher starts.")

    def __post_init__(self) -> None:
        self._check_strategies()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{_names(name)} is {getattr(self, name)!r}: it must be one of {', '.join(allowed)}"
                )
        for name in ("lease_s", "tick_s", "start_deadline_s", "ttl_s", "heartbeat_s", "watch_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 10**9:
                raise SettingsError(f"{_names(name)} is {value!r}: it must be more than 0 seconds")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{_names(name)} is {value!r}: it must be at least 1")
        for name, (below, rule) in _FROM_ZERO.items():
            if not 0 <= getattr(self, name) < below:
                raise SettingsError(f"{_names(name)} is {getattr(self, name)!r}: it must {rule}")
        if not 1 < self.oom_growth <= 100:
            raise SettingsError(f"{_names('oom_growth')} is {self.oom_growth!r}: it must be more than 1, 100 at most")
        if not 0 < self.runtime_decay <= 1:
            raise SettingsError(f"{_names('runtime_decay')} is {self.runtime_decay!r}: it must be in (0, 1]")
        self._check_names()

    def _check_names(self) -> None:
        if not self.pool or not all(c.isalnum() or c in "_-." for c in self.pool):
            raise SettingsError(f"{_names('pool')} is {self.pool!r}: letters, digits, '_', '-' and '.' only")
        if not all(isinstance(text, str) and text for pair in self.labels.items() for text in pair):
            raise SettingsError(f"{_names('labels')} is {dict(self.labels)!r}: names and values must be texts")

    def _check_strategies(self) -> None:
        for name, where in self.strategies.items():
            if not isinstance(name, str) or not _STRATEGY_NAME.fullmatch(name):
                rule = f"the name {name!r} must be a small letter, then small letters, digits and '_', 32 at most"
            elif name in STRATEGIES:
                rule = f"{name!r} is a strategy of the package, so yours needs another name"
            elif not isinstance(where, str) or not where:
                rule = f"the file of {name!r} must be a path, or package.module:file.lua"
            else:
                continue
            raise SettingsError(f"{_names('strategies')} is {dict(self.strategies)!r}: {rule}")
        known = (*STRATEGIES, *self.strategies)
        if self.strategy not in known:
            raise SettingsError(f"{_names('strategy')} is {self.strategy!r}: it must be one of {', '.join(known)}")

    @property
    def heartbeat_interval_s(self) -> float:
        """Seconds between heartbeats: as set, else a third of the lease."""
        return self.heartbeat_s if self.heartbeat_s is not None else self.lease_s / 3

    @classmethod
    def load(
        cls,
        conf: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Settings:
        """Resolve the settings: ``overrides``, then the environment, then ``conf`` (an ``app.conf``), then defaults.

        Raises :class:`SettingsError` naming the setting and its value when one has the wrong type.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for spec in fields(cls):
            name = spec.name
            if name in overrides and overrides[name] is not None:
                values[name] = overrides[name]
            elif environ.get(env_name(name), "") != "":
                values[name] = _parse(name, environ[env_name(name)])
            elif conf is not None and (found := _from_conf(conf, name)) is not None:
                values[name] = _checked(name, found)
        unknown = set(overrides) - {spec.name for spec in fields(cls)}
        if unknown:
            raise SettingsError(f"no such setting: {', '.join(sorted(unknown))}")
        return cls(**values)


_AT_LEAST_ONE = (
    "cpu_cores",
    "ram_mb",
    "auto_gpu_memory_mb",
    "auto_ram_mb",
    "worker_concurrency",
    "worker_cpu_concurrency",
    "events_maxlen",
    "max_message_bytes",
    "max_waiting",
    "journal_maxlen",
    "affinity_keeps",
)
#: From 0 to below what, and the rule in words.
_FROM_ZERO: dict[str, tuple[float, str]] = {
    "reserve_cpu_cores": (math.inf, "not be negative"),
    "reserve_ram_mb": (math.inf, "not be negative"),
    "gpu_margin_mb": (math.inf, "not be negative"),
    "max_losses": (math.inf, "not be negative"),
    "oom_retries": (math.inf, "not be negative"),
    "max_bypass": (math.inf, "not be negative"),
    "max_bypass_s": (10**9, "be 0 or more seconds"),
    "recommend_margin": (10.001, "be 0 to 10: 0.15 adds 15 %"),
    "affinity_s": (10**9, "be 0 or more seconds"),
    "affinity_wait_s": (10**9, "be 0 or more seconds"),
    "age_weight": (1000.001, "be 0 to 1000 points per minute"),
    "history_days": (math.inf, "not be negative"),
    "measure_s": (10**9, "be 0 or more seconds"),
    "health_s": (10**9, "be 0 or more seconds"),
    "overuse_tolerance": (math.inf, "not be negative"),
    "overuse_floor_mb": (math.inf, "not be negative"),
    "metrics_port": (65536, "be 0 to 65535"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "never_fits": ("raise", "wait"),
    "backfill": ("easy", "greedy", "none"),
    "cuda_in_parent": ("refuse", "warn"),
    "on_overuse": ("log", "warn", "kill"),
}


@dataclass(frozen=True)
class SettingDoc:
    """One row of the documentation's table of settings."""

    name: str
    env: str
    type: str
    default: Any
    doc: str


def table() -> list[SettingDoc]:
    """Every setting with its names, type, default and meaning (the documentation is rendered from this)."""
    rows = []
    for spec in fields(Settings):
        default = spec.default if spec.default is not MISSING else {}
        rows.append(
            SettingDoc(PREFIX + spec.name, env_name(spec.name), str(spec.type), default, str(spec.metadata["doc"]))
        )
    return rows


def env_name(name: str) -> str:
    """The environment variable of a setting: ``devices`` → ``ALLOCATOR_DEVICES``."""
    return (PREFIX + name).upper()


def _names(name: str) -> str:
    return f"{PREFIX}{name} ({env_name(name)})"


def _from_conf(conf: Mapping[str, Any], name: str) -> Any:
    for key in (PREFIX + name, env_name(name)):
        value = conf.get(key)
        if value is not None:
            return value
    return None


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("use true or false")


_PARSERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": _boolean,
    "Mapping": json.loads,
}
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "Mapping": "a mapping",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Mapping": (Mapping,),
}


def _kind(name: str) -> str:
    annotation = next(str(spec.type) for spec in fields(Settings) if spec.name == name)
    return annotation.split(" | ")[0].split("[")[0]


def _parse(name: str, text: str) -> Any:
    try:
        value = _PARSERS[_kind(name)](text)
    except ValueError as error:
        raise SettingsError(f"{env_name(name)}={text!r} is not {_WORDS[_kind(name)]}: {error}") from None
    return _checked(name, value)


def _checked(name: str, value: Any) -> Any:
    kind = _kind(name)
    wrong = not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool")
    if wrong:
        raise SettingsError(f"{_names(name)} is {value!r}: it must be {_WORDS[kind]}")
    return value
