"""A reporter for tests."""


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, report: object) -> None:
        pass

    def note(self, message: str) -> None:
        self.lines.append(message)
