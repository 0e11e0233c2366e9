"""URLs of the ledger: what they come to, and what is said of those that cannot be read. Nothing connects here."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from redis.exceptions import NoScriptError, ResponseError

from celery_allocator import install
from celery_allocator.errors import LedgerError, SettingsError
from celery_allocator.ledger import Options, resolve_url
from celery_allocator.ledger.announcer import Announcer
from celery_allocator.ledger.servers import SCHEMES, describe, is_cluster, open_client
from celery_allocator.plugin.session import session
from celery_allocator.settings import Settings

CELERYS = {"master_name": "gpus", "sentinel_kwargs": {"password": "s3cret"}}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://u:s3cret@h:1/2", "redis://h:1/2"),
        ("rediss://:s3cret@h/2?ssl_cert_reqs=none", "rediss://h:6379/2"),
        ("unix:///run/s", "unix:///run/s"),
        ("unix://:s3cret@/run/s?db=3", "unix:///run/s"),
        ("redis+socket:///run/s?virtual_host=3", "unix:///run/s"),
        ("redis+sentinel://a,b:26380/gpus", "redis+sentinel://a:26379,b:26380/gpus/0"),
        ("redis+sentinel://u:s3cret@a/gpus/4?sentinel_password=s3cret", "redis+sentinel://a:26379/gpus/4"),
        ("rediss+sentinel://[::1]:7,[::2]/gpus/", "rediss+sentinel://[::1]:7,[::2]:26379/gpus/0"),
        ("sentinel://:s3cret@a:1/5;sentinel://b:2;", "redis+sentinel://a:1,b:2/gpus/5"),
        ("redis+cluster://:s3cret@a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
        ("rediss+cluster://a/0?ssl_ca_certs=/ca", "rediss+cluster://a:6379"),
    ],
)
def test_a_url_and_how_it_is_shown(url: str, shown: str) -> None:
    with open_client(url, key="{p}:", transport_options=CELERYS) as client:
        assert describe(client) == shown
        assert is_cluster(client) == ("cluster" in url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://u:s3cret@h", "the scheme 'amqp'"),
        ("s3cret", "the scheme ''"),
        ("redis://:s3/cret@h:1", "a port"),
        ("redis://:s3cret@h:port", "a port"),
        ("redis://:s3cret@h/0?colour=blue", "not known .*'colour'"),
        ("redis://:s3cret@h/0?health_check_interval=soon", "a port or an option"),
        ("rediss://:s3cret@h/0?ssl_cert_reqs=perhaps", "a value that cannot be used"),
        ("redis+sentinel://:s3cret@a:26379", "no name of a master"),
        ("redis+sentinel://:s3cret@a:26379/gpus/first", "a database that is not a number"),
        ("redis+sentinel://:s3cret@a:b:c/gpus", "a host or port"),
        ("redis+sentinel://:s3cret@a:99999/gpus", "a host or port"),
        ("redis+sentinel://:s3cret@/gpus", "a host or port"),
        ("redis+sentinel://a/gpus?sentinel_pasword=s3cret", "sentinel_"),
        ("redis+cluster://:s3cret@a,,b", "a host or port"),
        ("redis+cluster://:s3cret@a/2", "only one"),
        ("redis+cluster://:s3cret@a?nonsense=1", "not known .*'nonsense'"),
    ],
)
def test_a_url_that_cannot_be_read_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        open_client(url, key="{p}:")
    seen = raised.value
    while seen is not None:
        assert "s3cret" not in str(seen) and "cret@" not in str(seen)
        seen = seen.__cause__


def test_options_of_the_url_win_over_ours() -> None:
    for url in ("redis://h", "redis+sentinel://h/gpus", "redis+cluster://h"):
        with open_client(f"{url}?socket_timeout=2.5", key="{p}:") as client:
            kwargs = client.connection_pool.connection_kwargs
            assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (2.5, 5.0)


def test_the_same_certificates_serve_for_sentinels() -> None:
    url = "rediss+sentinel://u:p@a/gpus?ssl_ca_certs=/ca&sentinel_username=s&sentinel_password=q"
    for given, secure in ((url, True), (f"{url}&sentinel_ssl=false", False)):
        with open_client(given) as client:
            (sentinel,) = client.connection_pool.sentinel_manager.sentinels
            asked = sentinel.connection_pool.connection_kwargs
            assert (asked["username"], asked["password"]) == ("s", "q")
            assert (asked.get("ssl_ca_certs") == "/ca") == secure
            assert client.connection_pool.connection_kwargs["ssl_ca_certs"] == "/ca"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_broker_that_could_be_the_ledger_is(scheme: str) -> None:
    assert resolve_url(Settings(), f"{scheme}://h") == f"{scheme}://h"
    assert resolve_url(Settings(backend_url="redis://mine"), f"{scheme}://h") == "redis://mine"
    assert resolve_url(Settings(), "amqp://h", f"{scheme}://h") == f"{scheme}://h"
    assert resolve_url(Settings(), "amqp://h", "rpc://") is None


@pytest.mark.parametrize("broker", ["sentinel://a:1/3;sentinel://b:2", ["sentinel://a:1/3", "sentinel://b:2"]])
def test_celerys_sentinels_are_one_broker(broker: Any) -> None:
    app = Celery("t", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = CELERYS
    install(app)
    assert session(app).ledger.url == "redis+sentinel://a:1,b:2/gpus/3"


def test_several_brokers_are_not() -> None:
    app = Celery("t", broker="redis://a:1/0;redis://b:2/0", set_as_current=False)
    install(app)
    assert session(app).ledger.url == "redis://a:1/0"


def test_options_of_the_result_backend_belong_to_it() -> None:
    app = Celery("t", broker="amqp://h", backend="sentinel://a:1", set_as_current=False)
    app.conf.update(broker_transport_options={"master_name": "other"}, result_backend_transport_options=CELERYS)
    install(app)
    assert session(app).ledger.url == "redis+sentinel://a:1/gpus/0"


class Answers:
    """A connection to a server that answers every question with the same errors in turn."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.closed = False

    def send_command(self, *args: object) -> None:
        """Nothing is sent."""

    def read_response(self) -> object:
        raise self._errors.pop(0)

    def disconnect(self) -> None:
        self.closed = True


def test_an_older_server_is_told() -> None:
    said = "Error compiling script (new function): user_script:1: unexpected symbol near '#' "
    connection = Answers(NoScriptError("no such script"), ResponseError(said))
    with pytest.raises(LedgerError, match=r"older than Redis 7\.0 or Valkey 7\.2"):
        Announcer("p", Options())(connection)
    assert connection.closed
