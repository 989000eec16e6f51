"""Publishes KV events as vLLM and SGLang do, with the libraries that they use: libzmq and msgspec.

Prints its port. Until a line comes on standard input it publishes empty batches, so that a subscriber can tell
that it is heard; then one batch in today's form, one in the older form, and a removal. At the next line it starts
anew on the same port, as a restarted engine does. Ends with standard input.
"""

import selectors
import sys
import time

import msgspec
import zmq


class Stored(msgspec.Struct, tag="BlockStored", omit_defaults=True):
    """Today's form: a map. Hashes are bytes of SHA-256."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple | None] | None = None
    group_idx: int | None = None


class OldStored(msgspec.Struct, tag="BlockStored", omit_defaults=True, array_like=True):
    """The older form: an array. Hashes are signed numbers."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None


class Removed(msgspec.Struct, tag="BlockRemoved", omit_defaults=True):
    block_hashes: list[bytes]
    medium: str | None


class Batch(msgspec.Struct, omit_defaults=True, array_like=True):
    ts: float
    events: list
    data_parallel_rank: int | None = None


def sha(number: int) -> bytes:
    return bytes([number]) * 32


BATCHES = [
    [
        Stored([sha(1), sha(2)], None, list(range(32)), 16, None, "GPU", None, [None, None], 0),
        Stored([sha(9)], None, list(range(16)), 16, 1, "GPU", "adapter"),
    ],
    [OldStored([-3], None, [70_000] * 16, 16, None), OldStored([4], -3, [2**32 - 1] * 16, 16, None)],
    [Removed([sha(2)], "GPU")],
    # Long enough for a frame with a long size.
    [Stored([sha(5)], sha(1), list(range(16)) * 64, 1024, None, None, None)],
]


def bind(socket: zmq.Socket, port: int) -> None:
    """Listens on loopback only, in the words that vLLM needs to be told so."""
    until = time.monotonic() + 10
    while True:
        try:
            return socket.bind(f"tcp://[::ffff:127.0.0.1]:{port or '*'}")
        except zmq.ZMQError:
            # A socket is closed a while after it was told to.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def play(port: int) -> int:
    """One life of a publisher, on a port of its own choice for 0; gives the port of the next."""
    socket = zmq.Context.instance().socket(zmq.PUB)
    # A subscriber that answers no ping would be cut off.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 50)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 500)
    socket.setsockopt(zmq.LINGER, 0)
    bind(socket, port)
    if not port:
        port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        print(port, flush=True)
    encoder = msgspec.msgpack.Encoder()
    number = 0

    def publish(events: list) -> None:
        nonlocal number
        payload = encoder.encode(Batch(time.time(), events, 0))
        socket.send_multipart((b"kv", number.to_bytes(8, "big"), payload))
        number += 1

    waiting = selectors.DefaultSelector()
    waiting.register(sys.stdin, selectors.EVENT_READ)
    while not waiting.select(0.02):
        publish([])
    if sys.stdin.readline():
        for events in BATCHES:
            publish(events)
        # Longer than a subscriber that answers no ping would live.
        time.sleep(1)
        again = sys.stdin.readline()
        socket.close()
        return port if again else 0
    return 0


def main() -> None:
    port = 0
    while port := play(port):
        pass


if __name__ == "__main__":
    main()
