"""A TCP proxy whose network can be stalled: connections stay, nothing passes."""

import asyncio
import threading
from collections.abc import Mapping


class FreezingProxies:
    """One proxy for each target port, all in a thread of their own.

    Args:
        ports: the proxy's port -> the port that it stands for, all on loopback.
    """

    def __init__(self, ports: Mapping[int, int]) -> None:
        self._ports = dict(ports)
        self._frozen: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def freeze(self, port: int) -> None:
        """Let nothing pass through the proxy at ``port``."""
        self._frozen.add(port)

    def thaw(self, port: int) -> None:
        """Let everything pass again, what was held back first."""
        self._frozen.discard(port)

    def close(self) -> None:
        """End all connections and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self) -> None:
        for port in self._ports:

            async def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port
            ) -> None:
                await self._accept(port, reader, writer)

            await asyncio.start_server(accept, "127.0.0.1", port)

    async def _accept(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            theirs = await asyncio.open_connection("127.0.0.1", self._ports[port])
        except OSError:
            writer.close()
            return
        for source, target in ((reader, theirs[1]), (theirs[0], writer)):
            task = self._loop.create_task(self._pass_on(port, source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, port: int, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await source.read(65536):
                while port in self._frozen:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()
