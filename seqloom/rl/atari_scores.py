"""Returns of random play and of a person in some Atari games, as (random, human); the usual scale of the field.

    human-normalised = (return - random) / (human - random)

From the DQN papers (Mnih et al. 2015, Wang et al. 2016): episodes with up to 30 idle frames at the start.
"""

ATARI_SCORES: dict[str, tuple[float, float]] = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "bankheist": (14.2, 753.1),
    "battlezone": (2360.0, 37187.5),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "choppercommand": (811.0, 7387.8),
    "crazyclimber": (10780.5, 35829.4),
    "demonattack": (152.1, 1971.0),
    "enduro": (0.0, 860.5),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "hero": (1027.0, 30826.4),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kungfumaster": (258.5, 22736.3),
    "mspacman": (307.3, 6951.6),
    "pong": (-20.7, 14.6),
    "privateeye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "roadrunner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "spaceinvaders": (148.0, 1668.7),
    "upndown": (533.4, 11693.2),
}


def human_normalised(game: str, score: float) -> float | None:
    """A return on this scale; None for games that are not listed."""
    scores = ATARI_SCORES.get(game.replace("_", "").lower())
    return None if scores is None else (score - scores[0]) / (scores[1] - scores[0])
