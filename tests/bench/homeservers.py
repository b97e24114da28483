"""Drives this server and Synapse with the same load, one after the other, on SQLite and on PostgreSQL.

    tests/bench/homeservers [--runs 3] [--quick] [--scenario send --scenario bigroom ...] [--only longhouse-sqlite,...] [--out FILE]

Every run starts each server on an empty database of its own. The figure to compare is the CPU time of the server, the
database included, per operation; the medians over the runs are printed as a table, the raw results appended to FILE.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict

from start import ENVIRONMENT, free_port

BINARY = os.environ["LONGHOUSE_BIN"]
LOAD = os.environ["HSBENCH"]
SYNAPSE_PYTHON = os.environ.get("SYNAPSE_PYTHON")
SERVERS = ["longhouse-sqlite", "synapse-sqlite", "longhouse-postgres", "synapse-postgres"]
START_LIMIT = 60.0
# Smaller than the tool's own defaults where Synapse needs minutes; the same for every server.
COUNTS = """--bigroom-members 600 --sync-rooms 100 --messages-events 2000 --fanout-paced 15 --state-events 100
            --mixed-seconds 30""".split()
# For a look in a quarter of an hour.
QUICK = """--register-users 20 --send 1:100,8:30,32:10 --fanout-members 50 --fanout-paced 5 --fanout-burst 40
           --sync-rooms 50 --sync-repeats 3 --messages-events 1000 --messages-passes 2 --bigroom-members 300
           --state-events 40 --mixed-seconds 20 --mixed-rates 10 --media-files 20 --media-images 2""".split()


def eprint(*words):
    print(time.strftime("==> %H:%M:%S"), *words, file=sys.stderr, flush=True)


class Postgres:
    """A PostgreSQL cluster with its own durability switched on, as a deployment has it."""

    def __init__(self, folder):
        programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        folder.chmod(0o777)
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self.control = [*self.as_user, programs / "pg_ctl", "-D", folder / "data"]
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={folder}"
        self.call([*self.as_user, programs / "initdb", "-D", folder / "data", "-U", "bench", "--auth=trust",
                   "--encoding=UTF8", "--locale=C"])
        self.call([*self.control, "-w", "-l", folder / "log", "-o", options, "start"])
        self.psql = [programs / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d", "postgres", "-c"]

    def call(self, command):
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def fresh(self, name):
        self.call([*self.psql, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"])
        self.call([*self.psql, f"CREATE DATABASE {name}"])
        # What an earlier server left to be written out is not this one's work.
        self.call([*self.psql, "CHECKPOINT"])
        return f"postgres://bench@127.0.0.1:{self.port}/{name}"

    def pid(self):
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self):
        self.call([*self.control, "-m", "fast", "stop"])


def longhouse(folder, database):
    http, turn, sfu_udp, sfu_tcp = (free_port() for _ in range(4))
    config = folder / "longhouse.toml"
    storage = f'[database]\nurl = "{database}"\n' if database else ""
    config.write_text(
        f'server_name = "bench.test"\ndata_dir = "{folder}/data"\n{storage}'
        f'[listen]\naddresses = ["127.0.0.1:{http}"]\npublic_url = "http://127.0.0.1:{http}"\n'
        f'[turn]\nlisten = ["127.0.0.1:{turn}"]\n[sfu]\nudp_listen = "127.0.0.1:{sfu_udp}"\n'
        f'tcp_listen = "127.0.0.1:{sfu_tcp}"\n[registration]\nmode = "open"\n'
        '[auth]\npassword_hash = "fast"\n[rate_limits]\nenabled = false\n'
    )
    return [BINARY, "serve", "--config", config], ENVIRONMENT, http


def synapse(folder, database):
    http = free_port()
    if database:
        port, name = database.rsplit(":", 1)[1].split("/")
        storage = (f"  name: psycopg2\n  args: {{user: bench, dbname: {name}, host: 127.0.0.1, port: {port}, "
                   "cp_min: 5, cp_max: 10}\n")
    else:
        storage = f"  name: sqlite3\n  args: {{database: {folder}/homeserver.db}}\n"
    none = "{per_second: 1000000, burst_count: 1000000}"
    limits = "".join(f"rc_{name}: {none}\n" for name in (
        "message registration registration_token_validity admin_redaction joins_per_room 3pid_validation "
        "third_party_invite media_create delayed_event_mgmt room_creation reports user_directory").split())
    config = folder / "homeserver.yaml"
    config.write_text(
        f"server_name: bench.test\npid_file: {folder}/pid\npublic_baseurl: http://127.0.0.1:{http}/\n"
        f"report_stats: false\nlisteners:\n  - port: {http}\n    type: http\n    bind_addresses: ['127.0.0.1']\n"
        f"    resources: [{{names: [client, media], compress: false}}]\ndatabase:\n{storage}"
        f"log_config: {folder}/log.yaml\nmedia_store_path: {folder}/media\nmax_upload_size: 50M\n"
        f"signing_key_path: {folder}/signing.key\nenable_registration: true\n"
        "enable_registration_without_verification: true\nmacaroon_secret_key: bench\nform_secret: bench\n"
        f"bcrypt_rounds: 4\ntrusted_key_servers: []\nurl_preview_enabled: false\n{limits}"
        f"rc_login: {{address: {none}, account: {none}, failed_attempts: {none}}}\n"
        f"rc_joins: {{local: {none}, remote: {none}}}\nrc_presence: {{per_user: {none}}}\n"
        f"rc_invites: {{per_room: {none}, per_user: {none}, per_issuer: {none}}}\n"
    )
    (folder / "log.yaml").write_text("version: 1\nroot: {level: WARNING}\ndisable_existing_loggers: false\n")
    start = [SYNAPSE_PYTHON, "-m", "synapse.app.homeserver", "-c", config]
    subprocess.run([*start, "--generate-keys"], check=True, stdout=subprocess.DEVNULL)
    return start, None, http


def wait_until_ready(process, port, log):
    began = time.perf_counter()
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_matrix/client/versions", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if process.poll() is not None or time.perf_counter() - began > START_LIMIT:
            sys.exit(f"the server does not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.01)


def drive(name, run, scenarios, counts, postgres, out):
    kind, engine = name.split("-")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        database = postgres.fresh(f"{kind}{run}") if engine == "postgres" else None
        command, environment, port = (longhouse if kind == "longhouse" else synapse)(folder, database)
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                wait_until_ready(process, port, folder / "log")
                pids = ["--pid", f"hs={process.pid}"]
                if database:
                    pids += ["--pid", f"db={postgres.pid()}"]
                load = [LOAD, "--url", f"http://127.0.0.1:{port}", "--label", name, "--run", str(run), "--out", out,
                        "--max-seconds", "900", *pids, *counts]
                for scenario in scenarios:
                    eprint(f"run {run}: {name}: {scenario}")
                    subprocess.run([*load, "--scenario", scenario], check=False, stdout=subprocess.DEVNULL)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def table(out):
    """Medians over the runs: CPU ms per operation and p50 / p99 ms for each server."""
    results = defaultdict(lambda: defaultdict(list))
    memory = defaultdict(lambda: defaultdict(list))
    for line in pathlib.Path(out).read_text().splitlines():
        result = json.loads(line)
        results[result["scenario"], result["phase"]][result["server"]].append(result)
        if "pss_mib" in result:
            memory[result["server"]][result["run"]].append(result["pss_mib"]["after"])
    print(f"| operation | {' | '.join(SERVERS)} |\n|---|{'---|' * len(SERVERS)}")
    for (scenario, phase), servers in results.items():
        if scenario == "idle":
            continue
        cells = []
        for server in SERVERS:
            runs = [r for r in servers.get(server, []) if "error" not in r]
            cpu = [r["server_cpu_ms_per_op"] for r in runs if r.get("server_cpu_ms_per_op") is not None]
            latency = [r["latency_ms"] for r in runs if r.get("latency_ms")]
            cell = f"{statistics.median(cpu):.2f}" if cpu else "-"
            if latency:
                p50, p99 = (statistics.median(x[q] for x in latency) for q in ("p50", "p99"))
                cell += f" ({p50:.1f}/{p99:.1f})"
            cells.append(cell)
        print(f"| {scenario} {phase} | {' | '.join(cells)} |")
    cells = []
    for server in SERVERS:
        ends = [(run[0], run[-1]) for run in memory[server].values()]
        cells.append(" → ".join(f"{statistics.median(end):.0f}" for end in zip(*ends)) if ends else "-")
    print(f"| memory before and after, MiB (proportional set) | {' | '.join(cells)} |")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--scenario", action="append")
    arguments.add_argument("--only", default=",".join(SERVERS))
    arguments.add_argument("--quick", action="store_true", help="smaller counts")
    arguments.add_argument("--out", default="homeservers.jsonl")
    arguments.add_argument("--table", action="store_true", help="only print the table of --out")
    arguments = arguments.parse_args()
    if not arguments.table:
        scenarios = arguments.scenario or ["idle", "register", "send", "fanout", "initialsync", "messages", "bigroom",
                                           "state", "mixed", "media"]
        servers = arguments.only.split(",")
        folder = pathlib.Path(tempfile.mkdtemp())
        folder.chmod(0o755)
        postgres = Postgres(folder / "postgres") if any("postgres" in server for server in servers) else None
        try:
            for run in range(1, arguments.runs + 1):
                for server in servers:
                    drive(server, run, scenarios, QUICK if arguments.quick else COUNTS, postgres, arguments.out)
        finally:
            if postgres:
                postgres.stop()
            shutil.rmtree(folder, ignore_errors=True)
    table(arguments.out)


main()
