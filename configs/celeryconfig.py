"""A Celery configuration with every setting of the allocator, each at its default.

    app.config_from_object("celeryconfig")        # or copy what you need into your own

Each ``allocator_x`` is also read from the environment as ``ALLOCATOR_X``, which wins, so that one host of many can
differ. With Django's usual namespace the names are ``CELERY_ALLOCATOR_X``. Times are in seconds, sizes in MB (2**20
bytes). A setting of None is the same as one left out.
"""

from __future__ import annotations

from typing import Any

# --- Celery

broker_url = "redis://localhost:6379/0"
result_backend = "redis://localhost:6379/1"
broker_connection_retry_on_startup = True
# A result that cannot be stored at once, since its backend restarts, is stored later. Else Celery fails the task.
result_backend_always_retry = True

# A task's placement needs neither of these, but they suit tasks that hold a GPU. A task with acks_late is granted again
# elsewhere when its worker is lost; one without it fails, visibly.
task_acks_late = False
# Hand the memory that a GPU library keeps in its process back after every task. Costs a start of the process per task.
worker_max_tasks_per_child: int | None = None

# --- The ledger

# Redis or Valkey URL of the ledger: redis://, rediss:// (TLS), unix://, redis+sentinel://, redis+cluster://. None: the
# broker or the result backend if that is one of these, else the embedded server.
allocator_backend_url: str | None = None
# One pool is one ledger. Give staging and production, or two clusters on one Redis, a pool each.
allocator_pool = "default"
# Folder of the embedded server. None: ~/.local/state/celery-allocator
allocator_embedded_dir: str | None = None
# Entries that the ledger's event stream keeps, at least.
allocator_events_maxlen = 100_000

# --- The history

# Its database: "postgresql://…" or "sqlite:///…". Keep a password in PGPASSFILE, or set this in the environment. None:
# an SQLite file in the embedded server's folder.
allocator_history_backend_url: str | None = None
# Days that it keeps what has ended. 0: for good.
allocator_history_days = 90
# Record it in a thread of each worker: one at a time does, the others stand by. Without, run celery-allocator recorder.
allocator_recorder = False

# --- This host: better set as environment variables, where hosts differ

# Name of this host in the ledger. None: its host name.
allocator_node: str | None = None
# "auto" (what NVML finds), "none", indexes or UUIDs ("0,1"), or simulated ones ("sim:2x24576": two of 24576 MB).
allocator_devices = "auto"
# Cores this host offers. None: those of the affinity mask and the control group.
allocator_cpu_cores: int | None = None
# RAM this host offers, in MB. None: the machine's or the control group's.
allocator_ram_mb: int | None = None
# Kept back from tasks, for the system and the workers' main processes.
allocator_reserve_cpu_cores = 0
allocator_reserve_ram_mb = 0
# Labels of this host, for tasks that ask for such a node: {"zone": "a"}.
allocator_labels: dict[str, str] = {}

# --- Placement

# Strategy of tasks that name none: "first_fit", "best_fit", "priority", "spread", "fgd", or one of your own.
allocator_strategy = "best_fit"
# Your own strategies: name → Lua file.
allocator_strategies = {}
# Requirements that no known device could ever hold: "raise" at apply_async, or "wait" for a larger device.
allocator_never_fits = "raise"
# Requirements of every task that declares none, such as {"cpu_cores": 1}. None: such tasks are plain Celery tasks.
allocator_default_resources: dict[str, int] | None = None
# Task types of allocate_resources(), beside or in place of ml_inference, rendering and processing: a name, such as
# "training", for requirements, such as {"gpu_memory_mb": 16384, "cpu_cores": 4, "ram_mb": 32768}.
allocator_task_types: dict[str, dict[str, Any]] = {}
# Who may pass the first in line that does not fit: "easy" (who does not delay it; a device is kept for it), "greedy"
# (who fits) or "none" (nobody). This and the next three: the same in all programs of a pool.
allocator_backfill = "easy"
# Times, and seconds, that it may be passed where run times are not known, before a device is emptied for it.
allocator_max_bypass = 100
allocator_max_bypass_s = 300.0
# Points of priority that a waiting task earns per minute, up to 1000. 0: the larger priority goes first for good.
allocator_age_weight = 0.0
# Affinity: seconds for which a GPU counts as one where a word is loaded (0: not looked at); seconds for which a task
# waits for such a GPU though another has room, at most; words that stay loaded per slot. The same in all programs.
allocator_affinity_s = 3600.0
allocator_affinity_wait_s = 2.0
allocator_affinity_keeps = 1
# Tenants that are not like the others: a name, such as "vision", for a weight and caps on what it may hold at a time,
# such as {"weight": 2, "gpu_memory_mb": 81920, "cpu_cores": 32, "ram_mb": 262144, "tasks": 40}.
allocator_tenants: dict[str, dict[str, float]] = {}
# Weight of the newest run time in what is learned about a task name: 0.02 looks back on some 50 runs.
allocator_runtime_decay = 0.02
# Share that `celery-allocator recommend` and gpu_memory_mb="auto" add to the most that a task was seen to use.
allocator_recommend_margin = 0.15
# What a task that says "auto" gets until three of its runs were measured, in MB. None: nine tenths of the smallest
# known GPU; of RAM, nine tenths of its cores' share of the smallest known node.
allocator_auto_gpu_memory_mb: int | None = None
allocator_auto_ram_mb: int | None = None

# --- Bounds

# Largest message that the ledger keeps for a task, in bytes. A larger one is refused: pass paths, not data.
allocator_max_message_bytes = 1_048_576
# Tasks that may wait in the pool. Beyond it, apply_async raises PoolFullError; retries are still taken.
allocator_max_waiting = 100_000
# Operator actions that can be undone.
allocator_journal_maxlen = 1000
# Whether workers take updates that other systems send to the stream and channel …:updates.
allocator_updates = True
# Whether workers relay every change to the stream and channel …:changes.
allocator_changes = False
# Whether workers send changes as Celery events allocator-…. None: those whose task events are on (-E).
allocator_celery_events: bool | None = None
# Circuit breakers: {} or some of failure_rate, window_s, min_samples, open_s, backoff, longest_open_s, probes.
allocator_breaker = None

# --- Leases and upkeep

# Seconds a worker's claim outlives its last heartbeat: how long a dead host's GPUs stay taken.
allocator_lease_s = 15.0
# Seconds between heartbeats. None: a third of the lease.
allocator_heartbeat_s: float | None = None
# Seconds between maintenance ticks.
allocator_tick_s = 1.0
# Seconds after which a grant that has not started is published again.
allocator_start_deadline_s = 10.0
# Times a task with acks_late is granted again after losing its process or worker, before it fails.
allocator_max_losses = 3
# Life of an allocation made by hand; renew() extends it.
allocator_ttl_s = 3600.0

# --- Measuring

# Seconds between looks at what a worker's device, node and tasks really use; 0: never.
allocator_measure_s = 5.0

# Withhold from tasks what is in use and no claim accounts for.
allocator_reconcile = True

# Memory of each GPU that is kept back from tasks, in MB.
allocator_gpu_margin_mb = 0

# Seconds between looks at the health of a worker's GPU: one that is lost or has failed is drained; 0: never.
allocator_health_s = 2.0
# --- What a task uses beyond its promise

# "log" it, "warn" (also an event in the ledger), or "kill" its process: it then fails with ResourceOveruse.
allocator_on_overuse = "warn"
# Share of the promise, and MB, by which a task may exceed it before that counts: the larger one.
allocator_overuse_tolerance = 0.1
allocator_overuse_floor_mb = 128
# Seconds between looks at running tasks, for "kill".
allocator_watch_s = 1.0

# --- Tracing

# Spans of the way of a task, where opentelemetry-api is installed and an SDK configured.
allocator_tracing = True

# --- Metrics

# Port at which a worker's main process serves metrics for Prometheus (0: none), and its address. Or run
# `celery-allocator exporter` as a process of its own.
allocator_metrics_port = 0
allocator_metrics_host = "127.0.0.1"

# --- Running tasks

# Pin a task's process to its granted cores while it runs (pools prefork and solo).
allocator_pin_cores = True

# Let its libraries start as many threads as it was granted cores (pools prefork and solo).
allocator_thread_hints = True

# Cap what its framework allocates on the GPU at what it was granted, less 512 MB for the context (prefork and solo).
allocator_gpu_memory_caps = True

# What a worker does whose main process has initialised CUDA before it forks: "refuse" to start, or "warn".
allocator_cuda_in_parent = "refuse"

# Times that a task which ran out of GPU memory is granted again, with so many times as much each time. 0: never.
allocator_oom_retries = 2
allocator_oom_growth = 1.5

# --- Agents (celery-allocator mcp --http)

# File of the tokens with which agents call (configs/mcp-tokens.toml is an example).
allocator_mcp_tokens: str | None = None

# --- The launcher (celery -A proj allocator workers)

# Slots of each GPU worker: how many tasks may share a GPU at most. Its memory decides how many do.
allocator_worker_concurrency = 2
# Slots of the CPU worker. None: as many as this host offers cores.
allocator_worker_cpu_concurrency: int | None = None
# Celery pool of the workers. prefork keeps a crashing task from its neighbours.
allocator_worker_pool = "prefork"
