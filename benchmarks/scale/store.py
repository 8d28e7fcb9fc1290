"""Object storage with a clock that is not real: times and costs are arithmetic, the order of things is simulated."""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """What a store gives and takes. Every one of them is an option of ``python -m benchmarks.scale``.

    The defaults are of Amazon S3 Standard, and no measurement. 0.1 to 0.2 s to the first byte, 5,500 GETs a second per
    prefix: Amazon's "Best Practices Design Patterns: Optimizing Amazon S3 Performance" (2019). $0.0004 per 1,000 GETs: as
    quoted in c3x.dev/blog/s3-request-fees-explained; nothing per byte within a region. The bandwidths are assumptions.
    """

    latency: float = 0.15  # seconds until a request's first byte
    connection: float = 50e6  # bytes/s that one connection carries
    connections: int = 64  # requests that a host has under way at once
    network: float = 1.25e9  # bytes/s of a host: 10 Gbit/s
    requests_per_second: float = 5500  # of one prefix
    price: float = 0.0004 / 1000  # of one GET
    price_per_gb: float = 0.0  # of what is carried: none within a region


class Store:
    """What one host asks for, in order; a request waits for a connection, and for its turn."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.requests = self.bytes = 0
        self._free = [0.0] * terms.connections  # when each connection is
        self._turn = 0.0
        self._rate = min(terms.connection, terms.network / terms.connections)

    def get(self, size: int, at: float) -> float:
        """Ask at time `at` for `size` bytes; return when the last of them is there."""
        start = max(at, self._free[0], self._turn)
        self._turn = start + 1 / self.terms.requests_per_second
        end = start + self.terms.latency + size / self._rate
        heapq.heapreplace(self._free, end)
        self.requests += 1
        self.bytes += size
        return end

    def download(self, size: int, piece: int, at: float) -> float:
        """Fetch a whole object as `mmds.remote` does: its length, then pieces, several at once."""
        known = self.get(0, at)
        return max(self.get(min(piece, size - offset), known) for offset in range(0, size, piece))

    @property
    def cost(self) -> float:
        """What was asked for until now costs so much."""
        return self.requests * self.terms.price + self.bytes / 1e9 * self.terms.price_per_gb
