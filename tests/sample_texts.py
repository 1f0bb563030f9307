"""Texts to learn a tokenizer from in tests."""

CODE = 'def area(width, height):\n    """The area of a rectangle."""\n    return width * height  # 42\n\n\n'
PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n\n"
