"""Objects: zero-copy reads, and memory that is free again when the last reference goes."""

from __future__ import annotations

import gc

import numpy
import pytest

import meshray

from .support import store_used_bytes, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")
SIZE = 4 * 2**20


def block(value=1):
    return numpy.full(SIZE, value, dtype=numpy.uint8)


@meshray.remote
def make(value):
    return block(value)


@meshray.remote
def total(array):
    return int(array[0]) * array.size


@pytest.fixture(autouse=True)
def store_is_empty_before_and_after(meshray_local):
    wait_empty()
    yield
    wait_empty()


def wait_empty():
    gc.collect()
    wait_until(lambda: store_used_bytes() < SIZE // 2, what="store empty")


def wait_used():
    wait_until(lambda: store_used_bytes() >= SIZE, what="store in use")


def test_arrays_are_read_only_views():
    ref = meshray.put(block())
    array = meshray.get(ref)
    assert not array.flags.writeable
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    again = meshray.get(ref)
    assert array.__array_interface__["data"][0] == again.__array_interface__["data"][0]
    del array, again, ref


def test_arrays_in_tasks_are_read_only_too():
    @meshray.remote
    def try_to_write(array):
        try:
            array[0] = 9
        except ValueError:
            return "refused", int(array[0])

    ref = meshray.put(block(3))
    assert meshray.get(try_to_write.remote(ref)) == ("refused", 3)
    assert meshray.get(ref)[0] == 3


def test_small_arrays_come_back_equal():
    for array in (numpy.zeros(0), numpy.arange(10), numpy.ones((3, 4)), numpy.array(["a", None], dtype=object)):
        result = meshray.get(meshray.put(array))
        assert numpy.array_equal(result, array)
        assert result.dtype == array.dtype


@pytest.mark.parametrize("array", [
    numpy.arange(2**18).reshape(512, 512).T, numpy.arange(2**18)[::2], numpy.zeros(2**17, dtype="i4,f8"),
    numpy.arange(2**18, dtype=">i4"), numpy.zeros((2**18, 0)), numpy.arange(2**16).astype("datetime64[s]"),
], ids=["fortran", "strided", "structured", "big-endian", "empty", "datetime"])
def test_layouts(array):
    result = meshray.get(meshray.put(array))
    assert numpy.array_equal(result, array)
    assert result.dtype == array.dtype


def test_buffers_are_aligned():
    refs = [meshray.put({"a": numpy.ones(n), "b": numpy.ones(n + 1)}) for n in (20_000, 20_001, 20_003)]
    for value in meshray.get(refs):
        assert all(part.__array_interface__["data"][0] % 64 == 0 for part in value.values())
    del value, refs


def test_many_buffers_in_one_value():
    value = {i: numpy.full(10_000, i) for i in range(100)}
    result = meshray.get(meshray.put(value))
    assert all((result[i] == i).all() for i in value)
    del result


def test_value_lives_as_long_as_its_array():
    ref = meshray.put(block(7))
    array = meshray.get(ref)
    part = array[10:20]
    del ref, array
    for value in range(8):
        meshray.put(block(value))
    assert (part == 7).all()
    del part


def test_driver_s_refs():
    refs = [meshray.put(block()), make.remote(2)]
    assert meshray.get([total.remote(ref) for ref in refs]) == [SIZE, 2 * SIZE]
    wait_used()
    del refs


def test_unread_results():
    refs = [make.remote(i) for i in range(4)]
    meshray.wait(refs, num_returns=4)
    wait_used()
    del refs


def test_dropped_before_they_are_made():
    for i in range(20):
        make.remote(i)
    assert meshray.get(total.remote(block())) == SIZE


def test_arguments_by_value():
    for i in range(5):
        assert meshray.get(total.remote(block(i))) == i * SIZE


def test_refs_in_containers():
    inner = meshray.put(block(5))
    outer = meshray.put({"deep": [inner]})
    del inner
    assert meshray.get(total.remote(meshray.get(outer)["deep"][0])) == 5 * SIZE
    wait_used()
    nested = meshray.put([outer])
    del outer
    assert meshray.get(meshray.get(meshray.get(nested)[0])["deep"][0])[0] == 5
    del nested


def test_refs_held_by_an_actor():
    @meshray.remote
    class Keeper:
        def keep(self, box):
            self.box = box

        def read(self):
            return int(meshray.get(self.box[0])[0])

        def give(self):
            return self.box

        def drop(self):
            del self.box

    keeper = Keeper.remote()
    ref = meshray.put(block(6))
    meshray.get(keeper.keep.remote([ref]))
    del ref
    assert meshray.get(keeper.read.remote()) == 6
    wait_used()
    back = meshray.get(keeper.give.remote())[0]
    meshray.get(keeper.drop.remote())
    assert meshray.get(back)[0] == 6
    del back


def test_refs_die_with_the_actor_that_held_them():
    @meshray.remote
    class Keeper:
        def keep(self, box):
            self.box = box

    keeper = Keeper.remote()
    meshray.get(keeper.keep.remote([meshray.put(block(6))]))
    wait_used()
    meshray.kill(keeper)


def test_object_put_inside_a_task():
    @meshray.remote
    def inside():
        return [meshray.put(block(8))]

    ref = meshray.get(inside.remote())[0]
    assert meshray.get(ref)[0] == 8
    assert meshray.get(total.remote(ref)) == 8 * SIZE
    del ref


def test_object_passed_through_several_tasks():
    @meshray.remote
    def forward(box, depth):
        return meshray.get(forward.remote(box, depth - 1)) if depth else int(meshray.get(box[0])[0])

    assert meshray.get(forward.remote([meshray.put(block(9))], 3)) == 9


def test_fire_and_forget_keeps_its_arguments():
    @meshray.remote
    class Sum:
        def __init__(self):
            self.total = 0

        def add(self, array):
            self.total += int(array[0])

        def get(self):
            return self.total

    adder = Sum.remote()
    for i in range(10):
        adder.add.remote(meshray.put(block(i)))
    assert meshray.get(adder.get.remote()) == 45


def test_failed_task_lets_go_of_its_arguments():
    @meshray.remote
    def fails(array):
        raise ValueError("after reading")

    with pytest.raises(ValueError, match="after reading"):
        meshray.get(fails.remote(meshray.put(block())))


def test_memory_is_used_again():
    for i in range(300):
        ref = meshray.put(block(i % 256))
        assert meshray.get(ref)[-1] == i % 256
    del ref
