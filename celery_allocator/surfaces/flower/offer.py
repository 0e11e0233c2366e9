"""Puts the tab into Flower: before Flower makes its application, its handlers and template loader are added to."""

from __future__ import annotations

from flower import urls
from tornado.web import StaticFileHandler, url

from celery_allocator.surfaces.flower.acting import ApiAction, PageAction
from celery_allocator.surfaces.flower.handlers import AllocatorPage, ApiData, PageData
from celery_allocator.surfaces.flower.loader import STATIC, Loader, static_version


class Versioned(StaticFileHandler):
    """The tab's files, below a folder that is named after what they hold: scripts import others of their version."""

    def parse_url_path(self, url_path: str) -> str:
        version, _, rest = url_path.partition("/")
        return str(super().parse_url_path(rest or version))

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002  # Tornado calls it by name
        kept = f"/{static_version()}/" in self.request.path
        self.set_header("Cache-Control", "public, max-age=31536000, immutable" if kept else "no-cache")


HANDLERS = (
    url(r"/allocator", AllocatorPage, name="allocator"),
    url(r"/allocator/data/([a-z_]+)", PageData, name="allocator_data"),
    url(r"/allocator/act", PageAction, name="allocator_act"),
    url(r"/allocator/static/(.*)", Versioned, {"path": str(STATIC)}, name="allocator_static"),
    url(r"/api/allocator/act", ApiAction),
    url(r"/api/allocator/([a-z_]+)", ApiData),
)


def offer() -> None:
    """Add the tab to every Flower that this process starts from now on. A second call changes nothing."""
    if isinstance(urls.settings.get("template_loader"), Loader):
        return
    urls.handlers[0:0] = HANDLERS
    urls.settings["template_loader"] = Loader(urls.settings["template_path"])
