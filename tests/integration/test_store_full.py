"""A store that is too small and may not spill: a typed error with the numbers, and a store that works on."""

from __future__ import annotations

import numpy
import pytest

import meshray

MIB = 2**20


@pytest.fixture(autouse=True)
def small_store(fresh):
    fresh(object_store_memory=64 * MIB, spill_max=0)


def test_object_larger_than_the_store():
    with pytest.raises(meshray.exceptions.ObjectStoreFullError, match="object_store_memory") as caught:
        meshray.put(numpy.zeros(100 * MIB, dtype=numpy.uint8))
    assert caught.value.need_bytes >= 100 * MIB
    assert "100" in str(caught.value)
    assert meshray.get(meshray.put(numpy.ones(MIB)))[0] == 1


def test_result_larger_than_the_store():
    @meshray.remote
    def too_much():
        return numpy.zeros(100 * MIB, dtype=numpy.uint8)

    with pytest.raises(meshray.exceptions.ObjectStoreFullError):
        meshray.get(too_much.remote(), timeout=50)


def test_full_store_says_so_and_takes_values_again_when_refs_go():
    refs = []
    with pytest.raises(meshray.exceptions.ObjectStoreFullError, match="object_store_memory"):
        for i in range(100):
            refs.append(meshray.put(numpy.full(8 * MIB, i, dtype=numpy.uint8)))
    assert len(refs) >= 3
    assert [int(array[0]) for array in meshray.get(refs)] == list(range(len(refs)))
    del refs[:]
    assert meshray.get(meshray.put(numpy.full(8 * MIB, 9, dtype=numpy.uint8)))[0] == 9


def test_values_stay_whole_while_a_view_pins_them():
    view = meshray.get(meshray.put(numpy.full(16 * MIB, 5, dtype=numpy.uint8)))
    for i in range(10):
        meshray.put(numpy.full(16 * MIB, i, dtype=numpy.uint8))
    assert (view == 5).all()
