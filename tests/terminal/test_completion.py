"""Completion: in a real bash, and for zsh and fish by the variables through which their scripts ask."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_allocator.operations import Actor, Cordon, OpenBreaker, Operator
from tests.support.processes import ROOT, clean_environment, free_port
from tests.support.pty_screen import pty_screen
from tests.support.tcp_proxy import TcpProxy
from tests.terminal.conftest import LivePool

#: Each word that is asked for is a process of its own.
pytestmark = pytest.mark.timeout(300)

BIN = Path(sys.executable).parent
#: Calls the loaded function as readline does, and prints a word per line.
_ASK = r"""
source "$SCRIPT"
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_celery_allocator_completion celery-allocator
printf '%s\n' "${COMPREPLY[@]}"
"""
#: The command for tests of what is found: it does not give up after a second, in which a busy machine finds nothing.
_PATIENT = f"""#!{sys.executable}
from celery_allocator.surfaces.cli import completing, main
completing._PATIENCE_S = 40.0
main()
"""


@pytest.fixture(scope="session", autouse=True)
def _script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What ``completion bash`` prints, in a file that saves each test from printing it again; the patient command."""
    folder = tmp_path_factory.mktemp("completion")
    path, patient = folder / "script.bash", folder / "bin" / "celery-allocator"
    command = [str(BIN / "celery-allocator"), "completion", "bash"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    patient.parent.mkdir()
    patient.write_text(_PATIENT)
    patient.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRIPT", str(path))
        patch.setenv("PATIENT", str(patient.parent))
        yield


def environment(reach: dict[str, str], *, patient: bool = True) -> dict[str, str]:
    env = clean_environment(reach)
    first = [env["PATIENT"]] if patient else []
    return {**env, "PATH": os.pathsep.join([*first, str(BIN), env["PATH"]]), "PYTHONPATH": str(ROOT)}


def bash(env: dict[str, str], line: str, cwd: Path = ROOT) -> list[str]:
    """What bash would offer at the end of ``line``."""
    words = subprocess.run(  # the parts that readline makes of it
        ["bash", "-c", r"printf '%s\n' $1", "-", line.replace(":", " : ").replace("=", " = ")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    words += [""] if line.endswith(" ") else []
    done = subprocess.run(
        ["bash", "--norc", "-c", _ASK, "-", line, *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def asked(env: dict[str, str], shell: str, line: str) -> str:
    """What the program answers to the script of ``shell``."""
    words = shlex.split(line)
    last = "" if line.endswith(" ") else words[-1]
    position = last if shell == "fish" else str(len(words) - (0 if line.endswith(" ") else 1))
    variables = {"_CELERY_ALLOCATOR_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": position}
    done = subprocess.run(
        [str(Path(env["PATIENT"]) / "celery-allocator")],
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_bash_completes_commands_options_nodes_ids_and_names(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1", gpus=(10_000,))
    running = cluster.running(9_000, 1, id="alloc_run", task_id="11-aa", task_name="shop.train")
    cluster.submit(5_000, 1, id="alloc_wait", task_id="22-bb", task_name="shop.infer")
    cluster.submit(5_000, 1, id="alloc_held", task_id="33-cc", task_name="shop.infer")
    cluster.ledger.hold("alloc_held")
    env = environment(reach)
    assert running.state.value == "running"

    assert bash(env, "celery-allocator unc") == ["uncordon"]
    assert "--reason" in bash(env, "celery-allocator cordon --re")
    assert bash(env, "celery-allocator drain h") == ["host1", "host1/gpu_0", "host1/cpu"]
    assert bash(env, "celery-allocator cordon host1/g") == ["host1/gpu_0"]
    assert bash(env, "celery-allocator hold ") == ["22-bb", "alloc_wait"]
    assert bash(env, "celery-allocator unhold ") == ["33-cc", "alloc_held"]
    assert bash(env, "celery-allocator priority ") == ["22-bb", "alloc_wait", "33-cc", "alloc_held"]
    assert "11-aa" not in bash(env, "celery-allocator cancel ")
    assert bash(env, "celery-allocator show 1") == ["11-aa"]
    assert bash(env, "celery-allocator breaker open shop.") == ["shop.train", "shop.infer"]


def test_bash_completes_what_the_operator_did(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1")
    operator = Operator(cluster.ledger, Actor("ada"))
    operator.run(OpenBreaker("shop.train"))
    operator.run(Cordon("host1"))
    operator.undo()
    env = environment(reach)

    assert bash(env, "celery-allocator undo ") == ["1"]
    assert bash(env, "celery-allocator redo ") == ["2"]
    assert bash(env, "celery-allocator breaker close ") == ["shop.train"]


def test_options_on_the_line_say_which_ledger(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("far")
    url, pool = reach["ALLOCATOR_BACKEND_URL"], reach["ALLOCATOR_POOL"]
    env = environment({})

    assert bash(env, f"celery-allocator --backend-url {url} --pool {pool} cordon far/") == ["far/gpu_0", "far/cpu"]


def test_an_app_on_the_line_says_which_ledger_and_what_it_prints_is_not_seen(
    cluster: LivePool, reach: dict[str, str], tmp_path: Path
) -> None:
    cluster.node("far")
    url, pool = reach["ALLOCATOR_BACKEND_URL"], reach["ALLOCATOR_POOL"]
    (tmp_path / "noisy.py").write_text(
        "import sys\nfrom celery import Celery\nfrom celery_allocator import install\n"
        "print('plain,hello'); print('warning', file=sys.stderr)\n"
        f"app = install(Celery('noisy', broker={url!r}))\napp.conf.allocator_pool = {pool!r}\n"
    )

    assert bash(environment({}), "celery-allocator -A noisy cordon ", tmp_path) == ["far", "far/gpu_0", "far/cpu"]
    assert bash(environment({}), "celery-allocator -A nothere cordon ", tmp_path) == []


def test_what_a_shell_would_act_on_is_not_offered(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1", gpus=(10_000,))
    cluster.running(10_000, 1)
    for name in ("$(touch pwned)", "a;b", "`id`", "two words", "*", "--help", "x'y", "fine-1.2:3", "größe"):
        cluster.submit(1_000, 1, task_id=name, id=f"alloc{len(name)}_{name.encode().hex()}", task_name=name)
    env = environment(reach)

    found = [word for word in bash(env, "celery-allocator cancel ") if not word.startswith("alloc")]
    assert found == ["fine-1.2:3", "größe"]
    assert bash(env, "celery-allocator cancel fine-1.2:") == ["3"]


def test_a_person_at_bash_presses_tab(cluster: LivePool, reach: dict[str, str], tmp_path: Path) -> None:
    cluster.node("host1")
    env = {**environment(reach), "PS1": "READY> ", "INPUTRC": os.devnull, "HISTFILE": os.devnull}
    with pty_screen(["/bin/bash", "--norc", "--noprofile", "-i"], env=env, cwd=tmp_path) as screen:
        screen.wait_for("READY>")
        screen.type("source <(celery-allocator completion bash); echo load''ed\r")
        screen.wait_for("loaded")
        screen.type("celery-allocator cordon host1/g\t--reason=disk\r")
        screen.wait_for("host1/gpu_0 is cordoned")
    (entry,) = cluster.ledger.journal()
    assert (entry.action, entry.args, entry.reason) == ("cordon", {"target": "host1/gpu_0"}, "disk")


def test_zsh_and_fish_are_told_what_each_word_is(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1", gpus=(10_000,))
    cluster.running(10_000, 1)
    cluster.submit(5_000, 1, id="alloc_wait", task_id="22-bb", task_name="shop:infer")
    env = environment(reach)

    assert asked(env, "zsh", "celery-allocator hold 2").splitlines() == ["plain", "22-bb", "shop:infer, waiting"]
    assert asked(env, "fish", "celery-allocator hold 2") == "plain,22-bb\tshop:infer, waiting\n"
    assert asked(env, "fish", "celery-allocator uncordon host1/").splitlines() == [
        "plain,host1/gpu_0\tready, simulated",
        "plain,host1/cpu\tready",
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_ask_by_that_variable(shell: str) -> None:
    script = subprocess.run(
        [str(BIN / "celery-allocator"), "completion", shell], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert f"_CELERY_ALLOCATOR_COMPLETE={shell}_complete" in script


def test_a_ledger_that_is_away_is_passed_over(reach: dict[str, str], tmp_path: Path) -> None:
    refused = environment({"ALLOCATOR_BACKEND_URL": f"redis://127.0.0.1:{free_port()}/0"}, patient=False)
    assert bash(refused, "celery-allocator cordon ") == []
    with TcpProxy(("127.0.0.1", 1)) as silent:
        silent.cut()
        hung = environment({"ALLOCATOR_BACKEND_URL": f"redis://127.0.0.1:{silent.port}/0"}, patient=False)
        assert bash(hung, "celery-allocator cordon ") == []
    assert bash(environment({"ALLOCATOR_BACKEND_URL": "nonsense"}), "celery-allocator cordon ") == []


def test_no_server_is_started_for_it(tmp_path: Path) -> None:
    env = environment({"ALLOCATOR_EMBEDDED_DIR": str(tmp_path / "embedded")})

    assert bash(env, "celery-allocator cordon ") == []
    assert not (tmp_path / "embedded").exists()
