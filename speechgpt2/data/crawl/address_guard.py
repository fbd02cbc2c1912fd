"""Blocks connections to private addresses when a socket is created.

A host name may resolve to any address, differently each time, and a redirect may lead anywhere. So the check uses the
address at the moment of the connection, and no socket is created for a forbidden one.
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


class AddressGuard:
    """Creates sockets to public addresses and to the `allowed` networks ("127.0.0.0/8") only."""

    def __init__(self, allowed: Sequence[str] = ()):
        try:
            self._allowed: list[Network] = [ipaddress.ip_network(text) for text in allowed]
        except ValueError as error:
            raise UserError(f"not a network: {error}; write it as 127.0.0.0/8") from None

    def permits(self, address: str) -> bool:
        """Whether a connection to the numeric `address` is allowed."""
        inner = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
        if any(inner.version == network.version and inner in network for network in self._allowed):
            return True
        return inner.is_global and not (inner.is_multicast or inner.is_reserved)

    def socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """Create a socket for `address_info`; aiohttp calls it before it connects. Raises `ForbiddenAddress`."""
        family, socket_type, protocol, _, endpoint = address_info
        if not self.permits(endpoint[0]):
            raise ForbiddenAddress("not a public address")  # always the same text: equal errors are merged by text
        return socket.socket(family, socket_type, protocol)


def _unwrap(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 address, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.teredo:
        return address.teredo[1]
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
