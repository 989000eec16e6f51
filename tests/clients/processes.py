"""The processes that checks run against: a berthd of their own, and the real llama.cpp server."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_MODEL = REPOSITORY / "models" / "demo-chat"
# A debug build loads and answers within a second; this is for machines under other load.
START_LIMIT_S = 60
STOP_LIMIT_S = 20
# Kept of what a process wrote, to show when it fails.
LINES_KEPT = 2000


def program():
    """The berthd to check: BERTHD in the environment, or the debug build."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    path = Path(os.environ.get("BERTHD", target / "debug" / "berthd"))
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run `cargo build` first")
    return path


def get_json(url, limit_s=10):
    with urllib.request.urlopen(url, timeout=limit_s) as answer:
        return json.load(answer)


def get_text(url, limit_s=10):
    with urllib.request.urlopen(url, timeout=limit_s) as answer:
        return answer.read().decode()


class Process:
    """A child whose lines are read as they come, so that it never waits for us."""

    def __init__(self, command, lines_of):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.child = subprocess.Popen([str(word) for word in command], text=True, errors="replace", **pipes)
        self.lines = []
        self._fresh = queue.Queue(maxsize=LINES_KEPT)
        for name in ("stdout", "stderr"):
            arguments = (getattr(self.child, name), name == lines_of)
            threading.Thread(target=self._read, args=arguments, daemon=True).start()

    def _read(self, pipe, watched):
        for line in pipe:
            self.lines.append(line)
            del self.lines[:-LINES_KEPT]
            if watched and not self._fresh.full():
                self._fresh.put(line)
        if watched:
            # Whoever waits for a line need not wait longer.
            self._fresh.put(None)

    def first(self, wanted):
        """The first line for which `wanted` says something, as it says it."""
        while True:
            try:
                line = self._fresh.get(timeout=START_LIMIT_S)
            except queue.Empty:
                line = None
            if line is None:
                raise SystemExit(f"{self.child.args[0]} did not start:\n{''.join(self.lines)}")
            found = wanted(line)
            if found:
                return found

    def stop(self):
        """Ends it as the service manager would. Its exit code; a process that stays is killed."""
        self.child.terminate()
        self.child.stdin.close()
        try:
            return self.child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.stop()


class Berthd(Process):
    """A daemon on free ports of loopback, with the tenants and servers of `config`."""

    HEAD = '[listen]\ndata = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nsocket = "{socket}"\n[log]\nformat = "json"\n'

    def __init__(self, config):
        self.folder = tempfile.TemporaryDirectory(prefix="berthd-clients-")
        self.socket = Path(self.folder.name) / "berthd.sock"
        path = Path(self.folder.name) / "berthd.toml"
        path.write_text(self.HEAD.format(socket=self.socket) + config)
        super().__init__([program(), "serve", "--config", path], "stderr")
        bound = self.first(self._serving)
        self.url, self.admin = (f"http://{bound[door]}" for door in ("data", "admin"))

    @staticmethod
    def _serving(line):
        """The addresses of the line that says that the daemon serves."""
        try:
            event = json.loads(line)
        except ValueError:
            return None
        event = event | event.get("fields", {})
        return event if event.get("message") == "serving" else None

    def status(self):
        """What `berthd status --json` prints."""
        command = [str(program()), "status", "--json", "--socket", str(self.socket)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=10).stdout)

    def server(self, name):
        """One server's part of the status."""
        return next(server for server in self.status()["servers"] if server["name"] == name)

    def metrics(self):
        return get_text(self.admin + "/metrics")

    def __exit__(self, *about):
        super().__exit__(*about)
        self.folder.cleanup()


class LlamaServer(Process):
    """The real llama.cpp server."""

    def __init__(self, model, name, slots, context):
        script = Path(__file__).with_name("llama_server.py")
        super().__init__([sys.executable, script, model, name, slots, context], "stdout")
        self.url = self.first(lambda line: line.partition("listening ")[2].strip())

    def slots_busy(self):
        return sum(slot["is_processing"] for slot in get_json(self.url + "/slots"))


def fresh_key():
    """A key and its digest, as `berthd key` makes them."""
    said = subprocess.run([str(program()), "key"], check=True, capture_output=True, text=True, timeout=10)
    words = dict(line.split(None, 1) for line in said.stdout.splitlines()[:2])
    return words["key"].strip(), words["digest"].strip()


def tenant(name, digest, more=""):
    """A tenant's entry of the configuration."""
    return f'[[tenants]]\nname = "{name}"\nkeys_sha256 = ["{digest}"]\n{more}\n'


def embedded(more=""):
    """The demo model inside the daemon."""
    return f'[[servers]]\nname = "demo"\nkind = "embedded"\nfolder = "{DEMO_MODEL}"\n{more}\n'
