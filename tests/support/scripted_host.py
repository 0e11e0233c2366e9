"""A node with one scripted GPU: real workers measure it through the real ``pynvml``, and a test says what they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_allocator.overview import DeviceView, read_overview
from tests.support.cluster import Cluster, worker_spec
from tests.support.fake_nvml import FakeGpu, FakeNvml

UUID, GPU = "GPU-aaaa", "host1/gpu_0"


class ScriptedHost:
    """``host1`` with a GPU of ``memory_mb`` that ``processes`` use (id and MB, ``None``: the driver does not tell).

    Its workers measure, and tell the ledger, every tenth of a second. ``settings``: what else is in their environment.
    """

    def __init__(
        self,
        new_cluster: Callable[..., Cluster],
        nvml: FakeNvml,
        memory_mb: int,
        *processes: tuple[int, int | None],
        **settings: str,
    ) -> None:
        self._nvml, self._memory_mb = nvml, memory_mb
        self._environ = nvml.environ([FakeGpu(UUID, memory_mb=memory_mb, processes=processes)])
        library = {key: self._environ[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")}
        often = {"ALLOCATOR_MEASURE_S": "0.1", "ALLOCATOR_HEARTBEAT_S": "0.1"}
        place = {"ALLOCATOR_NODE": "host1", "ALLOCATOR_DEVICES": "auto"}
        self.cluster = new_cluster(host={**place, **library, **often, **settings})

    def start(self) -> None:
        """Its worker, of two slots."""
        self.cluster.start(worker_spec("gpu0", "0", "--concurrency", "2"))

    def becomes(self, *processes: tuple[int, int | None], **options: Any) -> None:
        """What the driver tells from now on; ``options``: of the :class:`FakeGpu`."""
        self._nvml.change(self._environ, [FakeGpu(UUID, memory_mb=self._memory_mb, processes=processes, **options)])

    @property
    def device(self) -> DeviceView:
        """The GPU as people see it."""
        return next(one for one in read_overview(self.cluster.ledger).devices if one.device.is_gpu)
