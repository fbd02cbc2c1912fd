"""No connection to where a crawler has no business: the guard sits where sockets are made.

A host name may resolve to anything, differently each time, and a redirect may lead anywhere. So nothing is decided
from names: the address is judged at the moment when the connection to it is made, and no socket comes into being for
a forbidden one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from speechgpt2.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class ForbiddenAddress(OSError):
    """The address is private, loopback, link-local or otherwise not public."""


class Guard:
    """Makes sockets to public addresses and to the `allowed` networks ("127.0.0.0/8"), and to nothing else."""

    def __init__(self, allowed: Sequence[str] = ()):
        try:
            self._allowed: list[Network] = [ipaddress.ip_network(text) for text in allowed]
        except ValueError as error:
            raise UserError(f"not a network: {error}; write it as 127.0.0.0/8") from None

    def permits(self, address: str) -> bool:
        """Whether a connection to the numeric `address` may be made."""
        inner = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
        if any(inner.version == network.version and inner in network for network in self._allowed):
            return True
        return inner.is_global and not (inner.is_multicast or inner.is_reserved)

    def socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """A socket for `address_info`, as aiohttp asks for one before it connects. Errors: `ForbiddenAddress`."""
        family, kind, protocol, _, place = address_info
        if not self.permits(place[0]):
            raise ForbiddenAddress("not a public address")  # one text for all, as alike faults are merged by text
        return socket.socket(family, kind, protocol)


def _unwrap(address: Address) -> Address:
    """The IPv4 address that an IPv6 address carries inside, if it does: mapped, 6to4, Teredo, NAT64, compatible."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.teredo:
        return address.teredo[1]
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
