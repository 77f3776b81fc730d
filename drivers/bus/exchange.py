"""One question and its answers on a line where answers may come late, damaged, doubled, or with an echo before them.

No status packet says which question it answers. So a device whose answer did not come right "owes" one, and is not
believed again before it has answered a fence: a read of a length that nothing else uses. A device answers in order, and
the line is first in, first out, so everything older has arrived by then, and is thrown away. A fence's answer may be
late, too, so each has another length, and none is used again within `TOKEN_S`: what is later than that could be
mistaken. When all are under way, one is used again after `USED_TOKEN_S` if something that was asked later has been
answered, for then the line is past it, and the device is mute; on a line that stands still all answers may yet come,
so there it is enough to listen. Draining until the line is quiet for a while does not do: it was wrong every
time that answers were later.

Half-duplex adapters may echo what was sent, always or now and then. A Feetech echo has the form of an answer, so
nothing is asked whose echo has the length of its answer: see `Feetech.confusing_size` and `Feetech.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from roboalign.drivers.bus.dynamixel import DynamixelFastReplies
from roboalign.drivers.bus.patience import BusSettings, Debt, Patience
from roboalign.drivers.bus.types import BusStats, Fault, FaultKind, Replies, Reply, Status, Transport, WireProtocol

__all__ = ["FENCE_SIZES", "TOKEN_S", "USED_TOKEN_S", "Exchange", "Request"]

FENCE_SIZES = (5, 7, 9, 11, 13, 17, 19, 21, 25, 27, 29, 31, 33, 35)
"""Lengths of reads from address 0 that are kept for fences."""
TOKEN_S = 2.0
"""Longest time that an answer may be late without being mistaken for another."""
USED_TOKEN_S = 0.25
"""The same once every length is under way and the line has answered a later question: this device had no power."""

_BITS_PER_BYTE = 10
_MIN_FENCE_S = 0.010


class Request:
    """A packet, and what undamaged answers to it look like."""

    __slots__ = ("ids", "packet", "replies", "sizes", "wire_s")

    def __init__(self, packet: bytes, sizes: Mapping[int, int], replies: Replies, wire_s: float) -> None:
        """`sizes` has the parameter bytes of each id in order; `wire_s` is the time of all bytes and return delays."""
        self.packet = packet
        self.sizes = sizes
        self.ids = tuple(sizes)
        self.replies = replies
        self.wire_s = wire_s


class Exchange:
    """Asks, and believes only what cannot be an answer to anything else. One thread; see the module."""

    def __init__(
        self,
        transport: Transport,
        protocol: WireProtocol,
        now: Callable[[], float],
        settings: BusSettings,
        stats: BusStats,
    ) -> None:
        """Stores the arguments; `now` is the clock of the transport's deadlines."""
        self._transport, self._protocol, self._now = transport, protocol, now
        self._settings, self._stats = settings, stats
        self.is_complete = False
        """True when the last exchange left nobody out."""
        self.forget()

    def forget(self) -> None:
        """Starts anew: the port was opened, and nothing older can arrive."""
        self._owed: dict[int, Debt] = {}
        self._answered_s = 0.0
        self._passed_s = 0.0  # when the latest question was sent that was answered: the line is past all before it
        self._sent_fences: dict[int, dict[int, float]] = {}
        self._patience = Patience(self._settings.min_timeout_s, self._settings.reply_timeout_s)

    @property
    def owing(self) -> frozenset[int]:
        """Ids that are not believed before they have answered a fence."""
        return frozenset(self._owed)

    def wire_s(self, num_bytes: int, num_answers: int) -> float:
        """Returns the time that bytes and return delays take."""
        return num_bytes * _BITS_PER_BYTE / self._transport.baud + num_answers * self._settings.return_delay_s

    def ask(
        self, ids: Sequence[int], build: Callable[[tuple[int, ...]], Request], *, is_eager: bool
    ) -> dict[int, Reply | Fault]:
        """Asks once and returns an answer or a fault for each id, in their order.

        Args:
            ids: Whom to ask.
            build: Makes the request for those who can be asked.
            is_eager: Ask also a device that was silent a moment ago.

        Raises:
            PortLost: The port is gone.
        """
        wanted = tuple(ids)
        waiting = self._transport.read(0.0)
        if waiting:
            self._distrust(waiting, wanted)
        if not self._owed:
            return self._converse(build(wanted))
        silent = self._settle(wanted, is_eager)
        if not silent:
            return self._converse(build(wanted))
        rest = tuple(servo for servo in wanted if servo not in silent)
        found = self._converse(build(rest)) if rest else {}
        self.is_complete = False
        return {servo: silent[servo] if servo in silent else found[servo] for servo in wanted}

    def ask_again(self, request: Request) -> dict[int, Reply | Fault] | None:
        """Does what `ask` does for a request that was built before; None when someone owes, and nothing was asked."""
        waiting = self._transport.read(0.0)
        if waiting:
            self._distrust(waiting, request.ids)
        return None if self._owed else self._converse(request)

    def tell(self, packet: bytes) -> None:
        """Sends what nobody answers. Raises PortLost."""
        self._stats.transactions += 1
        self._transport.write(packet, self._now() + self._settings.reply_timeout_s)

    def listen(self, packet: bytes, size: int, wait_s: float, *, is_hasty: bool) -> tuple[list[Status], int]:
        """Sends, and returns every status of `size` parameter bytes that comes before the deadline, and stray bytes.

        `is_hasty` ends with the first undamaged answer. For scans: whoever answers is welcome.
        """
        self._stats.transactions += 1
        num_bytes = self._protocol.status_size(size)
        deadline_s = self._now() + self.wire_s(len(packet) + num_bytes, 1) + wait_s
        self._transport.write(packet, deadline_s)
        data = body = b""
        while chunk := self._transport.read(deadline_s):
            data += chunk
            body = _without_echo(data, packet)
            if is_hasty and len(body) >= num_bytes:
                statuses, scan = self._protocol.scan(body)
                if not scan.num_discarded and scan.num_used == len(body):
                    break
        statuses, scan = self._protocol.scan(body, is_final=True)
        return [status for status in statuses if len(status.data) == size], scan.num_discarded

    def owe(self, ids: Sequence[int]) -> None:
        """Marks devices that may still answer something; they are asked for it at the next exchange with them."""
        now_s = self._now()
        for servo in ids:
            self._owed.setdefault(servo, Debt(now_s, now_s)).since_s = now_s

    def _distrust(self, data: bytes, ids: Sequence[int]) -> None:
        """Takes bytes that nobody waited for: late proofs count, others owe; garbage may be of all we want to ask."""
        self._stats.stale_bytes += len(data)
        statuses, scan = self._protocol.scan(data, is_final=True)
        for status in statuses:
            if len(status.data) in FENCE_SIZES:
                if self._is_proof(status):
                    self._owed.pop(status.id, None)
                self._forget_fences(status)
            elif status.id not in self._owed:
                self.owe([status.id])
        if scan.num_discarded:
            self.owe([servo for servo in ids if servo not in self._owed])

    def _settle(self, ids: Sequence[int], is_eager: bool) -> dict[int, Fault]:
        """Collects what these devices owe; returns a fault for each that stays silent."""
        now_s = self._now()
        owing = [servo for servo in ids if servo in self._owed]
        due = [servo for servo in owing if is_eager or now_s >= self._owed[servo].due_s]
        answered, heard = self._fence(due) if due else (set(), set())
        if heard:
            self._answered_s = self._now()
        silent: dict[int, Fault] = {}
        for servo in owing:
            debt = self._owed[servo]
            if servo in answered:
                del self._owed[servo]
            elif servo in due:
                is_alone = servo not in heard and self._answered_s >= debt.failed_s
                debt.fail(self._now(), self._settings.max_silence_s, is_alone=is_alone)
                silent[servo] = self._silence(servo)
            else:
                detail = f"servo {servo} is silent; it is asked again in a moment"
                silent[servo] = Fault(servo, FaultKind.TIMEOUT, detail)
        return silent

    def _next_fence(self, ids: Sequence[int]) -> int | None:
        """Returns a length that none of these devices can still be answering; None when all are under way."""
        now_s = self._now()

        def sent_s(size: int) -> float:
            return max(self._sent_fences.get(servo, {}).get(size, -TOKEN_S) for servo in ids)

        size = next((size for size in FENCE_SIZES if now_s - sent_s(size) >= TOKEN_S), None)
        if size is None:
            size = min(FENCE_SIZES, key=sent_s)
            if now_s - sent_s(size) < USED_TOKEN_S or sent_s(size) >= self._passed_s:
                return None
        for servo in ids:
            self._sent_fences.setdefault(servo, {})[size] = now_s
        return size

    def _is_proof(self, status: Status) -> bool:
        """True when this answers a fence that was sent after everything that the device owes."""
        sent_s = self._sent_fences.get(status.id, {}).get(len(status.data))
        debt = self._owed.get(status.id)
        return sent_s is not None and (debt is None or sent_s >= debt.since_s)

    def _forget_fences(self, status: Status) -> None:
        """Frees the lengths of the fence that this answers and of all before it: those were answered, or never will."""
        sent = self._sent_fences.get(status.id, {})
        sent_s = sent.get(len(status.data))
        if sent_s is not None:
            self._passed_s = max(self._passed_s, sent_s)
            self._sent_fences[status.id] = {size: time_s for size, time_s in sent.items() if time_s > sent_s}

    def _fence(self, ids: Sequence[int]) -> tuple[set[int], set[int]]:
        """Reads a length that is kept for this; returns who of these has answered it, and who has said anything."""
        protocol, stats = self._protocol, self._stats
        size = self._next_fence(ids)
        packet = b""
        if size is not None:  # else so many are under way that it is enough to listen
            stats.fences += 1
            packet = protocol.read(ids[0], 0, size) if len(ids) == 1 else protocol.sync_read(0, size, ids)
        num_bytes = len(ids) * protocol.status_size(size or FENCE_SIZES[-1])
        wait_s = min(self._settings.reply_timeout_s, max(_MIN_FENCE_S, self._patience.wait_s))
        deadline_s = self._now() + self.wire_s(len(packet) + num_bytes, len(ids)) + wait_s
        if packet:
            self._transport.write(packet, deadline_s)
        data = b""
        answered: set[int] = set()
        heard: set[int] = set()
        is_over = False
        while not is_over:
            chunk = self._transport.read(deadline_s)
            data, is_over = data + chunk, not chunk
            statuses, _ = protocol.scan(data, is_final=is_over)
            answered = {status.id for status in statuses if status.id in ids and self._is_proof(status)}
            heard = {status.id for status in statuses}
            is_over = is_over or len(answered) == len(ids)
        for status in statuses:
            self._forget_fences(status)
        num_own = len(packet) * data.startswith(packet) + len(answered) * protocol.status_size(size or 0)
        stats.stale_bytes += max(0, len(data) - num_own)
        return answered, heard

    def _converse(self, request: Request) -> dict[int, Reply | Fault]:
        self._stats.transactions += 1
        now, read, replies = self._now, self._transport.read, request.replies
        start_s = now()
        deadline_s = start_s + request.wire_s + self._patience.wait_s
        self._transport.write(request.packet, deadline_s)
        data = body = chunk = read(deadline_s)
        time_s = now()
        clean = replies.clean(data, time_s)
        if clean is not None:  # the usual case: one piece, nothing wrong
            self._patience.answered(time_s - start_s - request.wire_s)
            self._stats.replies += len(clean)
            self._answered_s, self._passed_s = time_s, start_s
            self.is_complete = True
            return clean  # type: ignore[return-value]  # a dict of answers, none of which is a fault
        while chunk:
            body = _without_echo(data, request.packet)
            if len(body) >= replies.num_bytes:
                statuses = replies.match(body)
                if statuses is not None:
                    return self._believe(request, statuses, start_s)
                found, is_waiting = self._pick(body, request, is_final=False)
                if len(found) == len(request.ids) or not is_waiting:
                    break
            chunk = read(deadline_s)
            data += chunk
        return self._conclude(request, body, start_s)

    def _believe(self, request: Request, statuses: Sequence[Status], start_s: float) -> dict[int, Reply | Fault]:
        now_s = self._now()
        self._patience.answered(now_s - start_s - request.wire_s)
        self._stats.replies += len(statuses)
        self._answered_s, self._passed_s = now_s, start_s
        answers: dict[int, Reply | Fault] = {}
        self.is_complete = True
        for status in statuses:
            servo, error, data = status
            answers[servo] = self._judge(status, now_s) if error else Reply(servo, 0, data, now_s)
        return answers

    def _judge(self, status: Status, now_s: float) -> Reply | Fault:
        """Returns what a status with an error byte is."""
        errors = self._stats.errors
        errors[status.id] = errors.get(status.id, 0) + 1
        if self._protocol.is_rejection(status.error):
            words = self._protocol.describe_error(status.error)
            return Fault(status.id, FaultKind.REJECTED, f"servo {status.id} refused: {words}")
        return Reply(status.id, status.error, status.data, now_s)

    def _pick(self, body: bytes, request: Request, *, is_final: bool) -> tuple[dict[int, Status], bool]:
        """Returns the answers of the right ids and lengths, and whether a packet is still incomplete.

        Of one id, two answers that differ are none.
        """
        if isinstance(request.replies, DynamixelFastReplies):
            return {status.id: status for status in request.replies.prefix(body)}, len(body) < request.replies.num_bytes
        statuses, scan = self._protocol.scan(body, is_final=is_final)
        found: dict[int, Status] = {}
        doubtful: set[int] = set()
        for status in statuses:
            size = request.sizes.get(status.id)
            is_refusal = status.error and not status.data
            if size is None or (len(status.data) != size and not is_refusal):
                continue
            if status.id in found and found[status.id] != status:
                doubtful.add(status.id)
            found[status.id] = status
        return {servo: found[servo] for servo in found if servo not in doubtful}, scan.num_used < len(body)

    def _conclude(self, request: Request, body: bytes, start_s: float) -> dict[int, Reply | Fault]:
        """Makes the best of what came: answers that are right, faults for the rest, who owe from now on."""
        stats, now_s = self._stats, self._now()
        found, _ = self._pick(body, request, is_final=True)
        if len(found) == len(request.ids):
            self._patience.answered(now_s - start_s - request.wire_s)
        if found:
            self._answered_s, self._passed_s = now_s, start_s
        answers: dict[int, Reply | Fault] = {}
        is_damaged = len(body) > sum(self._protocol.status_size(len(status.data)) for status in found.values())
        for servo in request.ids:
            status = found.get(servo)
            if status is None:
                answers[servo] = self._damage(servo) if is_damaged else self._silence(servo)
            elif status.error and len(status.data) != request.sizes[servo]:
                words = self._protocol.describe_error(status.error)
                answers[servo] = Fault(servo, FaultKind.REJECTED, f"servo {servo} refused: {words}")
                stats.errors[servo] = stats.errors.get(servo, 0) + 1
            else:
                answers[servo] = self._judge(status, now_s) if status.error else Reply(servo, 0, status.data, now_s)
                stats.replies += 1
        missing = [servo for servo in request.ids if servo not in found]
        self.is_complete = not missing
        if missing:
            self.owe(missing)
            if not is_damaged:
                self._patience.failed()
        return answers

    def _silence(self, servo: int) -> Fault:
        self._stats.timeouts += 1
        return Fault(
            servo, FaultKind.TIMEOUT, f"servo {servo} did not answer; check its cable, power, id and baud rate"
        )

    def _damage(self, servo: int) -> Fault:
        self._stats.corrupt += 1
        return Fault(
            servo,
            FaultKind.CORRUPT,
            f"the answer of servo {servo} was damaged; check its plug and ground, and that no id is used twice",
        )


def _without_echo(data: bytes, packet: bytes) -> bytes:
    """Returns what came behind what was sent, if it came back; nothing while that is still coming."""
    if data.startswith(packet):
        return data[len(packet) :]
    return b"" if packet.startswith(data) else data
