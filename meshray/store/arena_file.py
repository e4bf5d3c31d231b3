"""The arena: one file in shared memory, mapped once per process.

*Shell (mmap, madvise).* The one door to shared memory; runs in the node and in every session.

1. No byte is written before its block was populated, so a full file system is an OSError (ENOSPC), never SIGBUS.
2. The file is made with O_EXCL and mode 0600, opened only if it belongs to this user, and grows no more.
3. A pinned view is read-only. Its ``on_release`` is called exactly once, when the last buffer derived from it is gone
   (slices, arrays over it), in whatever thread and also inside a garbage collection: it may only append to a deque.
4. Large copies and populating let other Python threads run.
5. Behind the arena, in the same file, lies the board (see ``pins``): BOARD_BYTES of counters, none of which has memory
   before ``back_board`` gave it some, so that they cannot be a SIGBUS either.

``ctypes`` is imported at the first use, since a process that moves no large objects does not need it.

Source: madvise(2), MADV_POPULATE_WRITE (Linux 5.14).
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshray import config

if TYPE_CHECKING:
    import ctypes

_BLOCK = config.POPULATE_BLOCK_BYTES
_MADV_POPULATE_WRITE = 23
_PROTOCOL_SIMPLE = 0
_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_BARRIER_GLOBAL, _BARRIER_EXPEDITED, _BARRIER_REGISTER = 1, 2, 4


@functools.cache
def _native() -> Any:
    """Import ctypes and declare the C functions used here."""
    import ctypes
    from types import SimpleNamespace

    class Buffer(ctypes.Structure):
        """CPython's ``Py_buffer``."""

        _fields_ = (
            ("address", ctypes.c_void_p), ("owner", ctypes.py_object), ("size_bytes", ctypes.c_ssize_t),
            ("item_bytes", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("dimensions", ctypes.c_int),
            ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
            ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
        )  # fmt: skip

    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    get_buffer = ctypes.pythonapi.PyObject_GetBuffer
    get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(Buffer), ctypes.c_int)
    release_buffer = ctypes.pythonapi.PyBuffer_Release
    release_buffer.argtypes = (ctypes.POINTER(Buffer),)
    release_buffer.restype = None
    return SimpleNamespace(ctypes=ctypes, Buffer=Buffer, madvise=madvise, get_buffer=get_buffer, release=release_buffer)


@functools.cache
def register_for_fences() -> None:
    """Let ``fence`` in another process act on this one. Once per process, before the first pin."""
    _membarrier(_BARRIER_REGISTER)


def fence() -> None:
    """Return when every write that a registered process made before this call can be seen here.

    The fast way interrupts the CPUs that run registered processes (13 us); kernels before 4.16 wait for all CPUs to
    pass the scheduler (15 ms); where a sandbox forbids the call, a pause stands for it: no CPU buffers a write that
    long."""
    if not _membarrier(_BARRIER_EXPEDITED) and not _membarrier(_BARRIER_GLOBAL):
        time.sleep(0.001)


def _membarrier(command: int) -> bool:
    number = _SYS_MEMBARRIER.get(os.uname().machine)
    return number is not None and _native().ctypes.CDLL(None).syscall(number, command, 0, 0) == 0


class ArenaFile:
    """A mapped arena. Thread-safe: ranges belong to their allocator, and the marks only ever grow."""

    def __init__(self, fd: int, path: str, size_bytes: int) -> None:
        """Map ``fd``; use ``create`` or ``open``."""
        self.path = path
        self.size_bytes = size_bytes
        self._fd = fd
        self._board = -(-size_bytes // config.PAGE_BYTES) * config.PAGE_BYTES
        self._map = mmap.mmap(fd, self._board + config.BOARD_BYTES)
        self._view = memoryview(self._map)
        self._populated = bytearray(-(-size_bytes // _BLOCK))
        """One byte per block: 1 once the block is backed by memory and mapped here."""
        self._pin_type: type[Any] | None = None
        self._address = 0

    @classmethod
    def create(cls, path: str, size_bytes: int) -> ArenaFile:
        """Make the file, sparse, and map it. Raise FileExistsError if it exists, OSError if it cannot be made."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, -(-size_bytes // config.PAGE_BYTES) * config.PAGE_BYTES + config.BOARD_BYTES)
            return cls(fd, path, size_bytes)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise

    @classmethod
    def open(cls, path: str) -> ArenaFile:
        """Map an arena that the node made. Raise PermissionError if it is not this user's alone."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise PermissionError(errno.EPERM, "the arena must belong to this user with mode 0600", path)
            return cls(fd, path, status.st_size - config.BOARD_BYTES)
        except BaseException:
            os.close(fd)
            raise

    # --- writing -------------------------------------------------------------------------------------------------

    def populate(self, offset: int, size_bytes: int) -> int:
        """Back the blocks of this range with memory and map them; return the bytes that were not populated before.

        Raise OSError (ENOSPC) when the file system or the machine has no room."""
        self._check_range(offset, size_bytes)
        last = -(-(offset + size_bytes) // _BLOCK)
        first = self._populated.find(0, offset // _BLOCK, last)
        fresh_bytes = 0
        while first >= 0:
            end = self._populated.find(1, first, last)
            end = last if end < 0 else end
            start, stop = first * _BLOCK, min(end * _BLOCK, self.size_bytes)
            self._touch(start, stop - start)
            self._populated[first:end] = b"\x01" * (end - first)
            fresh_bytes += stop - start
            first = self._populated.find(0, end, last)
        return fresh_bytes

    def _touch(self, offset: int, size_bytes: int) -> None:
        native = _native()
        if native.madvise(self._base() + offset, size_bytes, _MADV_POPULATE_WRITE) == 0:
            return
        number = native.ctypes.get_errno()
        if number == errno.EINVAL:
            number = self._allocate_blocks(offset, size_bytes)
        if number:
            # The kernel says EFAULT where touching the page would have been SIGBUS.
            number = errno.ENOSPC if number in (errno.EFAULT, errno.ENOMEM) else number
            raise OSError(
                number,
                f"no shared memory for {size_bytes} bytes of the object store ({os.strerror(number)}): enlarge the "
                "arena's file system or lower object_store_memory",
                self.path,
            )

    def _allocate_blocks(self, offset: int, size_bytes: int) -> int:
        """Kernels before 5.14: reserve the blocks without mapping them. Return the error number, 0 if it went well."""
        try:
            os.posix_fallocate(self._fd, offset, size_bytes)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def write(self, offset: int, data: Any) -> int:
        """Copy the contiguous buffer ``data`` to ``offset``; return its size in bytes."""
        size_bytes = len(data) if type(data) is bytes else memoryview(data).nbytes
        if size_bytes:
            self.populate(offset, size_bytes)
            if size_bytes < config.COPY_UNLOCKED_BYTES:
                self._view[offset : offset + size_bytes] = memoryview(data).cast("B")
            else:
                self._copy(offset, data)
        return size_bytes

    def _copy(self, offset: int, data: Any) -> None:
        native = _native()
        source = native.Buffer()
        native.get_buffer(data, native.ctypes.byref(source), _PROTOCOL_SIMPLE)
        try:
            native.ctypes.memmove(self._base() + offset, source.address, source.size_bytes)
        finally:
            native.release(native.ctypes.byref(source))

    # --- reading -------------------------------------------------------------------------------------------------

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return a read-only view that does not hold the range: for who knows that it stays."""
        self._check_range(offset, size_bytes)
        return self._view[offset : offset + size_bytes].toreadonly()

    def pin(self, offset: int, size_bytes: int, on_release: Callable[[int], object], mark: int = 0,
            keep: Any = None) -> memoryview:
        """Return a read-only view that keeps ``keep`` alive; ``on_release(mark)`` is called once when it and all that
        derives from it are gone."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            self._check_range(offset, size_bytes)
        kept = self._map, keep
        pin = (self._pin_type or self._make_pin_type()).from_address(self._address)
        pin.kept = kept
        pin.mark = mark
        pin.on_release = on_release
        return memoryview(pin).cast("B")[offset : offset + size_bytes].toreadonly()

    def _make_pin_type(self) -> type[Any]:
        # One array type as large as the arena serves every pin: making a ctypes type per size costs 20 us, slicing 0.1.
        # Buffers derived from a view keep the exporter alive, whatever they are, so its end is the end of the last.
        # ``from_buffer`` would keep the mapping too, and costs 0.3 us more than ``from_address`` and the reference.
        base: type[ctypes.Array[Any]] = _native().ctypes.c_ubyte * self.size_bytes
        self._base()

        class Pin(base):  # type: ignore[valid-type, misc]
            __slots__ = ("kept", "mark", "on_release")

            def __del__(self) -> None:
                self.on_release(self.mark)

        self._pin_type = Pin
        return Pin

    # --- the board -----------------------------------------------------------------------------------------------

    def board(self, start: int, size_bytes: int) -> memoryview:
        """Return 32-bit words of the board, to be read and written once they are backed."""
        at = self._board + start
        return memoryview(self._map)[at : at + size_bytes].cast("I")

    def back_board(self, start: int, size_bytes: int) -> None:
        """Give this part of the board memory. Raise OSError (ENOSPC)."""
        os.posix_fallocate(self._fd, self._board + start, size_bytes)

    def read_board(self, start: int, size_bytes: int) -> bytes:
        """Return bytes of the board; what was never backed reads as zeros and gets no memory by it."""
        return os.pread(self._fd, size_bytes, self._board + start)

    def clear_board(self, start: int, size_bytes: int) -> None:
        """Zero the pages of this part of the board that are not."""
        zeros = bytes(config.PAGE_BYTES)
        for page in range(start, start + size_bytes, config.PAGE_BYTES):
            if self.read_board(page, config.PAGE_BYTES) != zeros:
                os.pwrite(self._fd, zeros, self._board + page)

    # --- end -----------------------------------------------------------------------------------------------------

    def unlink(self) -> None:
        """Remove the file's name; mappings stay valid. Unlinking twice is a no-op."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Unmap, unless views are still about: then the mapping goes with the last of them."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._pin_type = None
            self._view.release()
            # Not by ``close``: pins refer to the mapping without exporting its buffer. It goes with its last reference.
            del self._map

    def _base(self) -> int:
        if not self._address:
            ctypes_ = _native().ctypes
            self._address = ctypes_.addressof(ctypes_.c_ubyte.from_buffer(self._map))
        return self._address

    def _check_range(self, offset: int, size_bytes: int) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"range {offset}+{size_bytes} leaves the arena's {self.size_bytes} bytes")
