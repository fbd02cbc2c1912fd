"""Wire protocols over plain TCP, each on an address of its own. Such protocols know no API keys."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from speechgpt2.errors import UserError
from speechgpt2.server.auth import Principal
from speechgpt2.server.config import ServerConfig, split_address
from speechgpt2.server.gateway import Gateway, WireProtocol

log = logging.getLogger("sg2.server")
CLOSE_TIMEOUT = 5.0  # seconds
SPARE_CONNECTIONS = 16  # more than slots, for clients that only ask what there is


class TcpProtocol(WireProtocol, ABC):
    """A wire protocol over TCP.

    Attributes:
        name: The protocol's name in texts.
        port: The port on which it listens; 0 if it does not.
        principal: Stands for its clients.
    """

    name: str
    principal: Principal

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def address(self, config: ServerConfig) -> str | None:
        """Return the address of the settings on which to listen; None for none."""

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""

    async def open(self) -> None:
        """Listen, if the settings say so.

        Raises:
            UserError: The address is in use, or not one of this machine.
        """
        address = self.address(self.gateway.config)
        if address is None:
            return
        host, port = split_address(address)
        try:
            self._server = await asyncio.start_server(self._accept, host, port)
        except OSError as error:
            raise UserError(f"cannot listen on {address} for {self.name}: {error.strerror or error}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        print(f"serving {self.name} at tcp://{host}:{self.port}", flush=True)

    async def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection, unless there are too many."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= 2 * self.gateway.config.slots + SPARE_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the server stops
        except Exception:
            log.exception(f"a connection of {self.name} failed")
        finally:
            self._tasks.discard(task)
            writer.close()
