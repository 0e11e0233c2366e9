"""Which tests run on one of several processes together, and in what order they are handed out.

A file's tests stay together, as they share servers and workers, but:

- End-to-end tests that run on a shared cluster are together by broker, of whatever file: so that cluster and broker are
  started once, and not once for each file.
- So are tests that may kill RabbitMQ: it takes seconds to start.
- Every page of the documentation brings its own servers: each is a portion of its own.

What takes longest is handed out first, so that no process is left with it alone at the end.
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

_RABBITMQ = "RabbitMQ"
#: Files whose tests share the session's RabbitMQ.
_ON_RABBITMQ = (
    "tests/acceptance/test_process_nodes.py",
    "tests/acceptance/test_servers.py",
    "tests/configs/test_running.py",
)
#: Seconds, roughly, of portions that take long; of all others, ``_EACH`` for each test.
LONG = {
    "tests/fault/test_faults.py": 250,
    "tests/acceptance[rabbitmq]": 200,
    "tests/acceptance[redis]": 150,
    "tests/docs/test_snippets.py[docs/howto/operators.md]": 120,
    "tests/security/test_acl.py": 95,
    _RABBITMQ: 105,
    "tests/acceptance/test_demo.py": 65,
    "tests/property/test_ledger_machine.py": 65,
    "tests/acceptance/test_examples.py": 50,
    "tests/docs/test_snippets.py[docs/howto/from-gpu-queues.md]": 50,
    "tests/history/test_worker.py": 45,
    "tests/docs/test_snippets.py[docs/howto/gpu-box.md]": 45,
    "tests/unit/test_demo.py": 40,
    "tests/docs/test_snippets.py[docs/howto/from-slurm.md]": 35,
    "tests/docs/test_snippets.py[docs/howto/remote-control.md]": 32,
    "tests/docs/test_snippets.py[docs/get-started.md]": 32,
    "tests/docs/test_snippets.py[docs/howto/rabbitmq.md]": 32,
    "tests/contract/test_resource_allocator_processes.py": 30,
    "tests/property/test_undo.py": 27,
    "tests/property/test_repair.py": 26,
    "tests/fuzz/test_tool.py": 25,
    "tests/property/test_crash_machine.py": 24,
    "tests/browser/test_flower.py": 20,
    "tests/history/test_chaos.py": 20,
    "tests/security/test_sentinel.py": 18,
    "tests/metrics/test_dashboard.py": 15,
    "tests/metrics/test_worker.py": 15,
}
_EACH = 0.25
_PAGE = re.compile(r"(tests/docs/test_snippets\.py)::test_page(\[.+\])")
_ON_CLUSTER = re.compile(r"(tests/acceptance)/.*[\[-](redis|rabbitmq)[\]-]")


def portion(test: str) -> str:
    """The name of what a test (its node id) runs together with."""
    if found := _PAGE.match(test):
        return found[1] + found[2]
    if found := _ON_CLUSTER.match(test):
        return f"{found[1]}[{found[2]}]"
    file = test.partition("::")[0]
    return _RABBITMQ if file in _ON_RABBITMQ else file


class LongestFirst(LoadScopeScheduling):
    """Portions instead of files, the longest first."""

    def _split_scope(self, nodeid: str) -> str:
        return portion(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        longest = max(self.workqueue, key=self._seconds)
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def _seconds(self, name: str) -> float:
        return LONG.get(name, len(self.workqueue[name]) * _EACH)
