"""Preparing and measuring contestants: failures, limits, the choice by name."""

from dataclasses import dataclass

import pytest

from int8pass.bench import measure as module
from int8pass.bench.measure import Prepared, Unavailable, chosen, measure
from int8pass.errors import ConfigError


@dataclass(frozen=True)
class Peer:
    name: str


def prepare(peer):
    if peer.name == "broken":
        raise ImportError("no such library")
    if peer.name == "absent":
        raise Unavailable("not available: no wheel")
    if peer.name == "slow":
        return Prepared(pytest.fail, error=0.25, seconds=7.0)
    return Prepared(lambda: None, units=4, warm=lambda: None, error=0.5)


def test_a_peer_that_fails_is_a_row_with_its_reason():
    broken, good, absent = measure([Peer("broken"), Peer("good"), Peer("absent")], prepare, rounds=2)
    assert broken.failure == "ImportError: no such library" and broken.seconds == ()
    assert absent.failure == "not available: no wheel"
    assert (good.failure, good.error, len(good.seconds), len(good.warm)) == ("", 0.5, 2, 2)


def test_times_are_those_of_a_unit(monkeypatch):
    def interleave(calls, rounds, clock, before, progress):
        return {name: [8.0, None] for name in calls}

    monkeypatch.setattr(module, "interleave", interleave)
    (good,) = measure([Peer("good")], prepare, rounds=2)
    assert good.seconds == (2.0, None) and good.warm == (2.0, None)


def test_a_call_past_the_limit_is_not_repeated():
    (slow,) = measure([Peer("slow")], prepare, rounds=2)
    assert slow.seconds == (7.0,) and slow.note == "timed once: a call takes over 5 s"


def test_chosen_keeps_order_and_the_baseline():
    peers = [Peer(name) for name in ("int8mixed", "torchao", "bare-onednn", "bare-fbgemm")]
    names = [peer.name for peer in chosen(peers, ["bare-*"], always=["int8mixed"])]
    assert names == ["int8mixed", "bare-onednn", "bare-fbgemm"]
    assert chosen(peers, []) == peers


def test_a_glob_without_match_is_an_error_that_lists_the_names():
    with pytest.raises(ConfigError, match="--peers 'torch8' matches no contestant; there are: int8mixed, torchao"):
        chosen([Peer("int8mixed"), Peer("torchao")], ["torch8"])


def test_what_precedes_each_batch_can_be_chosen(monkeypatch):
    monkeypatch.setattr(module, "evicting", pytest.fail)
    batches = []
    measure([Peer("good")], prepare, rounds=3, before=lambda: batches.append(1))
    assert len(batches) == 2 * 3  # cold and warm
