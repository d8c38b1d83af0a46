"""What boots a guest: User-mode Linux, or QEMU with or without KVM.

An engine turns a Machine into a command; the guest itself is the same.
"""
import dataclasses
import pathlib
import subprocess

from . import host

MEMORY_MIB = 2048


@dataclasses.dataclass
class Machine:
    """A guest as an engine is told about it."""

    kernels: pathlib.Path
    image: pathlib.Path
    """The root image; never written to."""
    overlay: pathlib.Path
    """What this guest wrote to its root; kept from boot to boot."""
    read_only: list[pathlib.Path]
    """Disks after the root, in this order, that are only read."""
    writable: list[pathlib.Path]
    """Disks after those."""
    parameters: list[str]
    """Words of the kernel's command line; in them `{disk[0]}` is the device of the root,
    `{disk[1]}` that of the first disk after it."""
    interactive: bool = False

    def command_line(self, devices):
        """The kernel's command line, with the device names of an engine."""
        words = ["rw", "quiet", "panic=-1", *self.parameters]
        return [word.format(disk=devices) for word in words]


class Uml:
    """Debian's User-mode Linux: a kernel that is a process, one processor, no emulation."""

    name = "uml"
    slowness = 1
    processors = 1
    """On two it takes three times as long: its kernel follows each process by ptrace(2), and
    with every system call of the guest one of them would wake the other up elsewhere."""

    def check(self, kernels):
        """Trouble if it does not run here."""
        host.run([kernels / "linux.uml", "--version"], within=20)

    def prepare(self, machine):
        """Nothing: the overlay is made by the kernel."""

    def command(self, machine):
        """The command that boots the machine."""
        disks = [f"ubd0={machine.overlay},{machine.image}"]
        disks += [f"ubd{n}r={path}" for n, path in enumerate(machine.read_only, 1)]
        disks += [f"ubd{n}={path}" for n, path in enumerate(machine.writable, len(disks))]
        devices = [f"/dev/ubd{chr(ord('a') + n)}" for n in range(len(disks))]
        console = "con0=fd:0,fd:1" if machine.interactive else "con0=null,fd:1"
        return host.contained(
            ["env", f"LD_PRELOAD={machine.kernels / 'uml-xstate.so'}",
             machine.kernels / "linux.uml", f"mem={MEMORY_MIB}M", *disks, "root=/dev/ubda",
             "rootflags=noinit_itable", "con=null", console, "ssl=null",
             f"uml_dir={machine.overlay.parent}/", "umid=uml",
             *machine.command_line(devices)])


class Qemu:
    """QEMU with Debian's cloud kernel, by direct kernel boot."""

    name = "qemu"
    processors = 2

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.slowness = 1 if accelerator == "kvm" else 5

    @classmethod
    def best(cls, kernels):
        """With KVM where it works, else with emulation."""
        return cls("kvm" if kvm_works(kernels) else "tcg")

    def check(self, kernels):
        """Trouble if it does not run here."""
        host.install_packages("qemu-system-x86", "qemu-utils")

    def prepare(self, machine):
        """Makes the overlay."""
        # -u: without looking into the image, which would take a lock of it.
        host.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", machine.image, "-F", "raw",
                  machine.overlay, machine.image.stat().st_size], within=60)

    def command(self, machine):
        """The command that boots the machine."""
        # What is only read is without locks: User-mode Linux locks what another run of it
        # reads of these.
        drives = [f"file={machine.overlay},format=qcow2,backing.file.locking=off"]
        drives += [f"file={path},format=raw,readonly=on,file.locking=off"
                   for path in machine.read_only]
        drives += [f"file={path},format=raw" for path in machine.writable]
        devices = [f"/dev/vd{chr(ord('a') + n)}" for n in range(len(drives))]
        words = ["console=ttyS0", *machine.command_line(devices)]
        return host.contained(
            [*_base(self.accelerator), "-initrd", machine.kernels / "initrd",
             "-kernel", machine.kernels / "vmlinuz", "-append", " ".join(words),
             *(word for drive in drives for word in ("-drive", f"{drive},if=virtio"))])


def _base(accelerator):
    """A machine without anything it was not given; its console is standard input and output."""
    thread = ",thread=multi" if accelerator == "tcg" else ""
    processor = "host" if accelerator == "kvm" else "max"
    return ["qemu-system-x86_64", "-machine", "q35", "-accel", f"{accelerator}{thread}",
            "-cpu", processor, "-smp", str(Qemu.processors), "-m", str(MEMORY_MIB), "-no-user-config", "-nodefaults",
            "-display", "none", "-nic", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]


KVM_SECONDS = 15


def kvm_works(kernels):
    """Whether a guest under KVM comes as far as its first program: a /dev/kvm that opens
    may still run nothing. Found out once for each boot of the host and each kernel."""
    if not pathlib.Path("/dev/kvm").exists():
        return False
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    known = host.CACHE / f".kvm-{boot}-{kernels.name}"
    if not known.exists():
        host.install_packages("qemu-system-x86")
        command = [*_base("kvm"), "-kernel", kernels / "vmlinuz", "-initrd", kernels / "initrd",
                   "-append", "console=ttyS0 quiet panic=-1 vm.probe"]
        try:
            done = subprocess.run(
                list(map(str, command)), timeout=KVM_SECONDS, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            works = done.returncode == 0
        except subprocess.TimeoutExpired:
            works = False
        for old in host.CACHE.glob(".kvm-*"):
            old.unlink(missing_ok=True)
        known.write_text("works" if works else "hangs or fails", encoding="ascii")
    return known.read_text(encoding="ascii") == "works"


def choose(wanted, kernels):
    """The engine for `auto`, `uml` or `qemu`; says which and why when it chose."""
    if wanted == "uml":
        engine, why = Uml(), None
    elif wanted == "qemu":
        engine = Qemu.best(kernels)
        why = f"QEMU with {engine.accelerator.upper()}"
    elif kvm_works(kernels):
        engine, why = Qemu("kvm"), "QEMU: KVM works here"
    else:
        try:
            Uml().check(kernels)
            engine, why = Uml(), "User-mode Linux: KVM does not work here"
        except host.Trouble:
            engine, why = Qemu("tcg"), "QEMU with TCG: neither KVM nor User-mode Linux works here"
    engine.check(kernels)
    if why:
        host.say(f"· engine: {why}")
    return engine
