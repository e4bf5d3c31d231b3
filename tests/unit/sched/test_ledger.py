"""The ledger: amounts, GPU indices, parked CPUs."""

from __future__ import annotations

from meshray.sched.ledger import Ledger

U = 10_000


def test_take_and_give_back() -> None:
    ledger = Ledger({"CPU": 2 * U, "x": 1})
    held = ledger.take({"CPU": U, "x": 1})
    assert ledger.free() == {"CPU": U, "x": 0}
    assert not ledger.fits({"x": 1})
    assert ledger.possible({"x": 1})
    assert not ledger.possible({"y": 1})
    ledger.check()
    ledger.give_back(held)
    assert ledger.free() == {"CPU": 2 * U, "x": 1}
    ledger.check()


def test_parking_lends_the_cpu_and_resuming_oversubscribes() -> None:
    ledger = Ledger({"CPU": U, "GPU": U})
    first = ledger.take({"CPU": U, "GPU": U})
    ledger.park(first)
    ledger.park(first)
    assert ledger.free() == {"CPU": U, "GPU": 0}, "a GPU stays with the one who waits"
    second = ledger.take({"CPU": U})
    ledger.resume(first)
    assert ledger.oversubscribed() == {"CPU": U}
    assert ledger.free() == {"CPU": 0, "GPU": 0}
    ledger.check()
    ledger.park(second)
    ledger.give_back(second)
    ledger.give_back(first)
    assert ledger.free() == {"CPU": U, "GPU": U}
    ledger.check()


def test_gpu_indices_are_whole_or_shared_by_fractions() -> None:
    ledger = Ledger({"GPU": 3 * U})
    half = ledger.take({"GPU": U // 2})
    other = ledger.take({"GPU": U // 2})
    assert half.gpus == other.gpus == [0], "fractions fill one GPU first"
    pair = ledger.take({"GPU": 2 * U})
    assert pair.gpus == [1, 2]
    ledger.give_back(half)
    ledger.give_back(pair)
    quarter = ledger.take({"GPU": U // 4})
    assert quarter.gpus == [0]
    assert not ledger.fits({"GPU": 3 * U})
    assert ledger.fits({"GPU": 2 * U})
    ledger.check()


def test_fractions_on_different_gpus_do_not_add_up_to_a_whole_one() -> None:
    ledger = Ledger({"GPU": 2 * U})
    ledger.take({"GPU": 6000})
    ledger.take({"GPU": 6000})
    assert ledger.free() == {"GPU": 8000}
    assert not ledger.fits({"GPU": 8000})
    assert ledger.fits({"GPU": 4000})
