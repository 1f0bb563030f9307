"""Three games on small RGB images that need nothing installed, each for one ability.

catch        a falling ball, a paddle: see, aim, act
key_door     a map larger than the view: fetch the key, pass the door, reach the goal
cue_memory   a colour at the beginning asks for a place at the end: remember, then look for what was remembered
"""

from collections import deque

import numpy as np

from seqloom.rl.environment import Frame
from seqloom.rl.game import Game

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right, as steps in row and column."""


class Catch(Game):
    """Four balls fall one after another, drifting and bouncing off the walls; +1 for each one caught, -1 for each lost.

    The field has 12 x 12 cells of two pixels; the paddle is three cells wide and starts where it last was.
    """

    actions = ("left", "stay", "right")
    cells = 12
    balls = 4
    longest = balls * (cells - 1)
    best = float(balls)

    def begin(self, draw: np.random.Generator) -> None:
        self._starts = draw.integers(self.cells, size=self.balls).tolist()
        self._drifts = draw.integers(-1, 2, size=self.balls).tolist()
        self._paddle = int(draw.integers(1, self.cells - 1))
        self._drop(0)

    def _drop(self, ball: int) -> None:
        self._ball, self._row = ball, 0
        self._column, self._drift = self._starts[ball], self._drifts[ball]

    def advance(self, action: int) -> tuple[float, bool]:
        self._paddle = min(max(self._paddle + action - 1, 1), self.cells - 2)
        self._row += 1
        if not 0 <= self._column + self._drift < self.cells:
            self._drift = -self._drift
        self._column += self._drift
        if self._row < self.cells - 1:
            return 0.0, False
        reward = 1.0 if abs(self._column - self._paddle) <= 1 else -1.0
        over = self._ball + 1 == self.balls
        if not over:
            self._drop(self._ball + 1)
        return reward, over

    def paint(self) -> Frame:
        field = np.zeros((self.cells, self.cells, 3), dtype=np.uint8)
        field[-1, self._paddle - 1 : self._paddle + 2] = (60, 220, 60)
        field[self._row, self._column] = (255, 80, 80)
        return _enlarged(field, 2)

    def remember(self) -> list[int]:
        return [self._ball, self._row, self._column, self._drift, self._paddle]

    def recall(self, numbers: list[int]) -> None:
        self._ball, self._row, self._column, self._drift, self._paddle = numbers


class KeyDoor(Game):
    """Two rooms with a wall between them; +1 for the key, the door and the goal each, in this order.

    The world has 9 x 9 cells, of which the player sees the 7 x 7 around itself, four pixels each. The door opens to
    whoever has the key, and the player's colour shows whether it does. Some walls inside the rooms differ by episode.
    """

    rows = columns = 28
    actions = ("up", "down", "left", "right")
    cells, view = 9, 7
    longest = 100
    best = 3.0
    wall, floor, closed, open_, key, goal = 1, 0, 2, 3, 4, 5
    colours = np.array(
        [(30, 30, 30), (110, 110, 110), (170, 90, 30), (90, 60, 30), (240, 220, 60), (70, 220, 90)], dtype=np.uint8
    )

    def begin(self, draw: np.random.Generator) -> None:
        while not self._lay_out(draw):
            pass
        self._has_key = self._opened = False

    def _lay_out(self, draw: np.random.Generator) -> bool:
        """Draw a map; False if something on it cannot be reached."""
        last = self.cells - 1
        world = np.full((self.cells, self.cells), self.wall)
        world[1:last, 1:last] = self.floor
        middle = self.cells // 2
        world[:, middle] = self.wall
        world[int(draw.integers(1, last)), middle] = self.closed
        for left in (1, middle + 1):
            world[int(draw.integers(2, last - 1)), int(draw.integers(left, left + middle - 1))] = self.wall
        near, far = (
            [(y, x) for y in range(1, last) for x in range(left, left + middle - 1) if world[y, x] == self.floor]
            for left in (1, middle + 1)
        )
        player, key = draw.permutation(len(near))[:2]
        (self._y, self._x), self._key = near[player], near[key]
        self._goal = far[int(draw.integers(len(far)))]
        self._world = world
        return {self._key, self._goal} <= self._reached()

    def _reached(self) -> set[tuple[int, int]]:
        found, open_ends = {(self._y, self._x)}, deque([(self._y, self._x)])
        while open_ends:
            y, x = open_ends.popleft()
            for place in ((y + dy, x + dx) for dy, dx in MOVES):
                if place not in found and self._world[place] != self.wall:
                    found.add(place)
                    open_ends.append(place)
        return found

    def advance(self, action: int) -> tuple[float, bool]:
        dy, dx = MOVES[action]
        place = self._y + dy, self._x + dx
        kind = self._world[place]
        if kind == self.wall or (kind == self.closed and not self._has_key):
            return 0.0, False
        self._y, self._x = place
        reward = 0.0
        if place == self._key and not self._has_key:
            self._has_key, reward = True, 1.0
        if kind == self.closed and not self._opened:
            self._opened, reward = True, 1.0
        over = place == self._goal
        return (1.0 if over else reward), over

    def paint(self) -> Frame:
        edge = self.view // 2
        cells = self._world.copy()
        if self._opened:
            cells[cells == self.closed] = self.open_
        cells[self._goal] = self.goal
        if not self._has_key:
            cells[self._key] = self.key
        cells = np.pad(cells, edge, constant_values=self.wall)
        field = self.colours[cells[self._y : self._y + self.view, self._x : self._x + self.view]]
        field[edge, edge] = (250, 160, 240) if self._has_key else (80, 140, 250)
        return _enlarged(field, self.rows // self.view)

    def remember(self) -> list[int]:
        return [self._y, self._x, int(self._has_key), int(self._opened)]

    def recall(self, numbers: list[int]) -> None:
        self._y, self._x, has_key, opened = numbers
        self._has_key, self._opened = bool(has_key), bool(opened)


class CueMemory(Game):
    """A colour at the left edge, an empty image for 2 to 4 steps, then the four colours in a column at the right edge.

    The action taken then names a place from the top; +1 if the cue's colour is there, 0 if not. Actions before have no
    effect. The cue is too far from the places for features that move a cell a step to meet them in time, so the agent
    must carry it and look for it: state-independent queries see four colours and not which one is asked for.
    """

    actions = ("first", "second", "third", "fourth")
    longest = 6
    best = 1.0
    colours = ((230, 50, 50), (60, 200, 60), (70, 90, 240), (230, 210, 50))

    def begin(self, draw: np.random.Generator) -> None:
        self._order = draw.permutation(len(self.colours)).tolist()
        self._cue = int(draw.integers(len(self.colours)))
        self._delay = int(draw.integers(2, 5))
        self._time = 0

    def advance(self, action: int) -> tuple[float, bool]:
        self._time += 1
        if self._time <= self._delay + 1:
            return 0.0, False
        return float(self._order[action] == self._cue), True

    def paint(self) -> Frame:
        frame = np.zeros((self.rows, self.columns, 3), dtype=np.uint8)
        if self._time == 0:
            frame[9:15, :4] = self.colours[self._cue]
        elif self._time > self._delay:
            for place, colour in enumerate(self._order):
                frame[6 * place + 1 : 6 * place + 5, -4:] = self.colours[colour]
        return frame

    def remember(self) -> list[int]:
        return [self._time]

    def recall(self, numbers: list[int]) -> None:
        (self._time,) = numbers


def _enlarged(field: Frame, factor: int) -> Frame:
    return field.repeat(factor, 0).repeat(factor, 1)


GAMES: dict[str, type[Game]] = {"catch": Catch, "key_door": KeyDoor, "cue_memory": CueMemory}
