"""The paper that a loss or a generator is from, as the documentation links it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A title, the year and where it is."""

    title: str
    year: int
    at: str
    """Its arXiv number, or an address."""

    @property
    def url(self) -> str:
        """Its address."""
        return self.at if self.at.startswith("https://") else f"https://arxiv.org/abs/{self.at}"

    def __str__(self) -> str:
        """A link in Markdown."""
        return f"[{self.title}, {self.year}]({self.url})"
