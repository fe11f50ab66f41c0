"""References to the papers of losses and generators, as the documentation links them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """Title, year and address of a paper."""

    title: str
    year: int
    at: str
    """arXiv number or URL."""

    @property
    def url(self) -> str:
        """URL of the paper."""
        return self.at if self.at.startswith("https://") else f"https://arxiv.org/abs/{self.at}"

    def __str__(self) -> str:
        """Return the reference as a Markdown link."""
        return f"[{self.title}, {self.year}]({self.url})"
