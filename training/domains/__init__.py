"""Domains: how sources of one kind become records, how these are split, checked, measured and named on a card.

One file per domain. A new one is a subclass of [`Domain`] in a file of its own, entered in ``DOMAINS`` below.
"""

from __future__ import annotations

from difflm.errors import ArgumentError
from difflm.training.domains.domain import CardWords, Domain, Reading
from difflm.training.domains.tables import Tables


DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (Tables(),)}

__all__ = ["DOMAINS", "CardWords", "Domain", "Reading", "find_domain"]


def find_domain(domain: str | Domain) -> Domain:
    """The domain of this name; one's own is passed on.

    Raises
    ------
    ArgumentError
        If there is none.
    """
    if isinstance(domain, Domain):
        return domain
    if domain not in DOMAINS:
        raise ArgumentError(f"domain={domain!r} is not one of {', '.join(DOMAINS)}.")
    return DOMAINS[domain]
