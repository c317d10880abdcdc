"""The native protocol (docs/protocol.md) on asyncio transports."""

from headrace.gateways.native.server import NativeServer

__all__ = ["NativeServer"]
