"""Runs the real llama.cpp server, from the `xllamacpp` wheel, as a process of its own.

    python llama_server.py MODEL.gguf NAME SLOTS CONTEXT

Prints `listening URL` once it answers. Ends when its standard input ends, so that it never outlives
whoever started it.
"""

import sys

from xllamacpp import CommonParams, Server


def main():
    path, name, slots, context = sys.argv[1:]
    wanted = CommonParams()
    wanted.model.path = path
    wanted.model_alias = {name}
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = 0
    wanted.n_parallel = int(slots)
    wanted.n_ctx = int(context)
    # Checks share the machine with the daemon they check; and one thread adds up in one order.
    wanted.cpuparams.n_threads = 1
    wanted.cpuparams_batch.n_threads = 1
    wanted.endpoint_metrics = wanted.endpoint_slots = wanted.endpoint_props = True
    server = Server(wanted)
    print("listening", server.listening_address, flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
