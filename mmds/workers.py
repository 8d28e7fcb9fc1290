"""Work done by spawned processes, in order, in bounded memory, and in spite of processes that die.

Spawned, not forked: the caller may have threads (torch has), and a fork would copy their locks in any state.

A unit is a run of neighbouring items. Each worker has one that it works at and one that waits; units that are done wait here
for those before them, their samples in the worker's arena. A worker that dies is replaced, and its units are done again,
from the last item of which anything arrived. An item that a worker was at when it died is tried once more, and then given up.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import current_process, get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from mmds.converters import Item
from mmds.errors import OptionError, SourceError, printable
from mmds.handover import NOTHING, SLOTS, Arena, Outbox, Packed, unpack
from mmds.work import Failure, Outputs, Work, nbytes

AHEAD = 2  # units per worker under way at the same time
WINDOW = 4  # units per worker between the first that is not done and the last that is begun
UNIT_SECONDS = 0.05  # that a unit should take: messages cost about 0.1 ms, and the last units should end together
MAX_UNIT = 1024
UNIT_BYTES = 2**20  # that the items of a unit may hold, but for one that holds more
FLUSH_SECONDS = 0.2  # samples are sent at least so often, so that progress is seen
TRIES = 2
STILLBORN = 5  # workers in a row that died before they did anything: the next ones would, too

OUTPUTS, DONE, BROKEN = range(3)  # what a worker says
ADVICE = "Define functions and classes at the top level of a module, or pass num_workers=1"


@dataclass
class _Piece:
    """Some outputs of a unit, that a worker has sent."""

    packed: list[tuple[int, Packed]]
    view: memoryview | None  # the slot that their buffers are in
    give_back: Callable[[], None]


@dataclass
class _Unit:
    """A run of items, and what has arrived of what they give."""

    first: int
    items: list[Item]
    pieces: deque[_Piece] = field(default_factory=deque)
    is_done: bool = False
    # Should its worker die:
    resume: int = 0  # the number of the item to go on with
    skip: int = 0  # outputs of that item that have arrived
    lost: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.resume = self.first

    def arrived(self, piece: _Piece) -> None:
        """Take in outputs."""
        self.pieces.append(piece)
        for number, _ in piece.packed:
            self.resume, self.skip = number, self.skip + 1 if number == self.resume else 1

    @property
    def order(self) -> tuple[Any, ...]:
        """What a worker is told."""
        return self.resume, self.items[self.resume - self.first :], self.skip, self.lost


class _Worker:
    """A worker process, as its parent sees it."""

    def __init__(self, context: Any) -> None:
        self.arena = Arena()
        self.units: deque[_Unit] = deque()  # in the order in which it does them
        self.connection: Connection
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_main, args=(other, self.arena), daemon=True)
        resource_tracker.ensure_running()  # it would be started with the first process, and unblock the signal
        with other:  # Ctrl-C reaches the whole group; a worker ignores it, from its first moment on
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def begin(self, work: bytes) -> None:
        """Tell it what to do with items. Waits until it listens."""
        self._send(work)

    def give(self, unit: _Unit) -> None:
        """Let it do a unit."""
        self.units.append(unit)
        self._send(unit.order)

    def piece(self, packed: list[tuple[int, Packed]], slot: int | None) -> _Piece:
        """Return outputs that it has sent."""
        if slot is None:
            return _Piece(packed, None, lambda: None)
        return _Piece(packed, self.arena.slot(slot), lambda: self._send(slot))

    def _send(self, message: Any) -> None:
        try:
            self.connection.send_bytes(pickle.dumps(message, 5))
        except OSError:  # it has died: its messages will end
            pass
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(
                f"a sample of the source cannot be sent to worker processes: {printable(error, 500)}. Pass num_workers=1"
            ) from error

    def died(self) -> str:
        """Free what it had, and return in words how it ended."""
        for unit in self.units:
            for piece in unit.pieces:
                self._detach(piece)
        self.connection.close()
        self.process.join(5)
        self.arena.close()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        return f"died of {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")

    def _detach(self, piece: _Piece) -> None:
        if piece.view is not None:
            piece.view, piece.give_back = memoryview(bytes(piece.view)), lambda: None


class Workers:
    """A number of processes that do `work`. To be closed."""

    def __init__(self, work: Work, number: int) -> None:
        if current_process().daemon:
            raise OptionError(
                "a daemon process, such as a worker of a DataLoader, cannot start worker processes; pass num_workers=1"
            )
        try:
            self._work = pickle.dumps(work, 5)  # torch would have multiprocessing share its tensors, with one worker
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(f"cannot be sent to worker processes: {printable(error, 500)}. {ADVICE}") from error
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._batch = self._unit = work.batch_size
        self._seconds: float | None = None  # per item
        self._deaths: dict[int, int] = {}
        self._stillborn = 0
        try:
            for _ in range(number):
                self._workers.append(_Worker(self._context))
            for worker in self._workers:  # not before all of them have been started, which takes a while
                worker.begin(self._work)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all of them at once, in the middle of whatever they do."""
        for worker in self._workers:
            worker.connection.close()  # which ends it
        for worker in self._workers:
            worker.process.join(1)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.units.clear()  # and the samples in its arena with them
            worker.arena.close()
        self._workers = []

    def run(self, first: int, items: Iterator[Item]) -> Iterator[tuple[list[Item], Outputs]]:
        """Yield (items, what they give) for runs of neighbouring items, in order.

        The outputs have to be taken before the next run is asked for; arrays in them are gone then.
        """
        window: deque[_Unit] = deque()
        number = first
        while True:
            for worker in sorted(self._workers, key=lambda worker: len(worker.units)):
                while len(worker.units) < AHEAD and len(window) < WINDOW * len(self._workers):
                    unit = _Unit(number, self._take(items))
                    if not unit.items:
                        break
                    number += len(unit.items)
                    window.append(unit)
                    worker.give(unit)
            if not window:
                return
            unit = window[0]
            yield unit.items, self._outputs(unit)
            window.popleft()

    def _take(self, items: Iterator[Item]) -> list[Item]:
        """Return the items of the next unit: so many that they take about `UNIT_SECONDS`, in whole batches."""
        if self._seconds is not None:
            wanted = int(min(UNIT_SECONDS / max(self._seconds, 1e-9), MAX_UNIT, 4 * self._unit))
            self._unit = max(wanted // self._batch, 1) * self._batch
        taken: list[Item] = []
        size = 0
        for item in itertools.islice(items, self._unit):
            taken.append(item)
            size += nbytes(item)  # some carry their data
            if size >= UNIT_BYTES and len(taken) % self._batch == 0:
                break
        return taken

    def _outputs(self, unit: _Unit) -> Outputs:
        while True:
            while unit.pieces:
                piece = unit.pieces.popleft()
                for number, packed in piece.packed:
                    yield number, unpack(packed, piece.view)
                piece.give_back()
            if unit.is_done:
                return
            self._receive()

    def _receive(self) -> None:
        """Take in what workers have sent; wait until there is anything."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection)):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                message, *more = connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker)
                continue
            self._stillborn = 0
            if message == OUTPUTS:
                worker.units[0].arrived(worker.piece(*more))
            elif message == DONE:
                worker.units.popleft().is_done = True
                self._seconds = more[0] if self._seconds is None else 0.7 * self._seconds + 0.3 * more[0]
            else:
                raise OptionError(f"a worker process cannot load what it shall do: {more[0]}. {ADVICE}")

    def _replace(self, dead: _Worker) -> None:
        """Let a new worker do what a dead one has not done."""
        place = self._workers.index(dead)
        del self._workers[place]
        current = dead.arena.current
        how = dead.died()
        if current == NOTHING:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                raise SourceError(
                    f"{STILLBORN} worker processes, one after the other, {how} before they did anything. In a script, call "
                    "convert() under if __name__ == '__main__':"
                )
        else:
            self._deaths[current] = self._deaths.get(current, 0) + 1
            if self._deaths[current] >= TRIES:
                unit = dead.units[0]
                unit.lost[current] = f"its worker process {how}, {TRIES} times"
                unit.skip = 0 if unit.resume == current else unit.skip
        worker = _Worker(self._context)
        self._workers.insert(place, worker)
        worker.begin(self._work)
        for unit in dead.units:
            worker.give(unit)


# In a worker


def _main(connection: Connection, arena: Arena) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work_bytes: bytes = connection.recv()
    except (EOFError, ConnectionResetError):  # nobody wants it any more
        return

    def send(message: tuple[Any, ...]) -> None:
        try:
            connection.send(message)
        except OSError:  # nobody wants it any more
            os._exit(1)

    orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    slots = _Slots()
    threading.Thread(target=_listen, args=(connection, orders, slots), daemon=True).start()
    try:
        work: Work = pickle.loads(work_bytes)  # noqa: S301 (from our own parent)
    except Exception as error:  # noqa: BLE001 (whatever an import of a user's module raises: the parent says it)
        send((BROKEN, f"{type(error).__name__}: {printable(error, 500)}"))
        return
    if "torch" in sys.modules:  # as in a worker of a DataLoader: there are as many workers as cores
        sys.modules["torch"].set_num_threads(1)
    outbox = Outbox(arena, lambda packed, slot: send((OUTPUTS, packed, slot)), slots.take)

    def begin(number: int) -> None:
        arena.current = number

    while True:
        first, items, skip, lost = orders.get()
        started = sent = time.perf_counter()
        slots.waited = 0.0
        for number, value in work.run(first, items, begin, lost):
            if number == first and skip:
                skip -= 1
                continue
            try:
                outbox.put(number, value)
            except Exception as error:  # noqa: BLE001 (whatever comes up when somebody's object is pickled)
                reason = f"{type(error).__name__}: {printable(error, 500)}"
                outbox.put(number, Failure(f"cannot be sent from a worker process: {reason}"))
            if time.perf_counter() - sent > FLUSH_SECONDS:
                outbox.flush()
                sent = time.perf_counter()
        arena.current = NOTHING
        outbox.flush()
        send((DONE, (time.perf_counter() - started - slots.waited) / len(items)))


class _Slots:
    """The slots of its arena that a worker may fill."""

    def __init__(self) -> None:
        self._free: queue.LifoQueue[int] = queue.LifoQueue()
        for slot in range(SLOTS):
            self.free(slot)
        self.waited = 0.0  # seconds

    def free(self, slot: int) -> None:
        """Put a slot back."""
        self._free.put(slot)

    def take(self) -> int:
        """Return a slot; wait for one."""
        started = time.perf_counter()
        slot = self._free.get()
        self.waited += time.perf_counter() - started
        return slot


def _listen(connection: Connection, orders: queue.SimpleQueue[tuple[Any, ...]], slots: _Slots) -> None:
    """Take in what the parent sends, so that it never waits for this process; end with it."""
    try:
        while True:
            message = connection.recv()
            if isinstance(message, int):
                slots.free(message)
            else:
                orders.put(message)
    except (EOFError, OSError):
        os._exit(1)
