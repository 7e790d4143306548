"""The brokers that come with Stepwell; they are registered in the project file, as those of other packages are."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from stepwell.addons.connect.brokers.interface import Broker

_CLIENTS = "Install it with `pip install 'stepwell[connect]'`, or in a clone with STEPWELL_EXTRAS=connect."

_LOGIN = ("user", "password", "ca", "cert", "key")

FILE: Final = Broker(
    "file:///PATH.jsonl", "stepwell.addons.connect.brokers.jsonl_files", has_host=False, acknowledges=False, login=()
)
REDIS: Final = Broker(
    "redis://HOST:6379/0?stream=NAME&group=NAME",
    "stepwell.addons.connect.brokers.redis_streams",
    options=("stream", "group"),
    place="stream",
    login=_LOGIN,
)
REDISS: Final = replace(REDIS, is_encrypted=True)
KAFKA: Final = Broker(
    "kafka://HOST:9092/TOPIC?group=NAME",
    "stepwell.addons.connect.brokers.kafka",
    options=("group", "member"),
    install=_CLIENTS,
    login=(*_LOGIN, "token", "sasl"),
)
KAFKAS: Final = replace(KAFKA, is_encrypted=True)
MQTT: Final = Broker(
    "mqtt://HOST/TOPIC/FILTER?client=NAME",
    "stepwell.addons.connect.brokers.mqtt",
    options=("client",),
    install=_CLIENTS,
    has_positions=False,
    has_segments=True,
    login=_LOGIN,
)
MQTTS: Final = replace(MQTT, is_encrypted=True)
NATS: Final = Broker(
    "nats://HOST/SUBJECT?durable=NAME",
    "stepwell.addons.connect.brokers.nats_jetstream",
    options=("durable",),
    install=_CLIENTS,
    has_segments=True,
    separator=".",
    login=(*_LOGIN, "token", "nkey", "creds"),
    user_is_token=True,
)
NATSS: Final = replace(NATS, is_encrypted=True)
AMQP: Final = Broker(
    "amqp://HOST/QUEUE?vhost=NAME",
    "stepwell.addons.connect.brokers.amqp",
    options=("vhost",),
    install=_CLIENTS,
    has_positions=False,
    login=(*_LOGIN, "sasl"),
)
AMQPS: Final = replace(AMQP, is_encrypted=True)
