"""One arm, cycle by cycle: read, judge, decide the state, move, send. No process, no socket, no sleep.

What holds whatever the policy does: goals come from `Motion` alone, inside limits; a servo that fails never keeps the
others from being parked and let go; nothing moves after FAULT or ESTOP, or after a lost port, before a re-arm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.arm.holding import Holder
from roboalign.drivers.arm.joints import Joints
from roboalign.drivers.arm.judging import Judge
from roboalign.drivers.arm.messages import ArmState, Command, Order
from roboalign.drivers.arm.monitor import Monitor
from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.parking import Parking, ParkPhase
from roboalign.drivers.arm.reader import Reader
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.reliefs import Reliefs
from roboalign.drivers.arm.settings import CoreSettings
from roboalign.drivers.arm.states import State, StateMachine
from roboalign.drivers.arm.torque import TorqueShares
from roboalign.drivers.arm.tracing import CycleTrace
from roboalign.drivers.bus.types import PortLost
from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import RobotError

__all__ = ["ArmCore"]

HOLD_AFTER_S = 0.1
"""Without a fresh command for this long, or for one and a half control periods if that is more, the arm holds."""
FIRST_COMMAND_S = 5.0
"""An armed arm that is sent nothing for this long parks and lets go: its policy hangs before its first action."""
_STILL_S, _STILL_RAD = 0.1, 0.05  # what may move while the torque is still low
_REOPEN_S = 0.25
_GIVE_UP_S, _LAST_TRIES_S = 10.0, 3.0  # without a port, and without a policy or asked to close
_MAX_GAP_CYCLES = 3.0
_BUSY = (State.ARMED, State.ACTIVE, State.HOLD)

Float64Array = NDArray[np.float64]


class ArmCore:
    """The safety of one arm. `step` once a cycle, `handle` for every command, `lose_client` when the policy is gone."""

    def __init__(self, servos: ServoPort, joints: Joints, settings: CoreSettings, clock: Clock) -> None:
        """Stores what it works on; `open` touches the port."""
        self.joints, self.settings, self._label = joints, settings, joints.label
        self._servos, self._clock = servos, clock
        self.machine = StateMachine()
        self.reader = Reader(servos, joints.units, settings.motor_speed_rad_s, clock)
        self._trace = CycleTrace(joints.units, self.reader)
        self.motion = Motion(settings.lower_rad, settings.upper_rad, settings.max_speed_rad_s)
        self.torque = TorqueShares(settings.torque_caps)
        self._holder = Holder(servos, joints, self.reader, self.motion, self.torque)
        self._parking = Parking(self.motion, self.torque, settings.park_rad)
        self._reliefs = Reliefs(self.motion, self.torque)
        self._judge = Judge(servos, joints, self.reader, self.motion, self._holder, self._reliefs, clock)
        self._target: Float64Array | None = None
        self._due_s = 0.0
        self._command_s: float | None = None
        self._gone_s: float | None = None
        self._closing_s: float | None = None
        self._is_lost = False
        self._lost_s = self._reopen_s = self._last_s = 0.0
        self._cycles = 0

    @property
    def has_torque(self) -> bool:
        """True while goals are sent."""
        return self._holder.has_torque

    @property
    def _is_closing(self) -> bool:
        return self._closing_s is not None

    @property
    def is_done(self) -> bool:
        """True when the arm was let go and the port is closed."""
        return self.machine.state is State.DISCONNECTED

    def open(self) -> None:
        """Opens the port and checks the servos. Raises RobotError; the port is closed then."""
        try:
            limits = self._servos.open()
        except RobotError:
            self._servos.close()
            raise
        self._judge.monitor = Monitor(limits)
        self._last_s = self._clock.now()
        self._to(State.CONNECTED, "the servos answer, torque is off")

    def lose_client(self) -> None:
        """Notes that the policy's process is gone: hold now, park soon, let go, close."""
        if self._gone_s is None:
            self._gone_s = self._clock.now()
            if self.machine.state is State.ACTIVE:
                self._to(State.HOLD, "the policy's process is gone")

    def handle(self, command: Command) -> ArmState:
        """Takes a command and answers how the arm is; `error` in the answer says why it was refused. Never raises."""
        try:
            error = self._take(command)
        except PortLost as err:
            self._lose_port(err)
            error = str(err)
        except RobotError as err:
            error = str(err)
        found = self.state(error, command.number)
        return replace(found, trace=self._trace.take()) if command.order is Order.TRACE else found

    def _take(self, command: Command) -> str:
        if command.order is Order.CONNECT:
            return self._connect(command.rearm)
        if command.order is Order.ESTOP:
            return self._estop()
        if command.order is Order.CLOSE:
            self._closing_s = self._clock.now() if self._closing_s is None else self._closing_s
        if command.order in (Order.STATE, Order.TRACE, Order.CLOSE):
            return ""
        if self.machine.state not in (State.ACTIVE, State.HOLD):
            return self._why_not()
        if command.order is Order.GOAL:
            return self._aim(command)
        self._command_s, self._target = self._clock.now(), None
        if command.order is Order.PARK:
            self._park("asked to park", lets_go=False)
        elif command.order is Order.HOME:
            self._to(State.PARKING, "asked to go home")
            self._parking.start("asked to go home", lets_go=False, end_rad=self.settings.home_rad)
        elif self.machine.state is State.ACTIVE:
            self._to(State.HOLD, "asked to hold")
        return ""

    def _why_not(self) -> str:
        state, reason = self.machine.state, self.machine.reason
        if self.machine.needs_rearm:
            return f"the arm is stopped ({state.value}: {reason}); look at it, then call connect(rearm=True)"
        if state is State.CONNECTED:
            return f"torque is off ({reason}); call connect()"
        return f"the arm is busy ({state.value}: {reason}); wait, or call disconnect()"

    def _aim(self, command: Command) -> str:
        goal = np.array(command.motors_rad, dtype=np.float64)
        if goal.shape != self.motion.goal.shape or not np.isfinite(goal).all():
            return f"a goal of {goal.size} numbers was refused, expected {self.motion.goal.size} finite ones: {goal}"
        self._command_s = self._clock.now()
        self._target = np.clip(goal, self.motion.lower, self.motion.upper)
        self._due_s = self._command_s + min(max(command.within_s, 0.0), 1.0)
        if not self._judge.unreadable():  # else it holds until the joint can be read
            self._to(State.ACTIVE, "follows commands")
        return ""

    def _connect(self, rearm: bool) -> str:
        if self._is_closing or self._is_lost or (self.machine.needs_rearm and not rearm):
            return "the arm is being closed" if self._is_closing else self._why_not()
        if self.machine.needs_rearm:
            self._parking.finish()
            self.machine.rearm("re-armed", self._clock.now())
        if self.machine.state is not State.CONNECTED:
            return "" if self.machine.state in _BUSY else self._why_not()
        self._reliefs.clear()
        self._target = self._command_s = None
        error = self._servos.check() if self._holder.is_strange else ""  # another arm may have been plugged in
        error = error or self._holder.take()
        if error and (self.has_torque or self._holder.is_strange):  # it held until now, and goes on holding
            self._to(State.FAULT, error)
            return error
        if error:
            self._holder.let_go()
            return error
        self._to(State.ARMED, "soft start")
        return ""

    def _estop(self) -> str:
        """Stays where the last reading was; returns why that is not sure. Without torque there is nothing to send."""
        if self.is_done:
            return ""
        self._target = None
        self._parking.finish()
        self._to(State.ESTOP, "stopped by estop")
        if self._is_lost:
            return "the stop could not be sent, the port is lost: cut the power"
        if self._holder.is_strange:
            self._holder.take_back()
        return self._holder.stop() if self.has_torque else ""

    def step(self) -> None:
        """Does one cycle."""
        if self.is_done:
            return
        now = self._clock.now()
        period = min(max(now - self._last_s, 1e-4), _MAX_GAP_CYCLES / self.settings.rate_hz)
        self._last_s = now
        self._cycles += 1
        try:
            if self._is_lost:
                self._reopen()
            else:
                self.reader.cycle()
                self._judge.cycle(self._cycles, self)
                self._watch()
                self._move(period)
                self._holder.send(period)
                if self.has_torque:
                    self._trace.add(self._clock.now(), self.motion.goal.tolist())
        except PortLost as err:
            self._lose_port(err)
        try:
            self._end()
        except PortLost as err:
            self._lose_port(err)

    def _watch(self) -> None:
        """Arms, holds, parks: what time and silence bring about."""
        state, now, reader = self.machine.state, self._clock.now(), self.reader
        silent_s = 0.0 if self._command_s is None else now - self._command_s
        if self._gone_s is not None:
            silent_s = max(silent_s, now - self._gone_s)
        if state is State.ARMED:
            self._watch_start(now - self.machine.since_s, np.abs(np.array(reader.positions_rad) - self.motion.goal))
        elif state is State.ACTIVE and silent_s > max(HOLD_AFTER_S, 1.5 * self.settings.control_period_s):
            self._to(State.HOLD, f"no command for {silent_s:.2f} s")
        elif state is State.ACTIVE and self._command_s is None and now - self.machine.since_s > FIRST_COMMAND_S:
            self._park(f"no command within {FIRST_COMMAND_S:g} s of connect()", lets_go=True)
        is_alone = self._gone_s is not None or self._is_closing
        if self.machine.state is State.HOLD or (self.machine.state is State.FAULT and is_alone):
            if self._is_closing or silent_s >= self.settings.park_after_s:
                reason = "asked to close" if self._is_closing else f"no command for {silent_s:.1f} s"
                self._park(reason, lets_go=True)
        elif self.machine.state is State.ACTIVE and self._is_closing:
            self._park("asked to close", lets_go=True)
        elif self.machine.state is State.PARKING and is_alone and not self._parking.lets_go:
            reason = "asked to close" if self._is_closing else "the policy's process is gone"
            self._to(State.PARKING, reason)
            self._park(reason, lets_go=True)

    def _watch_start(self, since_s: float, moved_rad: Float64Array) -> None:
        """While the torque is low nothing may move; when it is full the arm is ready."""
        if since_s < _STILL_S and (moved_rad > _STILL_RAD).any():
            worst = int(np.argmax(moved_rad))
            self.fault(
                f"{self._label(worst)} moved by {moved_rad[worst]:.2f} rad while torque came on: check calibration"
            )
        elif self.torque.is_settled:
            self._to(State.ACTIVE, "armed")
            if self._gone_s is not None or self._is_closing:
                self._to(State.HOLD, "nobody commands")

    def _park(self, reason: str, *, lets_go: bool) -> None:
        """Begins to park; an arm that is not where it was left, after a lost port, is only let go."""
        self._target = None
        if self._holder.is_strange:
            self._holder.take_back()
        if self.machine.state is not State.PARKING:
            self._to(State.PARKING, reason)
        self._parking.start(reason, lets_go=lets_go, in_place=self._holder.is_strange)

    def _move(self, period: float) -> None:
        if self._parking.is_on:
            is_whole = self._judge.unreadable().keys() <= self._holder.limp  # else it waits for who comes back
            scale = self._judge.speed_scale if is_whole else 0.0
            phase = self._parking.step(period, scale, self.reader.positions_rad)
            if phase is ParkPhase.DONE:
                self._finish_parking()
        elif self.machine.state is State.ACTIVE and self._target is not None:
            target = self._reliefs.limit(self._target)
            self.motion.follow(target, self._due_s - self._clock.now(), period, self._judge.speed_scale)
        else:
            self.motion.brake(period)

    def _finish_parking(self) -> None:
        parking = self._parking
        late = ", ".join(self._label(index) for index in parking.late)
        text = f"{'stayed where it was' if parking.is_in_place else 'arrived'} ({parking.reason})"
        text += f", but {late} did not arrive: something blocks it" if late else ""
        if parking.lets_go:
            stubborn = self._holder.let_go()
            text += f" and let go{'; ' + stubborn if stubborn else ''}"
        self._command_s = self._clock.now()
        if self.machine.state is State.PARKING:
            self._to(State.CONNECTED if parking.lets_go else State.HOLD, text)
        elif parking.lets_go:  # after an estop
            self._to(self.machine.state, text)
        parking.finish()

    @property
    def target_rad(self) -> Float64Array | None:
        """Where the motors are asked to go; None when nowhere."""
        return self._target

    @property
    def keeps_torque(self) -> bool:
        """True while every motor is to have torque."""
        return self.machine.state in (*_BUSY, State.PARKING)

    def fault(self, reason: str) -> None:
        """Stops where it is, when it is busy."""
        if self.machine.state in _BUSY:
            self._target = None
            self._to(State.FAULT, reason)

    def cool(self, reason: str) -> None:
        """Parks and lets go, when it follows commands or holds."""
        if self.machine.state in (State.ACTIVE, State.HOLD):
            self._park(reason, lets_go=True)

    def hold(self, reason: str) -> None:
        """Holds, when it follows commands."""
        if self.machine.state is State.ACTIVE:
            self._to(State.HOLD, reason)

    def _lose_port(self, err: PortLost) -> None:
        """The port is gone: whatever the arm does now, it does alone."""
        if self._is_lost:
            return
        self._is_lost = True
        self._lost_s = self._clock.now()
        self._reopen_s = self._lost_s + _REOPEN_S
        self._target = None
        self._holder.lose()
        self._parking.finish()
        if not self.is_done and self.machine.state is not State.ESTOP:
            self._to(State.FAULT, f"{err}; plug it in again, look at the arm, then re-arm")

    def _reopen(self) -> None:
        """Tries to get the port back; what comes back is watched, and moves only after a re-arm."""
        if self._clock.now() < self._reopen_s:
            return
        self._reopen_s = self._clock.now() + _REOPEN_S
        try:
            self._servos.reopen()
        except RobotError:
            return
        problem = self._servos.check()
        self._is_lost = False
        self.reader.forget()
        found = f"the port was lost and is back{', but ' + problem if problem else ''}"
        self._to(self.machine.state, f"{found}; look at the arm, then re-arm")

    def _end(self) -> None:
        """Lets go and closes the port when nobody is left to command."""
        alone_s = self._gone_s if self._closing_s is None else self._closing_s
        if alone_s is None:
            return
        state, holder, reason = self.machine.state, self._holder, self.machine.reason
        if self._is_lost:
            lost_s = self._clock.now() - max(alone_s, self._lost_s)
            if lost_s < (_LAST_TRIES_S if self._is_closing else _GIVE_UP_S):
                return
            if holder.kept:
                reason = f"the port is lost, and what had torque keeps it ({reason})"
        elif state is State.ESTOP and (holder.has_torque or holder.is_strange):
            if not holder.has_torque:
                holder.take_back()
            self._parking.start("closed after estop", lets_go=True, in_place=True)
            return
        elif state not in (State.CONNECTED, State.ESTOP):
            return
        try:
            self._servos.close()
        finally:
            self.machine.close(reason, self._clock.now())

    def _to(self, state: State, reason: str) -> None:
        self.machine.to(state, reason, self._clock.now())

    def give_up(self) -> None:
        """Lets go where the arm is and closes the port, for an owner that cannot do its cycles any more."""
        try:
            self._holder.let_go()
        finally:
            self._servos.close()
            self.machine.close("given up after repeated failures", self._clock.now())

    def state(self, error: str = "", number: int = 0) -> ArmState:
        """Returns how the arm is."""
        now, readings = self._clock.now(), self.reader.readings
        return ArmState(
            state=self.machine.state,
            reason=self.machine.reason,
            time_s=now,
            position_rad=self.reader.positions_rad,
            age_s=self.reader.ages_s(now),
            goal_rad=tuple(self.motion.goal.tolist()),
            load=tuple(0.0 if reading is None else reading.load for reading in readings),
            volts=tuple(0.0 if reading is None else reading.volts for reading in readings),
            temperature_c=tuple(0.0 if reading is None else reading.temperature_c for reading in readings),
            torque_share=tuple(self.torque.now),
            alarms=self._judge.texts,
            late=self._parking.late,
            kept=self._holder.kept,
            error=error,
            number=number,
            counts={"cycles": self._cycles, "rejected": self.reader.rejected, **self._servos.counts()},
        )
