"""A home behind a real router, in network namespaces: a machine at home, a router with NAT and miniupnpd, a machine outside.

    home 192.168.77.2 --- lan0 192.168.77.1 [router: masquerade, miniupnpd] wan0 5.5.5.1 --- outside 5.5.5.2

Needs root, `ip`, `nft` and `miniupnpd`: `missing()` says what is not there. The namespaces are the caller's own; their names
carry the process id, and everything in them goes with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HOME, LAN, WAN, OUTSIDE = "192.168.77.2", "192.168.77.1", "5.5.5.1", "5.5.5.2"
PARTS = ("home", "router", "outside")
READY_S = 10.0

RULES = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    jump miniupnpd
    ct state established,related accept
    iifname "lan0" accept
  }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; oifname "wan0" masquerade; }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""

DAEMON = """
ext_ifname=wan0
listening_ip=lan0
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 192.168.77.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
"""


@dataclass(frozen=True)
class Home:
    prefix: str

    def inside(self, part: str, *argv: object) -> list[str]:
        """The command line that runs `argv` in one of the namespaces."""
        return ["ip", "netns", "exec", self.prefix + part, *map(str, argv)]

    def run(self, part: str, *argv: object, stdin: str = "") -> str:
        return _run(*self.inside(part, *argv), stdin=stdin)

    def rules(self) -> str:
        """What the router passes on at this moment."""
        return self.run("router", "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")


def missing() -> str:
    """Why no such home can be made here; empty if it can."""
    absent = [name for name in ("ip", "nft", "miniupnpd") if shutil.which(name) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or absent:
        return f"needs Linux, root and {', '.join(absent) or 'ip, nft, miniupnpd'}"
    name = f"dds-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this machine allows no network namespaces"
    _run("ip", "netns", "del", name)
    return ""


@contextmanager
def home_behind_router(directory: Path, *, natpmp: bool, upnp: bool) -> Iterator[Home]:
    home = Home(f"dds{os.getpid()}-")
    with ExitStack() as stack:
        for part in PARTS:
            _run("ip", "netns", "add", home.prefix + part)
            stack.callback(_run, "ip", "netns", "del", home.prefix + part)
            _run("ip", "-n", home.prefix + part, "link", "set", "lo", "up")
        _wire(home)
        home.run("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        home.run("router", "nft", "-f", "-", stdin=RULES)
        config = directory / "miniupnpd.conf"
        config.write_text(DAEMON.format(natpmp="yes" if natpmp else "no", upnp="yes" if upnp else "no"))
        log = stack.enter_context((directory / "miniupnpd.log").open("wb"))
        command = home.inside("router", "miniupnpd", "-d", "-f", config, "-P", directory / "miniupnpd.pid")
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(daemon.wait, 10)
        stack.callback(daemon.terminate)
        _await_listening(home, 5351 if natpmp else 1900)
        yield home


def _wire(home: Home) -> None:
    def cable(part: str, address: str, router_end: str, router_address: str) -> None:
        pair = f"v{os.getpid()}{router_end}"[:15]
        _run(
            "ip",
            "link",
            "add",
            pair,
            "netns",
            home.prefix + part,
            "type",
            "veth",
            "peer",
            router_end,
            "netns",
            home.prefix + "router",
        )
        _run("ip", "-n", home.prefix + part, "link", "set", pair, "name", "eth0")
        for namespace, name, its_address in ((part, "eth0", address), ("router", router_end, router_address)):
            _run("ip", "-n", home.prefix + namespace, "addr", "add", f"{its_address}/24", "dev", name)
            _run("ip", "-n", home.prefix + namespace, "link", "set", name, "up")

    cable("home", HOME, "lan0", LAN)
    cable("outside", OUTSIDE, "wan0", WAN)
    _run("ip", "-n", home.prefix + "home", "route", "add", "default", "via", LAN)


def _await_listening(home: Home, port: int) -> None:
    deadline = time.monotonic() + READY_S
    while f"{port:04X}" not in home.run("router", "cat", "/proc/net/udp"):
        assert time.monotonic() < deadline, "miniupnpd does not listen"
        time.sleep(0.02)


def _run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout
