"""Messages of the groups as tests look at them: whole. (The machine decodes step by step, since what is malformed
depends on its mode.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pvecfs.replica.messages import (
    BASE,
    MessageType,
    Normal,
    State,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from pvecfs.tree.errors import MalformedMessage

Message = Normal | SyncStart | State | Update | UpdateComplete | VerifyRequest | Verify

_DECODERS: dict[MessageType, Callable[[bytes], Message]] = {
    MessageType.NORMAL: Normal.decode,
    MessageType.SYNC_START: SyncStart.decode,
    MessageType.STATE: State.decode,
    MessageType.UPDATE: Update.decode,
    MessageType.UPDATE_COMPLETE: UpdateComplete.decode,
    MessageType.VERIFY_REQUEST: VerifyRequest.decode,
    MessageType.VERIFY: Verify.decode,
}


class Header(NamedTuple):
    """The base header of any message (C{reserved} is not kept)."""

    type: int
    subtype: int
    protocol_version: int
    time: int

    @classmethod
    def decode(cls, data: bytes) -> Header:
        if len(data) < BASE.size:
            raise MalformedMessage(f"base header: {len(data)} bytes, {BASE.size} needed")
        return cls._make(BASE.unpack_from(data)[:4])


def decode(data: bytes) -> Message:
    """The message that C{data} is.

    @raise MalformedMessage: no message of a known type.
    """
    type_ = Header.decode(data).type
    try:
        decoder = _DECODERS[MessageType(type_)]
    except ValueError:
        raise MalformedMessage(f"message of unknown type {type_} at offset 0") from None
    return decoder(data)
