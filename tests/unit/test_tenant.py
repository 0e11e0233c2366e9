"""Quotas as the settings say them."""

from __future__ import annotations

from typing import Any

import pytest

from celery_allocator.errors import SettingsError
from celery_allocator.model import Quota
from celery_allocator.model.tenant import quotas


def test_quotas_are_read() -> None:
    said = {"vision": {"weight": 2, "gpu_memory_mb": 81920, "tasks": None}, "": {"weight": 0.5}}
    assert quotas(said) == {"vision": Quota(2, gpu_memory_mb=81920), "": Quota(0.5)}
    assert quotas({}) == {}


@pytest.mark.parametrize(
    ("tenants", "says"),
    [
        ({"vision": 2}, "vision.*must be a mapping"),
        ({"vision": {"weight": 0}}, "vision.*weight.*0.*from 0.001"),
        ({"vision": {"weight": "heavy"}}, "vision.*weight.*heavy.*must be a number"),
        ({"vision": {"gpu": 1}}, "vision.*gpu.*known are weight"),
        ({"vision": {"tasks": -1}}, "vision.*tasks.*-1.*whole number"),
        ({"vision": {"cpu_cores": 1.5}}, "vision.*cpu_cores.*1.5.*whole number"),
        ({"a,b": {"weight": 2}}, "a,b.*must not contain"),
        ({"": {"tasks": 3}}, "caps need a tenant's name"),
        ({3: {"weight": 2}}, "3.*must be text"),
    ],
)
def test_what_can_be_no_quota_names_the_setting_and_the_tenant(tenants: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=rf"allocator_tenants \(ALLOCATOR_TENANTS\) of tenant .*{says}"):
        quotas(tenants)
