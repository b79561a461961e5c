# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fedlearn-image-dev on a device: `bitbake fedlearn-image-dev -c testimage`.

IMAGE_CLASSES += "testimage" and TEST_SUITES = "ping ssh fedlearn" select these.
"""

import contextlib
import json
import time
from pathlib import Path

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase
from oeqa.runtime.decorator.package import OEHasPackage

# The layer lives in the project's repository, which has a model and samples.
DIGITS = Path(__file__).resolve().parents[5] / "demo/fedlearn_demo/digits"
WORK = "/var/lib/fedlearn/oeqa"
REBOOT_TRIES = 60
# An aggregator that is not there: the agent searches for it for as long as it runs.
CONFIGURATION = f"""
[aggregator]
task = "oeqa"
insecure = true
interfaces = ["127.0.0.1"]
[data]
path = "{WORK}/train.npz"
"""
# A tenth of the digits, in the form that a device has.
SAMPLES = f"""
import numpy
digits = numpy.load("{WORK}/digits.npz")
numpy.savez("{WORK}/train.npz", x=digits["x_train"][:400], y=digits["y_train"][:400])
"""


class FedlearnTest(OERuntimeTestCase):
    """The client and what the image promises about it."""

    def run_on_target(self, command: str) -> str:
        """Run a command, which must succeed, and return its output."""
        status, output = self.target.run(command)
        self.assertEqual(status, 0, msg=f"{command}\n{output}")
        return output

    def reboot(self) -> None:
        """Reboot and wait until the device answers with another boot ID."""
        boot_id = "cat /proc/sys/kernel/random/boot_id"
        before = self.run_on_target(boot_id)
        self.run_on_target("(sleep 1; systemctl reboot) > /dev/null 2>&1 &")
        for _ in range(REBOOT_TRIES):
            time.sleep(5)
            # scarthgap returns what ssh returns, wrynose raises when ssh finds nobody.
            with contextlib.suppress(AssertionError):
                status, output = self.target.run(boot_id, timeout=10)
                if status == 0 and output != before:
                    # It answers before all of its units have started.
                    self.target.run("systemctl is-system-running --wait")
                    return
        self.fail("the device does not come back")

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave the device as it was."""
        cls.tc.target.run(f"systemctl stop fedlearn; rm -rf {WORK} /etc/fedlearn/fedlearn.toml")

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    @OEHasPackage(["fedlearn-service"])
    def test_root_is_read_only(self) -> None:
        """Nothing can be written beside /etc, /var and the data partition."""
        options = self.run_on_target("findmnt -n -o OPTIONS /").split(",")
        self.assertIn("ro", options)
        status, _ = self.target.run("touch /usr/fedlearn-oeqa")
        self.assertNotEqual(status, 0)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    @OEHasPackage(["fedlearn"])
    def test_client_imports(self) -> None:
        """All modules of the client are there, and what they import."""
        self.run_on_target(
            "python3 -I -c 'import importlib, pkgutil, fedlearn\n"
            'for each in pkgutil.walk_packages(fedlearn.__path__, "fedlearn."):\n'
            '    if not each.name.endswith("__main__"):\n'
            "        importlib.import_module(each.name)'"
        )

    @OETestDepends(["fedlearn.FedlearnTest.test_client_imports"])
    def test_training_step(self) -> None:
        """The image's runtime and NumPy train a model, and it gets better."""
        self.run_on_target(f"mkdir -p {WORK}")
        for name in ("digits.tflite", "digits.npz"):
            self.target.copyTo(str(DIGITS / name), f"{WORK}/{name}")
        self.run_on_target(f"python3 -I -c '{SAMPLES}'")
        self.run_on_target(f"chown -R fedlearn: {WORK}")
        output = self.run_on_target(
            f"fedlearn model train {WORK}/digits.tflite {WORK}/train.npz "
            f"--out {WORK}/new.tflite --tail last --json"
        )
        # ssh returns stderr as well, with the progress; the result is the last line.
        result = json.loads(output.splitlines()[-1])
        self.assertGreater(result["after"]["accuracy"], result["before"]["accuracy"])

    @OETestDepends(["fedlearn.FedlearnTest.test_training_step"])
    @OEHasPackage(["fedlearn-service"])
    def test_service_is_up(self) -> None:
        """With a configuration the unit starts, and says so to systemd."""
        self.run_on_target(f"echo '{CONFIGURATION}' > /etc/fedlearn/fedlearn.toml")
        self.run_on_target("systemctl restart fedlearn")
        self.assertEqual(self.run_on_target("systemctl is-active fedlearn"), "active")
        self.run_on_target("fedlearn status")

    @OETestDepends(["fedlearn.FedlearnTest.test_service_is_up"])
    def test_limits_are_in_force(self) -> None:
        """The kernel has the limits of fedlearn.slice, and the agent is in it."""
        group = self.run_on_target("systemctl show -P ControlGroup fedlearn.service")
        self.assertTrue(group.startswith("/fedlearn.slice/"), msg=group)
        slice_ = "/sys/fs/cgroup/fedlearn.slice"
        for limit in ("memory.max", "memory.high", "pids.max", "cpu.max"):
            value = self.run_on_target(f"cat {slice_}/{limit}").split()[0]
            self.assertNotEqual(value, "max", msg=limit)

    @OETestDepends(["fedlearn.FedlearnTest.test_service_is_up"])
    @OEHasPackage(["fedlearn-appliance"])
    def test_data_survives_a_reboot(self) -> None:
        """The state is on the data partition, and so are machine ID and host name."""
        keep = "cat /etc/machine-id /etc/hostname /var/lib/fedlearn/oeqa/kept"
        self.run_on_target("echo here > /var/lib/fedlearn/oeqa/kept; sync")
        before = self.run_on_target(keep)
        self.reboot()
        self.assertEqual(self.run_on_target(keep), before)
        source = self.run_on_target("findmnt -n -o SOURCE --mountpoint /data")
        self.assertTrue(source.startswith("/dev/"), msg=source)
