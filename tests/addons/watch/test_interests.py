"""The models whose commits may need a notification."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from stepwell.addons.watch.interests import InterestTable, Subscription

MODELS = ("watched", "logged", "unlogged", "other")


@pytest.mark.parametrize(
    ("log_lengths", "found"),
    [
        ({}, {"watched"}),
        ({"logged": 5, "unlogged": 0}, {"watched", "logged"}),
        ({"*": 5, "unlogged": 0}, {"watched", "logged", "other"}),
        ({"*": 5, "watched": 0}, {*MODELS}),
        ({"*": 0, "logged": 5}, {"watched", "logged"}),
    ],
)
def test_a_model_is_watched_while_it_has_a_watcher_an_event_log_or_the_table_may_be_incomplete(
    log_lengths: Mapping[str, int], found: set[str]
) -> None:
    table = InterestTable(log_lengths)
    without_watcher = {model for model in MODELS if model in table.watched}
    table.add([Subscription("tenant", "watched")], 5.0, worker="one")

    assert {model for model in MODELS if model in table.watched} == found
    table.publish_all = True
    assert all(model in table.watched for model in MODELS)
    table.publish_all = False
    assert {model for model in MODELS if model in table.watched} == found
    table.expire(5.5)
    assert {model for model in MODELS if model in table.watched} == without_watcher
