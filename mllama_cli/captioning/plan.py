"""What is to be done, known before a model is loaded."""

from dataclasses import dataclass

from mllama_cli.captioning.destinations import Destination
from mllama_cli.captioning.listing import Listing, Picture


@dataclass(frozen=True)
class Plan:
    """``total`` pictures and unreadable folders were found; ``pending`` pictures need a caption."""

    total: int
    pending: list[Picture]
    unreadable: list[tuple[str, str]]

    @property
    def skipped(self) -> int:
        """Pictures that have what was asked for already."""
        return self.total - len(self.pending) - len(self.unreadable)


def make_plan(listing: Listing, destination: Destination) -> Plan:
    """Leave out what is done."""
    pending = [picture for picture in listing.pictures if not destination.is_done(picture)]
    return Plan(len(listing.pictures) + len(listing.unreadable), pending, listing.unreadable)
