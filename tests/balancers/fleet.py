"""Two real servers, and a balancer in front of them as examples/balancers writes it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.server.asking import until

EXAMPLES = Path(__file__).parents[2] / "examples" / "balancers"
PORTS = (8080, 8001, 8002, 29000)
"""As the examples have them: the balancer's, the servers', and where smg shows its own metrics."""
KEY = "a-key"

COMMANDS = {
    "haproxy": ("haproxy", "-f", "haproxy.cfg"),
    "nginx": ("nginx", "-p", ".", "-c", "nginx.conf"),
    "smg": ("./smg.sh", "--api-key", KEY),
}
FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf", "smg": "smg.sh"}


class Fleet:
    """Processes of a test; ports other than the examples' may be given."""

    def __init__(self, name, folder, cache, ports=PORTS):
        self.name, self.folder, self.ports = name, folder, ports
        self.environment = os.environ | {"TRIMODE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.servers = [self._server(port) for port in ports[1:3]]
        self.balancer = None
        self.url = f"http://127.0.0.1:{ports[0]}"

    def _server(self, port):
        command = [Path(sys.executable).with_name("trimode"), "serve", "--port", str(port),
                   "--api-key", KEY, "--no-progress", "--log", "warnings",
                   "--shutdown-timeout", "60"]  # fmt: skip
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)

    def start(self):
        """Start the balancer once the servers are ready, and wait until it passes requests on."""
        text = (EXAMPLES / FILES[self.name]).read_text()
        for theirs, ours in zip(PORTS, self.ports, strict=True):
            text = text.replace(str(theirs), str(ours))
        copy = self.folder / FILES[self.name]
        copy.write_text(text)
        copy.chmod(0o755)
        for port in self.ports[1:3]:
            until(lambda: ready(f"http://127.0.0.1:{port}"), 120)  # noqa: B023
        log = (self.folder / "log").open("w")
        self.balancer = subprocess.Popen(
            COMMANDS[self.name], cwd=self.folder, stdout=log, stderr=log, env=self.environment
        )
        until(self.passes, 30)

    def passes(self):
        """Whether both servers are reached through the balancer."""
        body = {"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        if self.name == "smg":
            body["model"] = "smollm2-135m-instruct"
        try:
            url, headers = f"{self.url}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
            return httpx.post(url, json=body, headers=headers, timeout=20).status_code == 200
        except httpx.HTTPError:
            return False

    def restart(self, index):
        """A server that has ended is started anew."""
        self.servers[index].wait(70)
        port = self.ports[1 + index]
        self.servers[index] = self._server(port)
        until(lambda: ready(f"http://127.0.0.1:{port}"), 120)
        time.sleep(3)  # until the balancer's next look

    def running(self):
        """Requests that each server decodes."""
        return [self.metric(i, "trimode_requests_running") for i in range(2)]

    def metric(self, index, name):
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"http://127.0.0.1:{self.ports[1 + index]}/metrics"
        lines = httpx.get(url, headers=headers).text.splitlines()
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"{name}{{"))

    def stop(self):
        for process in (*self.servers, self.balancer):
            if process is not None and process.poll() is None:
                process.terminate()  # nginx would leave its workers behind if it were killed
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def ready(url):
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def installed(name):
    return shutil.which("smg" if name == "smg" else name) is not None


def body_of(response):
    return json.loads(response.content)
