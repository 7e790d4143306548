"""`AlertSession`: one alert process: it stands by until it has the lease of its group, then it leads."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Self
from urllib.parse import quote

from stepwell.addons.alert.conditions import AlarmCondition, ConditionError, Rows, TensorRow
from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.deliveries import Delivery, DeliveryOptions, target_ids
from stepwell.addons.alert.errors import AlertStartError, LeaseLostError
from stepwell.addons.alert.evaluation import RuleEvaluation
from stepwell.addons.alert.event_logs import EventLogs
from stepwell.addons.alert.leader import AlertLeader
from stepwell.addons.alert.rules import AlarmRule, AlertRules, FollowedModel
from stepwell.addons.alert.store import AlertStore
from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.connect.service_feed import ServiceFeed
from stepwell.addons.fleet.keys import WORKERS
from stepwell.addons.waiting import happens, until
from stepwell.addons.watch.refusals import RefusalReader
from stepwell.errors import ServiceError, SettingsError
from stepwell.store.state_store import StateStore
from stepwell.store.transport.retry import deadline

_LEASE_S: Final = 1.0
_LONGEST_LEASE_S: Final = 10.0
_STAND_BY_S: Final = 0.15
_STORE_AWAY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class FollowedService:
    """The service's description of what is followed, and the store with its streams.

    Attributes:
        tenant: The tenant of the key.
        models: What is followed of each model.
        store: The store.
    """

    tenant: str
    models: list[FollowedModel]
    store: StateStore

    def logs(self, model: str) -> EventLogs:
        """Return the event logs of a model's streams."""
        return EventLogs(self.store, self.tenant, model)

    def refusals(self, model: str) -> RefusalReader:
        """Return a reader of the refused timesteps of a model's streams."""
        return RefusalReader(self.store, self.tenant, model)


class AlertSession:
    """One run of `stepwell alert`; `async with` disconnects at the end."""

    def __init__(
        self, rules: AlertRules, *, url: str, key: str | None, store: str, report: Callable[[str], None]
    ) -> None:
        """Create it; `run` and `connect` connect.

        Args:
            rules: The rules.
            url: The service's address.
            key: The API key, or None.
            store: The URL of the service's store.
            report: Called with a sentence about what has to wait, and about the lease.

        Raises:
            ConnectUsageError: The URL of a target is wrong.
            MissingExtraError: The client library of a broker is not installed.
            ClientError: `bad_url`.
        """
        self.counters = AlertCounters()
        self._rules = rules
        self._url = url
        self._key = key
        self._store_url = store
        self._report = report
        self._feed = ServiceFeed(url, key, rules.models[0], None, report=report)
        self._service: FollowedService | None = None
        self._stands_by = False
        for target in rules.targets:
            if target.is_webhook and target.secret is None:
                report(f"alarms to {target.url} are not signed: give `secret` or `secret_env`")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._feed.close()
        if self._service is not None:
            await self._service.store.close()

    async def connect(self) -> FollowedService:
        """Return what is followed, once the service responds.

        Raises:
            ConnectError: The service has no such model, or rejects the key.
            SettingsError: A rule does not fit its model.
            AlertStartError: A model has no history, or the store is not that of the service.
        """
        info = await self._feed.get("/v1/info")
        history: dict[str, int] = info["history"]
        followed = []
        for name in self._rules.models:
            model = await self._feed.get(f"/v1/models/{quote(name, safe='')}")
            if not history.get(name, history.get("*", 0)):
                raise AlertStartError(
                    f"The service keeps no history of the model {name!r}, so alarms would be missed while this process "
                    "is away.",
                    fix=f"Start the service with --history {name}=N, where N is the number of commits to keep of each "
                    f"stream; STEPWELL_HISTORY={name}=64 does the same.",
                )
            followed.append(self._followed(name, model, info["limits"]))
        store = StateStore(self._store_url, stream_ttl_s=info["limits"]["stream_ttl_s"])
        self._service = FollowedService(info["tenant"], followed, store)
        await self._check_store(store)
        return self._service

    async def run(self, stopped: asyncio.Event) -> None:
        """Stand by and lead until an event is set; then what was evaluated is written, and the lease given back.

        Raises:
            ConnectError, SettingsError, AlertStartError: As for `connect`.
        """
        connecting = asyncio.create_task(self.connect())
        if not await until(connecting, stopped):
            return
        service = connecting.result()
        store = AlertStore(service.store, service.tenant, self._rules.group)
        name = f"{secrets.token_hex(8)} {self._rules.digest}"
        lease = Lease(store.lease, name, lease_s=_LEASE_S, longest_s=_LONGEST_LEASE_S, is_checked=True)
        while not stopped.is_set():
            try:
                await lease.run(partial(self._lead, service, store, lease, stopped))
            except ServiceError as exc:
                self._report(f"waiting for the store: {exc.problem}")
                await happens(stopped, _STORE_AWAY_S)
                continue
            if lease.holder and not self._stands_by:
                self._stands_by = True
                self._report(self._standing_by(lease.holder))
            await happens(stopped, _STAND_BY_S)

    async def _lead(self, service: FollowedService, store: AlertStore, lease: Lease, stopped: asyncio.Event) -> None:
        self._stands_by = False
        options = DeliveryOptions(store, lambda: lease.is_held, self.counters, self._report, self._rules.group)
        targets = self._rules.targets
        leader = AlertLeader(
            service.models,
            {
                model.name: RuleEvaluation(model.name, model.rules, lambda: secrets.token_hex(16))
                for model in service.models
            },
            {model.name: (service.logs(model.name), service.refusals(model.name)) for model in service.models},
            lease,
            store,
            [Delivery(*one, options) for one in zip(targets, target_ids(targets), strict=True)],
            self.counters,
            self._rules.group,
        )
        self.counters.leads = True
        try:
            with contextlib.suppress(LeaseLostError):
                await leader.run(self._url, self._key, stopped, self._report)
        finally:
            self.counters.leads = False

    def _followed(self, name: str, model: dict[str, Any], limits: dict[str, Any]) -> FollowedModel:
        rows = {
            group: {spec["name"]: TensorRow(spec["shape"], spec.get("labels") or ()) for spec in model[group]}
            for group in ("outputs", "inputs")
        }
        rules = [
            replace(rule, when=_of_model(rule, rule.when, rows), clear=_of_model(rule, rule.clear, rows))
            for rule in self._rules.of_model(name)
        ]
        ranks = {one: len(row.shape) for one, row in rows["inputs"].items()}
        return FollowedModel(name, rules, ranks, int(limits["stream_ttl_s"] * 1000), 2 * limits["request_timeout_s"])

    async def _check_store(self, store: StateStore) -> None:
        """Check that the store is that of a service: every worker of one signs in."""
        try:
            workers = await store.execute(deadline(), "EXISTS", WORKERS)
        except ServiceError as exc:
            raise AlertStartError(
                f"The store {_without_password(self._store_url)} does not reply: {exc.problem}",
                fix="Set `store` in the rules to the URL that the service has as --redis; without one, start this "
                "process on the service's machine, with --data-dir as the service has it.",
            ) from exc
        if not workers:
            raise AlertStartError(
                f"No service uses the store {_without_password(self._store_url)}.",
                fix="Set `store` in the rules to the URL that the service has as --redis.",
            )

    def _standing_by(self, holder: str) -> str:
        digest = holder.rpartition(" ")[2]
        if digest == self._rules.digest:
            return "standing by: another process evaluates the rules"
        return (
            f"standing by: another process with other rules has the group {self._rules.group!r}; "
            "to run both, give one of them another `group`"
        )


def _of_model(rule: AlarmRule, condition: AlarmCondition | None, rows: Rows) -> AlarmCondition | None:
    if condition is None:
        return None
    try:
        return condition.of_model(rows)
    except ConditionError as exc:
        raise SettingsError(f"Rule {rule.name!r}: {condition.text!r}: {exc}.") from exc


def _without_password(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"
