"""Starts the binary that LONGHOUSE_BIN names several times and measures it from outside."""

import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY = os.environ["LONGHOUSE_BIN"]
# The server reads LONGHOUSE_* as settings: ours are not for it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LONGHOUSE_")}
STARTS = 5
START_LIMIT = 30.0
SETTLE_SECONDS = 5.0


def free_port():
    """A TCP port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def memory(pid):
    """Resident set and private part of it, in bytes, from /proc."""
    values = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kibibytes = line.split()[:2]
        values[name.rstrip(":")] = int(kibibytes) * 1024
    return values["Rss"], values["Private_Clean"] + values["Private_Dirty"]


def answers(port):
    """Whether the client API answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_matrix/client/versions", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def one_start(folder):
    """One start on a data directory: seconds to the first answer, memory after a rest, seconds to stop."""
    http, turn, sfu_udp, sfu_tcp = (free_port() for _ in range(4))
    config = folder / "longhouse.toml"
    config.write_text(
        f'server_name = "bench.test"\ndata_dir = "{folder}/data"\n'
        f'[listen]\naddresses = ["127.0.0.1:{http}"]\npublic_url = "http://127.0.0.1:{http}"\n'
        f'[turn]\nlisten = ["127.0.0.1:{turn}"]\n'
        f'[sfu]\nudp_listen = "127.0.0.1:{sfu_udp}"\ntcp_listen = "127.0.0.1:{sfu_tcp}"\n'
    )
    with open(folder / "log", "ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen([BINARY, "serve", "--config", config], env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            while not answers(http):
                if process.poll() is not None or time.perf_counter() - began > START_LIMIT:
                    sys.exit(f"the server does not start:\n{(folder / 'log').read_text()[-3000:]}")
                time.sleep(0.002)
            ready = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)
            resident, private = memory(process.pid)
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            process.wait(START_LIMIT)
            stopped = time.perf_counter() - began
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return {"ready": ready, "resident": resident, "private": private, "stopped": stopped}


def main():
    fresh = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            fresh.append(one_start(pathlib.Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        used = [one_start(pathlib.Path(folder)) for _ in range(STARTS + 1)][1:]

    def median(runs, name, unit):
        return round(statistics.median(run[name] for run in runs) / unit, 3)

    print(
        json.dumps(
            {
                "binary_mib": round(os.path.getsize(BINARY) / 2**20, 2),
                "start_fresh_ms": median(fresh, "ready", 1e-3),
                "start_used_ms": median(used, "ready", 1e-3),
                "stop_idle_ms": median(used, "stopped", 1e-3),
                "idle_resident_mib": median(used, "resident", 2**20),
                "idle_private_mib": median(used, "private", 2**20),
                "starts": STARTS,
                "cores": os.cpu_count(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
