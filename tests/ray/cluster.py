"""A Ray cluster of one node that a test starts, and what its replicas do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"


class Cluster:
    """Ports are its own, so that it can run beside another one."""

    def __init__(self, folder, cache):
        self.folder = folder
        (self.address_port, self.dashboard, self.client, self.metrics, self.grpc, self.http,
         self.runtime_env, self.proxy, exporter, stats) = free_ports(10)  # fmt: skip
        self.url = f"http://127.0.0.1:{self.proxy}"
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_ADDRESS": f"127.0.0.1:{self.address_port}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "hdr(x-session-id)",
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "660",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "p" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "p" / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "p"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "p" / "state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(exporter),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",  # 30 without this
            "TRIMODE_CACHE": str(cache),
        }
        self.environment.pop("PYTEST_CURRENT_TEST", None)

    def run(self, *command, timeout=120):
        return subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=self.environment,
            cwd=self.folder, timeout=timeout,
        )  # fmt: skip

    def start(self, cpus=4):
        environment = self.environment
        self.environment = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
        try:
            return self.run(
                "ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--num-cpus", cpus,
                "--object-store-memory", 150_000_000, "--disable-usage-stats",
                "--temp-dir", self.folder / "t", "--port", self.address_port,
                "--dashboard-port", self.dashboard, "--ray-client-server-port", self.client,
                "--metrics-export-port", self.metrics, "--dashboard-agent-grpc-port", self.grpc,
                "--dashboard-agent-listen-port", self.http,
                "--runtime-env-agent-port", self.runtime_env,
            )  # fmt: skip
        finally:
            self.environment = environment

    def stop(self):
        """End everything that was started, HAProxy too, which `ray stop` leaves behind."""
        self.run("serve", "shutdown", "--yes", timeout=60)
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        end = time.monotonic() + 10
        while (left := self._processes()) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)

    def _processes(self):
        """Processes that have the cluster's folder among their arguments or in the environment."""
        mark = str(self.folder).encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                known = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            except OSError:
                continue
            if mark in known and int(path.name) != os.getpid():
                found.append(int(path.name))
        return found

    def deploy(self, config):
        path = self.folder / "deployed.yaml"
        path.write_text(yaml.safe_dump(config))
        deployed = self.run("serve", "deploy", path)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    def status(self):
        return yaml.safe_load(self.run("serve", "status").stdout)["applications"]["trimode"]

    def until_running(self, replicas, seconds=120):
        """Wait until the application runs with so many replicas."""
        end = time.monotonic() + seconds
        while True:
            found = self.status()
            running = found["deployments"].get("trimode", {}).get("replica_states")
            if found["status"] == "RUNNING" and running == {"RUNNING": replicas}:
                return
            assert found["status"] != "DEPLOY_FAILED", found
            assert time.monotonic() < end, found
            time.sleep(0.5)

    def replicas(self):
        """Process ids."""
        return {
            pid
            for pid in self._processes()
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica:trimode")
        }

    def counters(self, name):
        """What each replica has counted, by Ray's label for it, as Ray exports it."""
        text = get(f"http://127.0.0.1:{self.metrics}/metrics")
        found = {}
        for line in text.splitlines():
            if line.startswith(f"ray_trimode_{name}{{"):
                worker = re.search(r'WorkerId="(\w+)"', line)[1]
                found[worker] = found.get(worker, 0) + float(line.rpartition(" ")[2])
        return found


def as_written(cluster, name="serve.yaml"):
    """An example's content, but for where it listens."""
    config = yaml.safe_load((EXAMPLES / name).read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": cluster.proxy}
    return config


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read().decode()


def props(cluster):
    return json.loads(get(f"{cluster.url}/props"))


def free_ports(count):
    """Ports that nobody listens on, above those of Ray's workers (10002 to 19999)."""
    found = []
    for port in range(21000 + os.getpid() % 5000, 30000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no ports")
