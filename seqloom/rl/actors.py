"""Actor processes: each holds a copy of the agent and some of the groups, and acts while the learner learns.

    weights     one block of shared memory, written by the learner when a rollout is launched and by nobody else; every
                actor copies it before it acts, and the next launch comes only after all have answered
    messages    JSON one way, tensors in the safetensors format the other; no pickle

A rollout is launched with the weights of one step and taken at the next, so the lag is always the same and a run gives
the same bits with any number of actors, none included. An environment that fails ends its actor's work: the trace comes
back and is raised here, and all processes are ended. Actors end by themselves when the learner is gone.
"""

import json
import multiprocessing
import signal
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory

import torch
from safetensors.torch import load, save
from torch import Tensor

from seqloom.core.errors import DataError, SeqloomError
from seqloom.rl.rollouts import (
    RolloutPlan,
    packed,
    packed_groups,
    packed_ready,
    together,
    unpacked,
    unpacked_groups,
    unpacked_ready,
)
from seqloom.rl.runner import Collected, Group
from seqloom.rl.unroll import Agent

FINE, FAILED = b"+", b"-"
PATIENCE_SECONDS = 2.0
"""How long actors may take to end by themselves."""


class ActorRollouts:
    """Rollouts from other processes; see `Rollouts` for the methods."""

    def __init__(self, plan: RolloutPlan, count: int, build: Callable[[], Agent], weights: dict[str, Tensor]) -> None:
        """
        Args:
            count: of actors; at most as many as groups.
            build: makes an agent of the same shapes and number formats, on the CPU.
            weights: the agent's, by name.
        """
        assert 0 < count <= plan.groups
        self._count, self._order = count, list(range(plan.groups))
        size = sum(tensor.nbytes for tensor in weights.values())
        self._memory = SharedMemory(create=True, size=max(1, size))
        self._shared = _views(self._memory, weights)
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._close = weakref.finalize(self, _end, self._ends, self._processes, self._memory, self._shared)
        for actor in range(count):
            mine, theirs = context.Pipe()
            settings = (plan, self._order[actor::count], build, self._memory.name)
            process = context.Process(target=_act, args=(theirs, *settings), daemon=True, name=f"actor {actor}")
            process.start()
            theirs.close()
            self._ends.append(mine)
            self._processes.append(process)
        self._launched = False
        self._ready: Collected | None = None
        self._hear()  # that all environments are open

    def launch(self, agent: Agent, number: int) -> None:
        assert not self._launched
        with torch.no_grad():
            for name, tensor in agent.state_dict().items():
                self._shared[name].copy_(tensor)
        self._tell({"collect": number})
        self._launched, self._ready = True, None

    def take(self) -> Collected:
        ready = self._wait()
        assert ready is not None
        self._ready = None
        return ready

    def state(self) -> dict[str, Tensor]:
        ready = self._wait()
        self._tell({"state": True})
        return {**packed_ready(ready), **packed_groups(self._in_order(self._hear()))}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._wait()
        self._ready = unpacked_ready(state)
        groups = unpacked_groups(state, len(self._order))
        for actor, end in enumerate(self._ends):
            self._send(end, json.dumps({"load": True}).encode())
            for group in self._order[actor :: self._count]:
                self._send(end, save(groups[group]))
        self._hear()

    def close(self) -> None:
        self._close()

    def _wait(self) -> Collected | None:
        """The rollout that was launched and not taken."""
        if self._launched:
            self._ready = together([unpacked(part) for part in self._in_order(self._hear())])
            self._launched = False
        return self._ready

    def _in_order(self, answers: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """Answers of the actors about their groups, in the order of the groups."""
        return [answers[group % self._count][group // self._count] for group in self._order]

    def _tell(self, message: dict[str, int | bool]) -> None:
        for end in self._ends:
            self._send(end, json.dumps(message).encode())

    def _send(self, end: Connection, data: bytes) -> None:
        try:
            end.send_bytes(data)
        except OSError:
            self._fail(end)

    def _hear(self) -> list[list[dict[str, Tensor]]]:
        """One answer of every actor.

        Raises:
            SeqloomError: the first failure of an actor; all are ended.
        """
        answers = []
        for end in self._ends:
            try:
                kind, count = end.recv_bytes(), int(end.recv_bytes())
                parts = [end.recv_bytes() for _ in range(count)]
            except (EOFError, OSError):
                self._fail(end)
            if kind == FAILED:
                self.close()
                raise DataError(parts[0].decode())
            answers.append([load(part) for part in parts])
        return answers

    def _fail(self, end: Connection) -> None:
        process = self._processes[self._ends.index(end)]
        process.join(PATIENCE_SECONDS)
        code = process.exitcode
        self.close()
        raise DataError(f"{process.name} ended without a word (exit code {code}); was it killed, or out of memory?")


def _end(ends: list[Connection], processes: list[BaseProcess], memory: SharedMemory, shared: dict[str, Tensor]) -> None:
    """Close the pipes, which ends an actor that waits, and kill the others."""
    for end in ends:
        end.close()
    last = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        process.join(max(0.0, last - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    shared.clear()
    memory.close()
    memory.unlink()


def _views(memory: SharedMemory, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like the given ones that lie one after another in shared memory, widest numbers first."""
    views, start = {}, 0
    for name, tensor in sorted(weights.items(), key=lambda item: -item[1].element_size()):
        flat = torch.frombuffer(memory.buf, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        views[name] = flat.view(tensor.shape)
        start += tensor.nbytes
    return views


def _act(end: Connection, plan: RolloutPlan, mine: list[int], build: Callable[[], Agent], memory_name: str) -> None:
    """An actor's life."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the learner, which ends the actors when it is done
    torch.set_num_threads(1)
    memory = SharedMemory(memory_name)
    shared, groups = dict[str, Tensor](), list[Group]()
    try:
        groups = [plan.open_group(index) for index in mine]
        agent = build()
        weights = agent.state_dict()
        shared = _views(memory, weights)
        _answer(end, [])
        while True:
            message = json.loads(end.recv_bytes())
            if "collect" in message:
                for name, tensor in weights.items():
                    tensor.copy_(shared[name])
                _answer(end, [packed(group.collect(agent, message["collect"], plan.steps)) for group in groups])
            elif "state" in message:
                _answer(end, [group.get_state() for group in groups])
            else:
                _load(end, groups)
                _answer(end, [])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the learner is gone
    except SeqloomError as error:
        for part in (FAILED, b"1", str(error).encode()):
            end.send_bytes(part)
    finally:
        for group in groups:
            group.close()
        shared.clear()
        memory.close()


def _load(end: Connection, groups: list[Group]) -> None:
    for group in groups:
        group.set_state(load(end.recv_bytes()))


def _answer(end: Connection, parts: list[dict[str, Tensor]]) -> None:
    end.send_bytes(FINE)
    end.send_bytes(str(len(parts)).encode())
    for part in parts:
        # Copies, since the format takes no two tensors that share memory, as a state and its part may.
        whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in part.items()}
        end.send_bytes(save(whole))
