"""Commands about dates and tenants, in this process on a real server: queue, plan, accuracy, why, tenant."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.bin.base import CLIContext

from celery_allocator import install
from celery_allocator.allocating import Session
from celery_allocator.model import Quota, Requirements, State
from celery_allocator.operations import Actor, Operator, ResetTenant, SetTenant, digest
from tests.support import by_hand
from tests.support.command_line import Run, allocate, submit_task
from tests.support.ledger_pool import LedgerPool
from tests.support.redis_server import RedisServer


@pytest.fixture
def worker(session: Session) -> str:
    """A worker of the host's CPU, with two slots."""
    session.ledger.register_worker("w@host1", "i1", by_hand.NODE, "cpu", slots=2, queue="q", lease_s=600)
    return "w@host1"


# --- plan


def test_a_plan_says_where_at_once_and_changes_nothing(run: Run, session: Session, worker: str) -> None:
    before = digest(session.ledger)
    assert run("plan", "--cpu-cores", "2").endswith(f"would start at once, on {by_hand.NODE}/cpu.\n")
    told = run("plan", "--cpu-cores", "2", "--tenant", "blue", "--name", "proj.work", "--json")
    assert (told["starts_now"], told["device"], told["position"]) == (True, f"{by_hand.NODE}/cpu", None)
    assert told["requirements"]["tenant"] == "blue"
    assert digest(session.ledger) == before
    assert session.ledger.journal() == ()


def test_a_plan_says_when_behind_what_waits(run: Run, session: Session, worker: str) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}", "--ttl=600")
    submit_task(session, "first")
    submit_task(session, "second")
    ends = session.ledger.named("holder")[0].expires_at
    told = run("plan", "--cpu-cores", "1", "--json")
    assert (told["starts_now"], told["position"]) == (False, 3)
    assert told["estimated_start_at"] <= told["estimated_start_p90_at"]
    assert ends is not None and abs(told["estimated_start_at"] - ends) < 60
    assert run("plan", "--cpu-cores", "1", "--priority", "9", "--json")["position"] == 1
    text = run("plan", "--cpu-cores", "1").splitlines()
    assert text[0] == "A task that asks for 1 core would wait, as number 3 in line."
    assert text[1].startswith("Estimated start: ") and text[2].startswith("That is a wait of ")


def test_a_plan_has_no_date_where_no_worker_would_take_it(run: Run) -> None:
    told = run("plan", "--cpu-cores", "1", "--json")
    assert (told["starts_now"], told["position"], told["estimated_start_at"]) == (False, 1, None)
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}", "--ttl=600")
    allocate(run, "waiting")
    assert run("plan", "--cpu-cores", "1", "--json")["estimated_start_at"] is None
    assert run("plan", "--cpu-cores", "1", "--by-hand", "--json")["estimated_start_at"] is not None
    assert "Estimated start: not known yet." in run("plan", "--cpu-cores", "1")


def test_a_plan_of_what_can_never_be_is_refused(run: Run, worker: str) -> None:
    assert "can never be met" in run("plan", "--cpu-cores", "999", code=1)
    assert run("plan", "--cpu-cores", "999", "--json", code=1)["error"]["code"] == "never_fits"
    assert "unknown strategy" in run("plan", "--cpu-cores", "1", "--strategy", "luck", code=2)
    assert "must be at least 0" in run("plan", "--gpu-memory-mb", "-1", code=2)
    run("tenant", "set", "blue", "--cpu-cores", "2")
    assert "may hold 2" in run("plan", "--cpu-cores", "3", "--tenant", "blue", code=1)


def test_a_plan_by_hand_needs_no_worker_and_one_with_an_app_asks_as_its_task_does(
    run: Run, redis_server: RedisServer, pool: str
) -> None:
    assert f"at once, on {by_hand.NODE}/gpu_" in run("plan", "--gpu-memory", "1000", "--by-hand")
    app = Celery("proj", broker=redis_server.url, set_as_current=False)
    install(app)
    app.conf.update(allocator_pool=pool)
    needs = {"cpu_cores": 3, "ram_mb": 64, "tenant": "blue"}

    @app.task(name="proj.train", shared=False, resources=needs, strategy="spread")
    def train() -> None:
        """Never runs."""

    obj = CLIContext(app=app, no_color=True, workdir=None)
    told = run("plan", "--name", "proj.train", "--ram", "32", "--json", obj=obj)
    assert told["requirements"] == {"gpu_memory_mb": 0, "cpu_cores": 3, "ram_mb": 32, "priority": 0, "tenant": "blue"}
    assert told["strategy"] == "spread"
    assert run("plan", "--name", "proj.unheard", "--json", obj=obj)["requirements"]["cpu_cores"] == 1
    app.close()


# --- accuracy


def test_accuracy_is_of_what_had_a_date(run: Run, cluster: LedgerPool, session: Session, worker: str) -> None:
    assert run("accuracy") == "No estimate has been scored yet: none was told for what has started.\n"
    assert run("accuracy", "--json")["scored"] == 0
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}", "--ttl=600")
    name = submit_task(session, "task")
    assert session.ledger.get(name).estimated_start_p90_at is not None
    run("release", session.ledger.named("holder")[0].allocation_id)
    granted = session.ledger.get(name)
    session.ledger.start(name, granted.token, worker, "i1", "d", repeatable=False)
    told = run("accuracy", "--json")
    assert (told["scored"], told["p90_coverage"]) == (1, 1.0)
    assert 500 < told["median_error_s"] < 660, "the holder was released ten minutes before its TTL"
    text = run("accuracy")
    assert "starts scored" in text and "100.0 % (aim: 90 %)" in text
    assert "rule of thumb" not in text, "no run time was known"


# --- why


def test_why_tells_what_is_kept_for_whom(run: Run, session: Session) -> None:
    session.ledger.register_worker("w0", "i1", by_hand.NODE, "gpu_0", slots=4, queue="q0", lease_s=600)
    session.ledger.register_worker("w1", "i1", by_hand.NODE, "gpu_1", slots=4, queue="q1", lease_s=600)

    def task(name: str, gpu: int, runtime: int) -> str:
        needs = Requirements(gpu, 1, expected_runtime_s=runtime)
        return session.ledger.submit(name, f"task-{name}", "proj.work", needs, message=b",}").allocation.allocation_id

    for name in ("one", "two"):
        held = session.ledger.get(task(name, 16_000, 3600))
        session.ledger.start(name, held.token, f"w{(held.device_id or '')[-1]}", "i1", name, repeatable=False)
    task("large", 24_000, 600)
    assert session.ledger.get(task("long", 8_000, 9_000)).state is State.GRANTED, "beside one, the other is kept"
    task("longer", 8_000, 9_001)
    (told,) = run("why", "large", "--json")
    kept = told["reservation"]
    assert (kept["allocation_id"], kept["is_its_own"]) == ("large", True)
    assert kept["device"].startswith(f"{by_hand.NODE}/gpu_") and kept["starts_at"] is not None
    assert f"{kept['device']} is kept for it: by the run times of what runs there it fits at " in run("why", "large")
    assert f"{kept['device']} is kept for large: by the run times of what runs there it fits at " in run(
        "why", "longer"
    )


# --- tenants


def test_tenants_are_listed_given_a_quota_and_reset(run: Run, session: Session) -> None:
    assert run("tenant") == "No tenant holds anything, waits, or has a quota.\n"
    allocate(run, "a", "--cpu-cores=4", "--tenant=blue")
    assert run("tenant", "set", "blue", "--weight", "2") == "tenant blue has weight 2 and no cap\n"
    text = "tenant blue has weight 2 and holds at most cpu_cores=6, tasks=9\n"
    assert run("tenant", "set", "blue", "--cpu-cores", "6", "--tasks", "9", "--reason", "new budget") == text
    (blue,) = (row for row in run("tenant", "list", "--json") if row["name"] == "blue")
    assert blue["quota"] == {"weight": 2.0, "cpu_cores": 6, "tasks": 9}
    assert (blue["cpu_cores"], blue["tasks"], blue["waiting"], blue["by"]) == (4, 1, 0, "operator")
    assert blue["share"] == pytest.approx(4 / by_hand.CORES / 2)
    line = next(line for line in run("tenant", "list").splitlines() if line.startswith("blue"))
    assert line.split() == ["blue", "2", "25.0", "%", "0", "0", "-", "4", "6", "0", "-", "1", "9", "operator"]

    assert allocate(run, "b", "--cpu-cores=3", "--tenant=blue")["queue_position"] == 1, "its cap"
    assert run("tenant", "set", "blue", "--cpu-cores", "none", "--json")["success"] is True
    assert run("show", "b", "--json")[0]["state"] == "running"
    entries = [(row["action"], row["reason"]) for row in run("journal", "--json") if "tenant" in row["action"]]
    assert entries == [("set-tenant", ""), ("set-tenant", "new budget"), ("set-tenant", "")]
    assert run("undo") == f"undone {run('journal', '--json')[0]['entry']}: tenant blue has its former quota again\n"
    assert session.ledger.tenants()[-1].quota.cpu_cores == 6
    assert run("tenant", "reset", "blue") == "tenant blue has no quota\n"
    assert "set-tenant blue 2 6 9" in " ".join(run("journal").split())


@pytest.mark.parametrize(
    ("args", "told", "code"),
    [
        (("set", "blue"), "nothing to set: give one at least of --weight, --gpu-memory", 2),
        (("set", "blue", "--weight", "0"), "must be a number from 0.001", 2),
        (("set", "blue", "--tasks", "some"), "neither a whole number nor 'none'", 2),
        (("set", "a/b", "--weight", "2"), "must not contain '/'", 2),
        (("set", "", "--tasks", "2"), "caps need a tenant's name", 2),
    ],
)
def test_what_can_be_no_quota_is_refused(run: Run, args: tuple[str, ...], told: str, code: int) -> None:
    assert told in run("tenant", *args, code=code)


def test_quotas_are_undone_and_redone(cluster: LedgerPool) -> None:
    cluster.node()
    chief = Operator(cluster.ledger, Actor("ada"), lambda _: None)
    cluster.ledger.load_tenants({"red": Quota(3.0)})
    states = [digest(cluster.ledger)]
    for action in (
        SetTenant("blue", 2.0, tasks=3),
        SetTenant.changed(cluster.ledger, "red", cpu_cores=4),
        SetTenant("blue", 0.5),
        ResetTenant("blue"),
    ):
        chief.run(action)
        states.append(digest(cluster.ledger))
    assert len(set(states)) == 5
    (red,) = (state for state in cluster.ledger.tenants() if state.name == "red")
    assert (red.quota, red.by) == (Quota(3.0, cpu_cores=4), "operator"), "what is not named stays"
    for state in reversed(states[:-1]):
        chief.undo()
        assert digest(cluster.ledger) == state
    for state in states[1:]:
        chief.redo()
        assert digest(cluster.ledger) == state
