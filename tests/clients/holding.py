"""Who holds what, with a real llama.cpp server: its process is found by its socket, and the memory that a
simulated card says it has is its own.

    python holding.py

Beside it on the card: a stranger, and the daemon's embedded model on none.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import Checks, same, true, until
from llama_cpp import CONTEXT, MODEL, SLOTS, convert
from processes import Berthd, LlamaServer, Process, embedded, fresh_key, program, tenant

GIB = 1 << 30
# Rounds of readings are a fifth of a second apart; the rest is room for a busy machine.
SEEN_LIMIT_S = 20


class Cards(Process):
    """Simulated GPUs."""

    def __init__(self, folder):
        self.folder = folder
        super().__init__([program(), "simulate", "--gpu", folder, "--cards", "1", "--card", "h200"], "stdout")
        self.first(lambda line: "Commands are taken" in line)

    def do(self, command):
        call = [str(program()), "simulate", "--gpu", str(self.folder), "--once", command]
        subprocess.run(call, check=True, capture_output=True, timeout=10)

    def reading(self, name):
        """A reading of the card, as the library's file has it."""
        return int(re.search(rf"\b{name}=(\d+)", (self.folder / "state").read_text())[1])


class World:
    """The daemon, the card, the real server, and a stranger."""

    def __init__(self, daemon, cards, llama, stranger, path):
        self.daemon, self.cards, self.llama, self.stranger, self.path = daemon, cards, llama, stranger, path


def rows(daemon):
    """Whose the card's memory is: (holder, server) to bytes."""
    found = re.findall(
        r'^berthd_gpu_holder_memory_bytes\{gpu="[^"]*",holder="([^"]*)",server="([^"]*)"\} (\d+)', daemon.metrics(), re.M
    )
    return {(holder, server): int(held) for holder, server, held in found}


def table(held):
    return "; ".join(f"{server or holder} {bytes_ / GIB:.3f} GiB" for (holder, server), bytes_ in sorted(held.items()))


def whole(world, held):
    """No byte is unassigned: the rows add up to what the card has in use, and what is reserved where that is read."""
    used, reserved = world.cards.reading("mem_used"), world.cards.reading("mem_reserved")
    return sum(held.values()) in (used, used + reserved)


def every_byte(world):
    world.cards.do(f"proc 0 pid={world.llama.child.pid} mem=24GiB name=llama")
    world.cards.do(f"proc 0 pid={world.stranger.pid} mem=7GiB name=train")
    world.cards.do(f"set 0 mem_used={33 * GIB}")

    def settled():
        held = rows(world.daemon)
        divided = held.get(("server", "llama")) == 24 * GIB and held.get(("foreign", "")) == 7 * GIB
        return held if divided and whole(world, held) else None

    held, taken = until("the server has its bytes and the stranger its own", SEEN_LIMIT_S, settled)
    same("rows", {holder for holder, _ in held}, {"server", "foreign", "driver"})
    return f"{table(held)}; after {taken:.2f} s"


def known_by_its_socket(world):
    lines = re.findall(r"^berthd_server_gpu\{(.*)\} 1", world.daemon.metrics(), re.M)
    same("servers on GPUs", len(lines), 1)
    true(f"the real server by its socket: {lines}", 'server="llama"' in lines[0] and 'how="socket"' in lines[0])
    return "the embedded model is on none"


def restarted(world):
    """Another process on another port is no server's, until it is found by its own socket: it is offered."""
    pid = world.llama.child.pid
    world.llama.stop()
    with LlamaServer(world.path, MODEL, SLOTS, CONTEXT) as fresh:
        world.cards.do(f"end 0 pid={pid}")
        world.cards.do(f"proc 0 pid={fresh.child.pid} mem=20GiB name=llama")
        world.cards.do(f"set 0 mem_used={29 * GIB}")
        name = f"llama.cpp-{fresh.url.rpartition(':')[2].strip('/')}"

        def settled():
            held = rows(world.daemon)
            return held if held.get(("server", name)) == 20 * GIB and whole(world, held) else None

        held, taken = until(f"{name} is found by its process and has its bytes", SEEN_LIMIT_S, settled)
        true("nothing is left with the old one", ("server", "llama") not in held)
        return f"{table(held)}; after {taken:.2f} s"


def main():
    checks = Checks()
    _, digest = fresh_key()
    with tempfile.TemporaryDirectory(prefix="berthd-holding-") as folder:
        path = Path(folder) / f"{MODEL}.gguf"
        convert(path)
        with Cards(Path(folder) / "cards") as cards, LlamaServer(path, MODEL, SLOTS, CONTEXT) as llama:
            gpu = f'[gpu]\nnvml_library = "{cards.folder}/libnvidia-ml.so.1"\nperiod_s = 0.2\nfound_servers = "adopt"\n'
            server = f'[[servers]]\nname = "llama"\nkind = "llama.cpp"\nurl = "{llama.url}"\n'
            config = "[probe]\ndiscover = false\n" + gpu + tenant("checks", digest) + server + embedded()
            stranger = subprocess.Popen(["sleep", "600"])
            try:
                with Berthd(config) as daemon:
                    world = World(daemon, cards, llama, stranger, path)
                    for check in (every_byte, known_by_its_socket, restarted):
                        checks.check(f"holding {check.__name__}", check, world)
            finally:
                stranger.kill()
                stranger.wait()
    checks.end("holding")


if __name__ == "__main__":
    sys.exit(main())
