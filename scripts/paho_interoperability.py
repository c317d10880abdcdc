"""Runs the Eclipse Paho interoperability suite against a broker of its own: ``python scripts/paho_interoperability.py [DIRECTORY]``.

DIRECTORY is a checkout of https://github.com/eclipse/paho.mqtt.testing, which is no part of this repository; without it one is cloned into a
temporary directory. Exit 0: every test of ``client_test5.py`` and of ``client_test.py`` passes. The broker has the settings that the suite expects.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = "https://github.com/eclipse/paho.mqtt.testing"
SETTINGS = {
    "mqtt.refused_filters": "test/nosubscribe",
    "mqtt.keep_alive_s_max": "60",
    "mqtt.receive_maximum": "20",
    "mqtt.topic_alias_maximum": "10",
    "mqtt.packet_bytes_max": "2000000",
}
TEST_S = 900


def run(suite: Path, name: str, port: int, only: list[str]) -> tuple[int, int]:
    """(tests that ran, tests that failed) of one file of the suite."""
    # Its own option for the port is one that unittest refuses: the default is replaced as the file is read.
    code = (
        "import sys; name, port = sys.argv[1:3]; sys.argv[:] = [name, *sys.argv[3:]]; "
        "exec(compile(open(name).read().replace('port = 1883', 'port = ' + port), name, 'exec'))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, name, str(port), *only]
    done = subprocess.run(command, cwd=suite / "interoperability", capture_output=True, text=True, timeout=TEST_S, check=False)
    said = done.stderr + done.stdout
    ran = re.search(r"^Ran (\d+) tests?", said, re.MULTILINE)
    failed = re.search(r"^FAILED \((.*)\)", said, re.MULTILINE)
    count = sum(int(n) for n in re.findall(r"(?:failures|errors)=(\d+)", failed[1])) if failed else 0
    if ran is None or failed:
        print(said[-20_000:])
    return (int(ran[1]) if ran else 0), (count if ran else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--only", action="append", default=[], help="tests to run, as unittest names them (Test.test_will_message)")
    parser.add_argument("--file", choices=("client_test5.py", "client_test.py"), help="one of the two files")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        suite = asked.directory or Path(made, "suite")
        if asked.directory is None:
            subprocess.run(["git", "clone", "--quiet", "--depth", "1", SUITE, str(suite)], check=True, timeout=300)
        ready = Path(made, "ready")
        settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
        listeners = ["--listen", "127.0.0.1:0", "--admin", "off", "--mqtt", "127.0.0.1:0"]
        command = [
            sys.executable,
            "-m",
            "headrace.cli",
            "start",
            "-d",
            str(Path(made, "data")),
            *listeners,
            *settings,
            "--ready-file",
            str(ready),
            "-q",
        ]
        broker = subprocess.Popen(command)
        try:
            until = time.monotonic() + 60
            while not ready.exists():
                if broker.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the broker did not start")
                time.sleep(0.05)
            port = int(json.loads(ready.read_text())["mqtt"].rpartition(":")[2])
            failures = 0
            for name in (asked.file,) if asked.file else ("client_test5.py", "client_test.py"):
                ran, failed = run(suite, name, port, asked.only)
                print(f"{name}: {ran - failed} of {ran} pass")
                failures += failed
        finally:
            broker.terminate()
            broker.wait(30)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
